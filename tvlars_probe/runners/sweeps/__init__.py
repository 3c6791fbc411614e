"""Training many runs: grids, and where the runs of a grid are trained."""
