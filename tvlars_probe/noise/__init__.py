"""The gradient's noise: how much the gradients of single samples differ, and how much signal their mean holds."""
