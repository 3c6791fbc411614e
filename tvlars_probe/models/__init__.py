"""The models that `train` knows by name."""
