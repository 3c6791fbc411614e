"""Was warm-up needed, for which layers, and for how long: by a run's trace, and by pairs of runs."""
