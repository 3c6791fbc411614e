"""Steps are seen whole: those of wrappers without torch's hooks, and compiled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from pytorch_optimizer import Lookahead as KozistrLookahead
from pytorch_optimizer import OrthoGrad
from timm.optim.lookahead import Lookahead
from torch.optim import Optimizer

import tvlars_probe
from tests.probes.small_loop import batch, net, observed
from tvlars_probe.errors import UserError
from tvlars_probe.probes.events.around_step import around_step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLUMNS = ["weight_norm", "grad_norm", "weight_grad_dot", "update_norm"]


def sgd(params: Any) -> Optimizer:
    return torch.optim.SGD(params, 0.1, momentum=0.9)


class Wrapper(Optimizer):
    """Delegates, and never calls its parent's constructor; after each second step it moves the weights half back."""

    def __init__(self, inner: Optimizer) -> None:
        self.optimizer, self.steps = inner, 0

    param_groups: Any = property(lambda self: self.optimizer.param_groups)
    state: Any = property(lambda self: self.optimizer.state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        params = self.param_groups[0]["params"]
        before = [p.detach().clone() for p in params]
        loss = self.optimizer.step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            with torch.no_grad():
                torch._foreach_lerp_(params, before, 0.5)
        return loss


class Bare(Optimizer):
    """Its own arithmetic, and a constructor that never calls its parent's."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params), "lr": 0.1}]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in self.param_groups[0]["params"]:
            p -= 0.1 * p.grad
        return loss


HOOKLESS: dict[str, Callable[[Any], Any]] = {
    "wrapper": lambda params: Wrapper(sgd(params)),
    "wrapper in a wrapper": lambda params: Wrapper(Wrapper(sgd(params))),
    "timm's Lookahead": lambda params: Lookahead(sgd(params), k=2),
    "pytorch_optimizer's Lookahead": lambda params: KozistrLookahead(sgd(params), k=2),
    "pytorch_optimizer's OrthoGrad": lambda params: OrthoGrad(sgd(params)),
    "bare": Bare,
}


@pytest.mark.filterwarnings("ignore:what .* does to a rate isn't known:UserWarning")
@pytest.mark.parametrize("make", HOOKLESS.values(), ids=HOOKLESS)
def test_a_step_without_torchs_hooks_is_recorded_whole(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    """‖Δw‖ is that of all that the outer step did, as measured in float64 around it."""
    model = net()
    optimizer = make(model.parameters())
    optimizer.zero_grad = lambda set_to_none=True: model.zero_grad(set_to_none)
    before = vars(optimizer).copy()
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        truth = []
        for step in range(4):
            truth.append(observed(model, optimizer, step))
            rec.log(loss=1.0)
    rows = tvlars_probe.open_run(tmp_path / "run").layers()
    assert len(rows) == 4 * len(truth[0])
    for row in rows.itertuples():
        true = truth[row.step][str(row.parameter)]
        assert [getattr(row, c) for c in COLUMNS] == pytest.approx([true[c] for c in COLUMNS], rel=1e-4, abs=1e-7)
    assert vars(optimizer).keys() == before.keys()
    assert "step" not in vars(optimizer)


class Accumulating(Wrapper):
    """Makes an update in every third call."""

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return self.optimizer.step(closure) if self.steps % 3 == 0 else None


class Hooked(Optimizer):
    """The same with hooks of its own: its constructor has called torch's."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups, self.steps = inner, inner.param_groups, 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return self.inner.step(closure) if self.steps % 3 == 0 else None


class SAM(Hooked):
    """As its users have it: the gradient is taken at weights that are moved and put back."""

    @torch.no_grad()
    def first_step(self) -> None:
        self.kept = [p.detach().clone() for p in self.param_groups[0]["params"]]
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=0.5)

    @torch.no_grad()
    def second_step(self) -> None:
        for p, kept in zip(self.param_groups[0]["params"], self.kept, strict=True):
            p.copy_(kept)
        self.inner.step()

    def step(self, closure: Any = None) -> Any:
        self.first_step()
        with torch.enable_grad():
            loss = closure()
        self.second_step()
        return loss


