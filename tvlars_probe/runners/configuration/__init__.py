"""What a training run is asked to do, part by part, and as a whole."""
