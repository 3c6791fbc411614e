"""What is said of a run while it trains, made of the rows that came last. No torch, no display."""
