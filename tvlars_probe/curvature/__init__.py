"""Hessian operators, and estimators that use products with vectors alone. Nothing here knows of runs or files."""
