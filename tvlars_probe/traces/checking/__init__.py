"""Is a run's directory whole? What of it can be told without torch, and setting aside what is broken."""