@pytest.mark.filterwarnings("ignore:what .* does to a rate isn't known:UserWarning")
@pytest.mark.parametrize("kind", [Accumulating, Hooked])
def test_a_wrapper_that_leaves_steps_out_has_rows_of_updates_alone(kind: Any, tmp_path: Path) -> None:
    model = net()
    optimizer = kind(sgd(model.parameters()))
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        for step in range(6):
            model(batch(step)[0]).sum().backward()
            optimizer.step()
            rec.log(loss=float(step))
    assert tvlars_probe.open_run(tmp_path / "run").steps().loss.tolist() == [2.0, 5.0]


@pytest.mark.filterwarnings("ignore:what .* does to a rate isn't known:UserWarning")
@pytest.mark.parametrize("form", ["closure", "two calls"])
def test_weights_that_a_wrapper_moves_and_puts_back_are_read_where_they_were(form: str, tmp_path: Path) -> None:
    model = net()
    optimizer = SAM(sgd(model.parameters()))
    truth = []
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        for step in range(3):
            (x, y), before = batch(step), [p.detach().double().clone() for p in model.parameters()]

            def closure(x: Any = x, y: Any = y) -> Any:
                model.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            closure()
            if form == "closure":
                optimizer.step(closure)
            else:
                optimizer.first_step()
                closure()
                optimizer.second_step()
            rec.log()
            for p, w in zip(model.parameters(), before, strict=True):
                g = p.grad.double()
                figures = w.norm(), g.norm(), (w * g).sum(), (p.detach().double() - w).norm()
                truth.append([float(figure) for figure in figures])
    rows = tvlars_probe.open_run(tmp_path / "run").layers()[COLUMNS].to_numpy().tolist()
    assert len(rows) == len(truth)
    for row, true in zip(rows, truth, strict=True):
        assert row == pytest.approx(true, rel=1e-4, abs=1e-6)


@pytest.mark.filterwarnings("ignore:what .* does to a rate isn't known:UserWarning")
@pytest.mark.parametrize("kind", [Bare, torch.optim.SGD], ids=["bare", "hooked"])
def test_an_optimizer_of_some_parameters_that_holds_one_of_the_others_is_recorded_with_it(
    kind: type[Any], tmp_path: Path
) -> None:
    class Both(kind):  # type: ignore[misc]
        def step(self, closure: Any = None) -> None:
            super().step()
            self.other.step()

    model = net()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is are] for are in (True, False))
    optimizer = Both(matrices)
    optimizer.other = sgd(vectors)
    optimizer.zero_grad = lambda set_to_none=True: model.zero_grad(set_to_none)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        truth = []
        for step in range(3):
            truth.append(observed(model, optimizer, step))
            rec.log(loss=1.0)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert (len(run.steps()), run.manifest.notes[1:]) == (3, [])
    rows = run.layers()
    assert len(rows) == 3 * len(truth[0])
    for row in rows.itertuples():
        true = truth[row.step][str(row.parameter)]
        assert [getattr(row, c) for c in COLUMNS] == pytest.approx([true[c] for c in COLUMNS], rel=1e-4, abs=1e-7)


