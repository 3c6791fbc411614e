"""The trace on disk: its schema, the run directory, the writer and the reader.

Nothing here needs torch. pyarrow and pandas are imported within functions, so that ``--help`` doesn't wait for them.
"""
