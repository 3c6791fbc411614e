"""One self-contained HTML page made of verdicts, charts and tables. No torch, no network."""
