"""Analyses of recorded runs, one question per module.

An analysis takes frames of a trace and returns a small frozen result: a verdict, a table, and the evidence for both.
Nothing here needs torch.
"""
