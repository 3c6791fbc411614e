"""One chart per analysis result: result in, `altair` chart out. No statistics here, and no torch."""
