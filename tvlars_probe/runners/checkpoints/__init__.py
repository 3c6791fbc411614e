"""Checkpoints: their files, what they hold, when they are made, and how a run goes on from one."""
