"""When: the events of a loop's steps, the time between them, and what all ranks do in the same step."""
