"""What is recorded during training: the recorder that attaches to any loop, and its probes.

A probe reads and never writes: a run with probes is bit-identical to one without.
"""
