"""What is computed of finished runs: the Hessian at a checkpoint, slices through the loss."""
