"""Layers that can't be taken apart are found out however few samples there are; settings that are no numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import spectral_norm

import tvlars_probe
from tests.noise.test_gradient_noise import assert_equal, data, looped, model_of
from tvlars_probe.errors import UserError


class PositionsFirst(nn.Module):
    """Its layer sees as many positions as there are samples, and in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.stack([x, x * x]))).mean(0))


@pytest.mark.parametrize("name", ["by hand", "positions first"])
def test_two_samples_are_taken_apart_rightly(name: str) -> None:
    torch.manual_seed(0)
    model = model_of(name) if name == "by hand" else PositionsFirst().double()
    x, y = data(2)
    assert_equal(tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y)), looped(model, x, y))


@pytest.mark.parametrize("most", [1, 2])
def test_chunks_of_two_samples_are_taken_apart_rightly(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.noise.passes.MOST_AT_ONCE", most)
    model, (x, y) = model_of("by hand"), data(6)
    assert_equal(tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y)), looped(model, x, y))


def test_first_samples_of_no_weight_hide_nothing() -> None:
    model, (x, y) = model_of("by hand"), data()
    y[:3] = -100

    def counted(batch: tuple[Tensor, ...]) -> int:
        return int((batch[1] >= 0).sum())

    found = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y), weights=counted)
    rows = []
    for i in range(len(x)):
        each = torch.autograd.grad(
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1], reduction="sum"), [*model.parameters()]
        )
        rows.append(torch.cat([g.flatten() for g in each]) * len(x) / (len(x) - 3))
    assert found.noise_trace == pytest.approx(float(torch.stack(rows).var(0).sum()), rel=1e-9)


def test_in_half_precision_a_weight_used_by_hand_is_found_out() -> None:
    class TiedByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.mix = nn.Embedding(12, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.mix(self.words(x))).mean(1), self.words.weight)

    torch.manual_seed(0)
    model, x, y = TiedByHand(), torch.randint(12, (60, 7)), torch.randint(12, (60,))
    model.bfloat16().float()
    exact = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y)).noise_trace
    half = tvlars_probe.gradient_noise(model.bfloat16(), F.cross_entropy, (x, y)).noise_trace
    assert half == pytest.approx(exact, rel=0.005)  # without the second use it is 4 % less


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_normed_weight_of_older_code_is_no_case_of_refusal() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)).double(), data()
    found = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y))
    assert_equal(found, looped(model, x, y))
    assert not found.notes


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"piece": 2.5}, r"piece=2.5: give a number of samples, a whole one of 1 or more, or None"),
        ({"memory_budget": "1G"}, r"memory_budget='1G': give a number of bytes"),
        ({"eigenvectors": "3"}, r"eigenvectors='3': give their number"),
        ({"eigenvectors": -1}, r"eigenvectors=-1: give their number"),
        ({"piece": True}, r"piece=True: give a number of samples"),
        ({"piece": np.int64(0)}, r"piece=.*0.*: give a number of samples"),
        ({"memory_budget": 1e9}, r"memory_budget=1000000000.0: give a number of bytes"),
        ({"seed": 0.5}, r"seed=0.5: give a seed, a whole one of 0 or more"),
        ({"seed": -1}, r"seed=-1: give a seed"),
        ({"eigenvectors": torch.ones(2, 38, dtype=torch.float64)}, r"the 2 eigenvectors depend on one another"),
        ({"eigenvectors": torch.full((1, 38), torch.nan)}, "must be real and finite"),
    ],
    ids=str,
)
def test_settings_that_tell_nothing_are_refused(asked: dict[str, Any], told: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    size = sum(p.numel() for p in model.parameters())
    if isinstance(vectors := asked.get("eigenvectors"), Tensor):
        asked = {"eigenvectors": vectors[:, :1].expand(-1, size)}
    with pytest.raises(UserError, match=told):
        tvlars_probe.gradient_noise(model, F.cross_entropy, data(), **asked)


def test_numpys_whole_numbers_are_numbers() -> None:
    model, given = model_of("dense"), data()
    asked = {"piece": np.int64(2), "memory_budget": np.int64(1 << 30), "eigenvectors": np.int32(1), "seed": np.int64(3)}
    found = tvlars_probe.gradient_noise(model, F.cross_entropy, given, **asked)
    plain = {name: int(value) for name, value in asked.items()}
    same = tvlars_probe.gradient_noise(model, F.cross_entropy, given, **plain)
    assert (found.whole.piece_size, found.noise_trace) == (2.0, same.noise_trace)
    assert found.whole.top_share == same.whole.top_share
    probe = tvlars_probe.NoiseProbe(model, F.cross_entropy, given, every=np.int64(5), **asked)
    assert [step for step in range(11) if probe.due(step)] == [0, 5, 10]


@pytest.mark.parametrize("every", [2.5, True, 0, -1, None, "often", "2.5"], ids=repr)
def test_a_probe_takes_a_whole_number_of_steps(every: Any) -> None:
    with pytest.raises(UserError, match=r"every=.*: give 'log' or a number of steps, a whole one of 1 or more"):
        tvlars_probe.NoiseProbe(model_of("dense"), F.cross_entropy, data(), every=every)


def test_a_probe_refuses_them_before_training() -> None:
    with pytest.raises(UserError, match="eigenvectors=True: give their number"):
        tvlars_probe.NoiseProbe(model_of("dense"), F.cross_entropy, data(), eigenvectors=True)
    with pytest.raises(UserError, match="piece='4': give a number of samples"):
        tvlars_probe.NoiseProbe(model_of("dense"), F.cross_entropy, data(), piece="4")  # type: ignore[arg-type]
