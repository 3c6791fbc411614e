"""SQL over the tables of recorded runs: one SELECT, answered by DuckDB, which reads no file itself. No torch."""
