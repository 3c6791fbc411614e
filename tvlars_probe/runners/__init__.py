"""Training runs: what a user asks for, processes and devices, the loops, evaluation and checkpoints."""
