"""Many runs: grids, and where their runs are trained."""
