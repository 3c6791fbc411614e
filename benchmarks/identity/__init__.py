"""Do two versions of this package compute the same, bit for bit? Proof of a refactoring.

    python -m benchmarks.identity record new.json
    python -m benchmarks.identity record old.json --package ../old
    python -m benchmarks.identity compare old.json new.json

``record`` runs a fixed set of commands and loops: every optimizer with every schedule in both modes, their variants,
two ranks, a run that is killed and resumed, the Hessian by every operator, every analysis and every kind of chart. It
stores a hash of each column of each table, of each tensor of each checkpoint, and of each output. What differs from
one run of the same code to the next is left out: times, hosts, processes, and the random ends of identifiers.

Both sides must be recorded on one machine with the same packages. The commands are called through the command line
alone, and the loops through the public API, so that neither side's layout matters.
"""
