"""How large may the batch be: by the noise scale, by time to a target, by branches, and the three side by side."""
