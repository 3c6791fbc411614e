"""Means and deviations by which images are normalised, of values scaled to [0, 1]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's three channels; the official experiments normalise every data set by them."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Likewise."""
