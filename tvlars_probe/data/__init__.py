"""Image data sets: where they are looked for, how they are read, and how an epoch is cut into batches."""
