"""LARS, LAMB, N-LAMB and TVLARS for `torch.optim`, descriptions of any optimizer, and learning-rate schedules.

The classes are imported from ``tvlars_probe`` itself, so that this package can be imported without torch.
"""
