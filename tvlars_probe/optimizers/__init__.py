"""LARS, LAMB and TVLARS as `torch.optim` optimizers, the learning-rate schedules, and the registry of both.

The classes are imported from ``tvlars_probe`` itself; this package stays importable without torch.
"""
