"""Checkpoints: their files and contents, when a run saves one, and how a run continues from one."""