def test_an_inner_step_after_one_of_a_wrapper_with_hooks_that_raised_is_told() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = SAM(sgd([p]))
    calls, _ = watched(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert calls == []
    optimizer.inner.step()
    optimizer.step(lambda: 1.0)
    assert calls == ["before", "after"] * 2


def watched(optimizer: Any) -> tuple[list[str], list[Any]]:
    calls: list[str] = []
    return calls, around_step(optimizer, lambda: calls.append("before"), lambda: calls.append("after"))


@pytest.mark.parametrize("make", [HOOKLESS["wrapper"], Bare], ids=["wrapper", "bare"])
def test_a_closure_comes_before_and_a_removed_watch_is_silent(make: Callable[[Any], Any]) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = make([p])
    calls, handles = watched(optimizer)
    assert optimizer.step(lambda: calls.append("closure") or 3.0) == 3.0
    assert calls == ["closure", "before", "after"]
    kept = optimizer.step  # somebody may have kept it, a schedule for instance
    for handle in handles:
        handle.remove()
    kept()
    optimizer.step()
    assert calls == ["closure", "before", "after"]


def test_an_inner_step_alone_and_one_that_raised_are_told_right() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Wrapper(sgd([p]))
    calls, _ = watched(optimizer)
    optimizer.optimizer.step()
    assert calls == ["before", "after"]
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    optimizer.step()
    assert calls == ["before", "after"] * 2


def test_a_step_that_was_put_on_the_object_is_put_back() -> None:
    optimizer = Wrapper(sgd([torch.nn.Parameter(torch.ones(2))]))
    mine = optimizer.step
    optimizer.step = mine  # type: ignore[method-assign]
    for handle in watched(optimizer)[1]:
        handle.remove()
    assert vars(optimizer)["step"] == mine


def test_a_step_that_cannot_be_replaced_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    class Fixed(Wrapper):
        step: Any = property(lambda self: self.optimizer.step)

    model = net()
    inner = sgd(model.parameters())
    with (
        pytest.warns(UserWarning, match="what Fixed does"),
        pytest.raises(UserError, match="the step of Fixed can't be watched"),
    ):
        tvlars_probe.record(model, Fixed(inner), tmp_path / "run").__enter__()
    assert not inner._optimizer_step_pre_hooks
    assert not inner._optimizer_step_post_hooks
    assert [*tmp_path.iterdir()] == []


COMPILED: dict[str, Callable[[Any], Optimizer]] = {
    "lars": lambda params: tvlars_probe.LARS(params, 0.5, foreach=True),
    "tvlars": lambda params: tvlars_probe.TVLARS(params, 0.5, lmbda=0.1),
    "lamb": lambda params: tvlars_probe.LAMB(params, 0.01, foreach=True),
    "sgd": sgd,
    "adamw": lambda params: torch.optim.AdamW(params, 0.01),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("form", ["kept before", "kept within", "put on the object", "with the loss"])
@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
def test_a_compiled_step_has_the_rows_of_an_uncompiled_one(
    tmp_path: Path, make: Callable[[Any], Optimizer], form: str
) -> None:
    """Backend "eager" makes the same graphs as others, and calls torch's own kernels."""
    torch._dynamo.reset()
    frames = {}
    for name in ("compiled", "plain"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        optimizer = make(model.parameters())

        def whole(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        compiled = torch.compile(optimizer.step, backend="eager") if name == "compiled" else optimizer.step
        if name == "compiled" and form == "put on the object":
            optimizer.step = compiled  # type: ignore[method-assign]
        if name == "compiled" and form == "with the loss":
            whole = torch.compile(whole, backend="eager")
        with tvlars_probe.record(model, optimizer, tmp_path / name) as rec:
            if name == "compiled" and form == "kept within":
                compiled = torch.compile(optimizer.step, backend="eager")
            for step in range(3):
                optimizer.zero_grad()
                if form == "with the loss":
                    loss = whole(batch(step)[0])
                else:
                    loss = model(batch(step)[0]).square().mean()
                    loss.backward()
                    compiled() if form.startswith("kept") else optimizer.step()
                rec.log(loss=loss)
        frames[name] = tvlars_probe.open_run(tmp_path / name).layers().drop(columns="run")
    assert len(frames["plain"]) == 3 * 4
    numbers = [c for c in frames["plain"].columns if frames["plain"][c].dtype.kind == "f"]
    left, right = (torch.tensor(frames[name][numbers].to_numpy()).double() for name in ("compiled", "plain"))
    # torch's compiled AdamW rounds in another order.
    assert torch.allclose(left, right, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_a_step_that_is_captured_in_a_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer, told = torch.optim.SGD([p], 0.1), []
    handles = around_step(optimizer, lambda: told.append("before"), lambda: told.append("after"))
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    with pytest.raises(UserError, match="captured in a CUDA graph"):
        optimizer.step()
    monkeypatch.undo()
    assert (p == 1).all()
    optimizer.step()
    assert told == ["before", "after"]
    for handle in handles:
        handle.remove()
