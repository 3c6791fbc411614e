"""On what a stretch of a run was computed: host, process and versions, for the manifest."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from typing import Any

from tvlars_probe.traces.manifest import now


def environment() -> dict[str, Any]:
    """Start time, host, process and versions, for a segment of the manifest."""
    return {
        "start": now().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "tvlars_probe": version_of("tvlars-probe"),
        "git_revision": _git_revision(),
    }


def version_of(package: str) -> str | None:
    """The version of a package as it is loaded, or else installed; None where it is neither. Imports nothing."""
    # The loaded module is what runs; the installed package may be another copy. torch's version is a subclass of str.
    loaded = sys.modules.get(package.replace("-", "_"))
    if loaded is not None and isinstance(version := getattr(loaded, "__version__", None), str):
        return str(version)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The revision that is checked out in the working directory; None if that is no git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
