"""The phases of a training run: what each of them trains, on which data, and the loop that they share."""
