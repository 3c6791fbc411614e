"""One chart per analysis result: the result goes in, an `altair` chart comes out. No statistics here, and no torch."""
