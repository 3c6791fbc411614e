"""What other people's trackers are sent of a run, while it trains or afterwards; one module a tracker. No torch."""
