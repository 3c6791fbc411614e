"""Independent routes to the same numbers: plain, slow, in float64."""
