"""``train --noise``: the same estimates from micro-batches, from ranks and from both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tvlars_probe
from tests.ranked import cli_on_ranks
from tvlars_probe.errors import UserError
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.training import TrainConfig

if TYPE_CHECKING:
    from pathlib import Path

# 180 samples: a last batch of 52 beside two of 64.
WORDS = ("train", "--limit", 180, "--batch-size", 64, "--epochs", 2, "--noise", "--precision", "float64", "--lr", 0.1)


def noise(path: Path) -> Any:
    return tvlars_probe.open_run(path).noise().set_index(["step", "scope"]).sort_index()


def test_four_pieces_are_four_pieces_however_they_are_spread(tmp_path: Path) -> None:
    for ranks, piece in ((1, 16), (2, 16), (4, 64)):
        cli_on_ranks(ranks, *WORDS, "--micro-batch", piece, "--run-dir", tmp_path / str(ranks), cwd=tmp_path)
    one = noise(tmp_path / "1")
    assert {*one.index.get_level_values("step")} == {*range(6)}
    assert (one.pieces == 4).all()
    assert sorted({*one.samples}) == [52, 64]
    for ranks in (2, 4):
        found = noise(tmp_path / str(ranks))
        assert (found.index == one.index).all()
        for column in ("pieces", "piece_size", "samples"):
            assert (found[column] == one[column]).all()
        np.testing.assert_allclose(found.noise_trace, one.noise_trace, rtol=1e-9)
        np.testing.assert_allclose(found.gradient_square, one.gradient_square, rtol=1e-6, atol=1e-9)


def test_a_rank_without_samples_is_no_piece(tmp_path: Path) -> None:
    """In a last batch of one sample the second rank has none."""
    words = ("train", "--limit", 65, "--batch-size", 64, "--epochs", 1, "--noise", "--lr", 0.1, "--micro-batch", 16)
    cli_on_ranks(2, *words, "--run-dir", tmp_path / "r", cwd=tmp_path)
    assert {*noise(tmp_path / "r").index.get_level_values("step")} == {0}
    (note,) = tvlars_probe.open_run(tmp_path / "r").manifest.notes
    assert "isn't known of 1 recorded step(s): they had one piece only" in note


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sync_bn": True}, "--noise can't be used with --sync-bn"),
        ({"mode": "bt"}, "--noise can't be used with --mode bt"),
    ],
)
def test_what_joins_the_samples_of_ranks_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(recording=RecordConfig(noise=True), **settings)


def test_one_piece_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    from tvlars_probe.data.registry import DataConfig
    from tvlars_probe.runners.train import train

    config = TrainConfig(data=DataConfig(limit=180), recording=RecordConfig(noise=True), batch_size=64)
    with pytest.raises(UserError, match=r"--micro-batch 16 or several ranks"):
        train(config, tmp_path / "r")
    assert not (tmp_path / "r").exists()
