"""What `benchmarks.fuzz` draws: command lines, damaged files, and files made to cost what no file may."""
