"""Hessian operators, and estimators that meet them only in a product. Knows nothing of runs or files."""
