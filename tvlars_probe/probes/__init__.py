"""What is recorded during training: the recorder that attaches to any loop, and probes that measure before updates.

Nothing here writes to the training: a run that is recorded is bit-identical to one that isn't.
"""
