"""Starting and ending the processes of a run: devices, ranks, torchrun, signals."""
