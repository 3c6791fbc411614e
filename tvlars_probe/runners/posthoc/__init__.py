"""Computations at the checkpoints of a run: the Hessian, and slices through the loss."""
