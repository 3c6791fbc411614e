"""The phases of a training run: what each trains, on what, and the loop that all share."""
