"""The commands, one module each: they parse, call and render, and compute nothing."""
