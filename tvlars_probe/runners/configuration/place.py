"""Where a run computes."""

from __future__ import annotations

from dataclasses import dataclass

from tvlars_probe.errors import UserError

MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where a run computes. The numbers of ranks and threads decide the order of sums; port and workers change nothing.

    Attributes:
        devices: "auto" (the first CUDA device, else the CPU), "cpu", or numbers of CUDA devices, one rank each.
        nproc: number of ranks on the CPU; with CUDA devices it must be their number, if it is given.
        threads: torch threads per rank; by default torch's own number for one rank, an equal share of the cores for
            several.
        port: port on this machine where the ranks meet; 0 takes a free one.
        workers: threads that decode image files.
    """

    devices: tuple[str, ...] = ("auto",)
    nproc: int | None = None
    threads: int | None = None
    port: int = 0
    workers: int = 4

    def __post_init__(self) -> None:
        for name, least in (("nproc", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value} is too few (allowed: {least} or more)")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise UserError(f"--threads {self.threads} is too many (allowed: 1 to {MOST_THREADS})")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port {self.port} is no port (allowed: 0 to 65535)")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} is too few (allowed: 0 or more)")
