"""What a file may cost, decided before it is parsed: that it is a plain file, its bytes, its depth, its elements.

Run directories, checkpoints, grids and data sets come from strangers, and a small file may stand for any amount of
memory or time. Every reader asks here first. There are no timers and no helper processes: what a file will cost is
counted on its bytes, by passes that are linear in them. All limits stand in `limits`. Nothing here needs torch.
"""
