"""What is wrong with an optimizer, found by trying it; and what was wrong with a run, found in its trace."""
