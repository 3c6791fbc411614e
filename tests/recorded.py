"""Small real runs, trained once per test process, that analyses, charts and reports are tried on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH = 48
LRS = {"lars": 8.0, "tvlars": 8.0, "lamb": 0.02, "sgd": 0.1}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train on a few digits: optimizer, schedule and any other setting by name; the same settings train once."""
    folder = tmp_path_factory.mktemp("recorded")
    made: dict[Any, Path] = {}

    def train(
        optimizer: str,
        schedule: str = "none",
        *,
        seed: int = 0,
        sharpness: bool = False,
        precision: str = "float32",
        **settings: Any,
    ) -> Path:
        import torch

        from tvlars_probe.data.registry import DataConfig
        from tvlars_probe.optimizers.registry import OptimizerConfig
        from tvlars_probe.optimizers.schedules import ScheduleConfig
        from tvlars_probe.runners.configuration.recording import RecordConfig
        from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
        from tvlars_probe.runners.configuration.training import TrainConfig
        from tvlars_probe.runners.train import train

        key = (optimizer, schedule, seed, sharpness, precision, tuple(sorted(settings.items())))
        if key not in made:
            config = TrainConfig(
                data=DataConfig(name="digits", limit=192),
                optimizer=OptimizerConfig(**{"name": optimizer, "lr": LRS[optimizer], "lmbda": 0.05, **settings}),
                schedule=ScheduleConfig(name=schedule),
                recording=RecordConfig(spectral_every=4 if sharpness else None),
                sharpness=SharpnessConfig(every="4" if sharpness else None, samples=32, tol=0.05),
                batch_size=BATCH,
                epochs=8,
                seed=seed,
                precision=precision,
            )
            made[key] = train(config, folder / f"{optimizer}-{schedule}-{len(made)}", quiet=True)
            torch.set_num_threads(1)
        return made[key]

    return train


@pytest.fixture(scope="session")
def recorded(trained: Callable[..., Path]) -> list[Path]:
    """Three runs of one peak rate with sharpness and spectral norms: LARS, TVLARS, LARS with warm-up (batch/256)."""
    warm = trained("lars", "lars-warm", sharpness=True, lr=LRS["lars"] * 256 / BATCH)
    return [trained("lars", sharpness=True), warm, trained("tvlars", sharpness=True)]


@pytest.fixture(scope="session")
def measured(recorded: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Copies of them that every kind of chart can be drawn from; the first one has all measures."""
    import shutil

    from tests.noisy import add_noise
    from tvlars_probe.curvature.measures import Measures
    from tvlars_probe.runners.configuration.place import PlaceConfig
    from tvlars_probe.runners.posthoc.curvature import SharpnessJob, measure_run
    from tvlars_probe.runners.posthoc.landscape import LandscapeJob, measure_landscape

    folder, runs = tmp_path_factory.mktemp("measured"), []
    for run in recorded:
        runs.append(folder / run.name)
        shutil.copytree(run, runs[-1])
    cpu = PlaceConfig(devices=("cpu",), threads=1)
    measures = Measures(density=True, density_probes=1, density_steps=15, per_layer=True, tol=0.1)
    measure_run(SharpnessJob(run=runs[0], measures=measures, samples=32, place=cpu))
    add_noise(runs[0])
    measure_landscape(LandscapeJob(run=runs[0], dimensions=2, points=5, samples=32, place=cpu))
    return runs
