"""Is a run's directory whole? Checks what can be checked without torch, and sets aside what is broken."""
