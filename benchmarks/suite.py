"""How long the tests take that are not marked slow.

python -m benchmarks.suite
"""

from __future__ import annotations

import subprocess
import sys
import time

import click

from benchmarks.figures import Figure, save


@click.command()
def main() -> None:
    """Run them once, two at a time."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not slow"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    minutes = (time.perf_counter() - start) / 60
    told = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "pytest said nothing"
    save("suite", [Figure(what="tests not marked slow", value=minutes, aim=6, unit="min", note=told.strip("= "))])
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
