from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def probe(model: nn.Module, **options: Any) -> tvlars_probe.NoiseProbe:
    return tvlars_probe.NoiseProbe(model, F.cross_entropy, batch(1000), **{"every": 3, **options})


@pytest.mark.parametrize("options", [{}, {"bn_mode": "train", "piece": 4}, {"eigenvectors": 1}], ids=str)
def test_a_probed_run_is_bit_identical_to_one_without(tmp_path: Path, options: dict[str, Any]) -> None:
    weights, streams = [], []
    for probed in (False, True):
        model = net()
        optimizer = OPTIMIZERS["lars"](model.parameters())
        with tvlars_probe.record(
            model, optimizer, tmp_path / f"{probed}", probes=[probe(model, **options)] * probed
        ) as rec:
            loop(model, optimizer, range(8), rec)
        weights.append([*model.state_dict().values()])
        streams.append(torch.rand(3))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert torch.equal(*streams)
    assert len(tvlars_probe.open_run(tmp_path / "True").noise()) > 0


def test_row_t_is_the_noise_before_update_t(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    expected = {}
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model, sample_id="some")]) as rec:
        for step in range(5):
            found = tvlars_probe.gradient_noise(model, F.cross_entropy, batch(1000), bn_mode="frozen-batch")
            expected[step] = found.whole
            loop(model, optimizer, range(step, step + 1), rec)
    rows = tvlars_probe.open_run(tmp_path / "run").noise()
    whole = rows[rows.scope_kind == "all"].set_index("step")
    assert whole.index.tolist() == [0, 3]
    for step in (0, 3):
        assert whole.noise_trace[step] == expected[step].noise_trace
        assert whole.gradient_square[step] == expected[step].gradient_square
    assert (rows.source == "probe").all()
    assert (rows.sample_id == "some").all()
    assert (rows.bn_mode == "frozen-batch").all()
    assert rows.measurement_id.nunique() == 2


def test_a_resumed_probe_goes_on_at_its_steps(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model)]) as rec:
        loop(model, optimizer, range(4), rec)
        state = rec.state_dict()
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model)], resume=state) as rec:
        loop(model, optimizer, range(4, 7), rec)
    rows = tvlars_probe.open_run(tmp_path / "run").noise()
    assert rows[rows.scope_kind == "all"].step.tolist() == [0, 3, 6]


def test_a_loss_that_is_not_finite_gives_no_rows() -> None:
    model = net()
    one = probe(model)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert one.measure(0, "train", None) == {}


def test_what_is_asked_wrongly_is_refused_before_training() -> None:
    with pytest.raises(UserError, match="a probe of no loss"):
        tvlars_probe.NoiseProbe(net(), None, batch(1000))
    with pytest.raises(UserError, match="BatchNorm in train mode joins the samples"):
        probe(net(), bn_mode="train")
