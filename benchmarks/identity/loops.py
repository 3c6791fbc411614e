"""What is recorded: loops of other people."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from benchmarks.identity.hashes import CLOCK_KEYS, content_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.identity.hashes import Record


def loops(record: Record) -> None:
    """Loops of other people: torch's optimizers, several at once, closures, parameters that come later."""
    import torch
    from torch import optim

    import tvlars_probe

    made: dict[str, Callable[[Any], Any]] = {
        "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=1e-3),
        "sgd-nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "adam": lambda p: optim.Adam(p, lr=1e-2, weight_decay=0.01, amsgrad=True),
        "adamw": lambda p: optim.AdamW(p, lr=1e-2),
        "adagrad": lambda p: optim.Adagrad(p, lr=1e-2, lr_decay=0.01),
        "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.9),
        "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
        "adamax": lambda p: optim.Adamax(p, lr=1e-2),
        "nadam": lambda p: optim.NAdam(p, lr=1e-3),
        "radam": lambda p: optim.RAdam(p, lr=1e-3),
        "asgd": lambda p: optim.ASGD(p, lr=1e-2),
        "rprop": lambda p: optim.Rprop(p, lr=1e-3),
        "adafactor": lambda p: optim.Adafactor(p, lr=1e-2),
        "lars": lambda p: tvlars_probe.LARS(p, lr=2.0, lars_adaptation_filter=True, weight_decay_filter=True),
        "lars-foreach": lambda p: tvlars_probe.LARS(p, lr=2.0, foreach=True, trust_clip=True),
        "tvlars": lambda p: tvlars_probe.TVLARS(p, lr=2.0, lmbda=0.1, foreach=True),
        "lamb": lambda p: tvlars_probe.LAMB(p, lr=0.01, weight_decay=0.01),
        "lamb-foreach": lambda p: tvlars_probe.LAMB(p, lr=0.01, foreach=True, trust_clip=True),
    }
    for name, build in made.items():
        model = _model()
        _loop(record, f"loop-{name}", model, [build(model.parameters())], closure=name == "sgd")
    model = _model()
    _loop(record, "loop-lbfgs", model, [optim.LBFGS(model.parameters(), lr=0.1)], closure=True)
    model = _model()
    both = [optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9), tvlars_probe.LARS(model[2].parameters(), lr=1.0)]
    _loop(record, "loop-two", model, both)
    model = _model()
    late = tvlars_probe.TVLARS(model[0].parameters(), lr=1.0, lmbda=0.05)
    _loop(record, "loop-late", model, [late], late=lambda: late.add_param_group({"params": [*model[2].parameters()]}))
    half = _model().to(torch.bfloat16)
    _loop(record, "loop-bfloat16", half, [optim.SGD(half.parameters(), lr=0.1, momentum=0.9)])


def _model() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))


def _loop(
    record: Record, name: str, model: Any, optimizers: list[Any], *, closure: bool = False, late: Any = None
) -> None:
    import torch

    import tvlars_probe

    x, y = torch.randn(64, 20), torch.randint(5, (64,))
    dtype = next(model.parameters()).dtype

    def loss_of(*_: Any) -> Any:
        for one in optimizers:
            one.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x.to(dtype)).float(), y)
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tvlars_probe.record(model, optimizers, record.folder / name, total_steps=8) as rec:
            for step in range(8):
                if step == 4 and late is not None:
                    late()
                loss = loss_of()
                for one in optimizers:
                    one.step(loss_of) if closure else one.step()
                rec.log(loss=loss, samples=64)
                if step == 3:
                    state = rec.state_dict()
            rec.log_epoch(epoch=0, test_acc1=50.0)
    record.add(f"{name}/state", repr({k: v for k, v in state.items() if k not in CLOCK_KEYS}))
    rates = tvlars_probe.applied_rates(model, optimizers)
    for key, value in rates.rates.items():
        record.add(f"{name}/applied/{key}", content_of(value))
    record.add(f"{name}/applied", repr((sorted(rates.decay.items()), rates.limit)))
    record.run(name)
