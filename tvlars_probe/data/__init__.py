"""Image data sets: how they are found and read, how batches are drawn from them, and how images are augmented."""
