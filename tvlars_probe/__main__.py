"""``python -m tvlars_probe`` is the command ``tvlars-probe``."""

from tvlars_probe.cli import main

main(prog_name="python -m tvlars_probe")
