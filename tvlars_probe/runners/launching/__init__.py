"""Starting and ending a run's processes: devices, ranks, torchrun, signals."""
