from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles.optimizers import lars_ratio, lars_step
from tvlars_probe import TVLARS
from tvlars_probe.optimizers.phi import phi

GENERAL = {"lmbda": 0.3, "alpha": 0.5, "delay": 4.0, "gamma_min": 0.05}


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
def test_the_general_form_is_the_papers(foreach: bool) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 5)) * 4  # norms on both sides of the cap
    p, mu = nn.Parameter(torch.tensor(w)), np.zeros_like(w)
    optimizer = TVLARS([p], 0.5, 0.01, 0.9, 0.1, foreach=foreach, **GENERAL)
    for t in range(1, 12):
        g = rng.normal(size=w.shape) * (0.1 if t % 2 else 10.0)
        factor = 1 / (0.5 + math.exp(0.3 * (t - 4))) + 0.05
        ratio = lars_ratio(w, g, eta=0.1, decay=0.01, factor=factor, cap=10.0)
        w = lars_step(w, g, mu, lr=0.5, momentum=0.9, decay=0.01, ratio=ratio)
        p.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-11)
        assert optimizer.last_step is not None
        assert optimizer.last_step.phi.item() == pytest.approx(factor, rel=1e-12)
        assert optimizer.last_step.trust_ratio.item() == pytest.approx(ratio, rel=1e-11)


def test_phi_takes_its_limits() -> None:
    settings: dict[str, Any] = {"lmbda": 0.5, "alpha": 0.1, "delay": 100.0, "gamma_min": 0.2}
    assert phi(0, **settings) == pytest.approx(1 / 0.1 + 0.2)
    assert phi(100, **settings) == pytest.approx(1 / 1.1 + 0.2)
    assert phi(10**12, **settings) == 0.2
    assert phi(1, lmbda=0.01) == pytest.approx(1 / (0.1 + math.exp(0.01)), rel=1e-15)


def test_phi_never_overflows() -> None:
    values = [phi(t, lmbda=0.05) for t in range(0, 200_000, 997)]
    assert all(math.isfinite(v) for v in values)
    assert all(a >= b for a, b in itertools.pairwise(values))


def test_the_count_of_updates_is_saved_and_shared() -> None:
    p, late = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = TVLARS([p], 1.0, lmbda=0.1)
    for _ in range(5):
        p.grad = torch.ones_like(p)
        optimizer.step()
    state = optimizer.state_dict()
    other = TVLARS([nn.Parameter(torch.ones(2, 2))], 1.0, lmbda=0.1)
    other.load_state_dict(state)
    optimizer.add_param_group({"params": [late]})
    for o in (optimizer, other):
        for group in o.param_groups:
            for q in group["params"]:
                q.grad = torch.ones_like(q)
        o.step()
        assert o.last_step is not None
        assert set(o.last_step.phi.tolist()) == {phi(6, lmbda=0.1)}


def test_phi_is_1_where_it_is_not_applied() -> None:
    params = [nn.Parameter(t) for t in (torch.ones(2, 2), torch.ones(2), torch.zeros(2, 2))]
    for p in params:
        p.grad = torch.ones_like(p)
    for foreach in (False, True):
        optimizer = TVLARS(params, 0.0, lars_adaptation_filter=True, foreach=foreach)
        optimizer.step()
        assert optimizer.last_step is not None
        assert optimizer.last_step.phi.tolist() == [pytest.approx(phi(1, lmbda=0.001)), 1.0, 1.0]


@pytest.mark.parametrize("name", ["lmbda", "alpha", "gamma_min"])
def test_its_own_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"invalid {name}: -1.0"):
        TVLARS([nn.Parameter(torch.ones(2))], 1.0, **{name: -1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
def test_a_count_on_the_device_gives_the_same_steps(foreach: bool) -> None:
    rng, each = np.random.default_rng(1), []
    w, grads = torch.tensor(rng.normal(size=(8, 5))), torch.tensor(rng.normal(size=(12, 8, 5)))
    for capturable in (False, True):
        p = nn.Parameter(w.clone())
        optimizer = TVLARS([p], 0.5, foreach=foreach, capturable=capturable, **GENERAL)
        for g in grads:
            p.grad = g
            optimizer.step()
        assert optimizer.last_step is not None
        each.append((p.detach(), optimizer.last_step.phi.item()))
    torch.testing.assert_close(each[0], each[1], rtol=1e-14, atol=0)
    count = optimizer.param_groups[0]["num_updates"]
    assert isinstance(count, torch.Tensor)
    assert count.dtype == torch.int64
    assert count.item() == 12


def test_a_late_phi_on_the_device_is_its_lower_bound() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = TVLARS([p], 0.0, lmbda=1.0, gamma_min=0.25, foreach=True, capturable=True)
    optimizer.param_groups[0]["num_updates"].fill_(10**9)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.last_step is not None
    assert optimizer.last_step.phi.item() == 0.25


@pytest.mark.parametrize("capturable", [False, True])
def test_a_count_is_loaded_to_where_this_optimizer_keeps_it(capturable: bool) -> None:
    source = TVLARS([nn.Parameter(torch.ones(2, 2))], 1.0, capturable=not capturable)
    source.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    for _ in range(3):
        source.step()
    state = source.state_dict()
    state["param_groups"][0]["capturable"] = capturable
    target = TVLARS([nn.Parameter(torch.ones(2, 2))], 1.0, capturable=capturable)
    target.load_state_dict(state)
    counts = [group["num_updates"] for group in target.param_groups]
    assert [isinstance(count, torch.Tensor) for count in counts] == [capturable]
    assert [int(count) for count in counts] == [3]
    target.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    for p in (q for group in target.param_groups for q in group["params"]):
        p.grad = torch.ones_like(p)
    target.step()
    assert [int(group["num_updates"]) for group in target.param_groups] == [4, 4]


def test_a_capture_that_would_freeze_phi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones_like(p)
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    optimizer = TVLARS([p], 1.0)
    with pytest.raises(RuntimeError, match=r"capturable=True"):
        optimizer.step()
    assert optimizer.param_groups[0]["num_updates"] == 0
    assert (p == 1).all()
    TVLARS([p], 1.0, capturable=True).step()


def test_an_older_versions_pickle_counts_in_python() -> None:
    source = TVLARS([nn.Parameter(torch.ones(2, 2))], 1.0)
    state = source.__getstate__()
    del state["defaults"]["capturable"]
    for group in state["param_groups"]:
        del group["capturable"]
    restored = TVLARS.__new__(TVLARS)
    restored.__setstate__(state)
    restored.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    restored.step()
    assert restored.param_groups[0]["num_updates"] == 1
