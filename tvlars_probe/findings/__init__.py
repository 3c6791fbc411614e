"""What is wrong with a run while it trains: rules over the recorded steps, evaluated at each flush. No torch."""
