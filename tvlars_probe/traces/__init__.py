"""The trace on disk: its schema, the run directory, the writer and the reader. Nothing here needs torch."""
