"""What: which parameters are recorded, what is read of each, and what the loop tells."""
