"""The means and standard deviations by which photographs are normalised, of values scaled to [0, 1]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Means of ImageNet's three channels; the official experiments normalise every data set by ImageNet's moments."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviations of ImageNet's three channels."""
