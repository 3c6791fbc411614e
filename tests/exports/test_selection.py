"""What is sent: within the budget, the trace's own values, under names that stay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.exports.fakes import layers, rows, steps
from tvlars_probe.exports.exporter import Alert, StepScalars
from tvlars_probe.exports.selection import Selection


def values(chosen: list[Any]) -> dict[tuple[int, str], float]:
    return {(p.step, name): value for p in chosen if isinstance(p, StepScalars) for name, value in p.values.items()}


def test_a_small_flush_is_sent_whole() -> None:
    selection = Selection()
    found = values(selection.choose({"steps": steps(0, 3, lr=[0.1, 0.2, 0.3]), "layers": layers([0, 1, 2], 2)}))
    assert [found[step, "loss/train"] for step in range(3)] == [1, 1 / 2, 1 / 3]
    assert [found[step, "lr/group0"] for step in range(3)] == [0.1, 0.2, 0.3]
    assert found[2, "trust_ratio/layer1"] == 0.5
    assert found[2, "l2_norm/grad/layer0"] == 2
    assert found[2, "l2_norm_ratio/update_param/layer0"] == 0.25
    assert found[2, "quantiles/l2_norm/param/q50"] == 4
    assert selection.left_out is None


@pytest.mark.parametrize("budget", [1, 7, 40, 200, 1000])
def test_a_flush_stays_in_its_budget(budget: int) -> None:
    selection, random = Selection(budget=budget), np.random.default_rng(0)
    for flush in range(6):
        first = 50 * flush
        tables = {
            "steps": steps(first, 50, lr=np.full(50, 0.1), grad_norm=random.random(50)),
            "layers": layers(range(first, first + 50), 300, grad_norm=random.lognormal(size=(50, 300))),
            "epochs": rows("epochs", {"step": [first + 50], "epoch": [flush], "test_acc1": [50.0]}),
        }
        found = values(selection.choose(tables))
        assert len(found) <= budget
        assert (first + 49, "loss/train") in found
    assert selection.left_out is not None
    assert "--layers GLOB" in selection.left_out


def test_the_last_step_and_the_losss_extremes_are_among_the_thinned_ones() -> None:
    loss = np.ones(500)
    loss[123], loss[321], loss[77] = 9.0, 0.1, np.inf
    found = values(Selection(budget=20).choose({"steps": rows("steps", {"step": np.arange(500), "loss": loss})}))
    sent = sorted(step for step, name in found if name == "loss/train")
    assert {77, 123, 321, 499} <= {*sent}
    assert len(sent) == 20
    assert max(np.diff(sent)) <= 63  # the others are spread evenly
    assert found[77, "loss/train"] == math.inf


def test_a_nan_is_sent_and_a_null_is_not() -> None:
    grad = np.array([[2.0, np.nan]], np.float32)
    tables = {
        "steps": rows("steps", {"step": [0], "loss": [math.nan], "lr": [None]}),
        "layers": layers([0], 2, grad_norm=grad, update_norm=None),
    }
    found = values(Selection().choose(tables))
    assert math.isnan(found[0, "loss/train"])
    assert math.isnan(found[0, "l2_norm/grad/layer1"])
    assert (0, "lr/group0") not in found
    assert found[0, "quantiles/l2_norm/grad/max"] == 2
    assert not any("update" in name for _, name in found)


def test_quantiles_are_of_the_latest_step_that_most_tensors_have_a_figure_in() -> None:
    table = layers([0, 1], 3, update_norm=np.array([[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]))
    update = table["update_norm"].to_pylist()
    update[4:] = [None, None]
    place = table.schema.get_field_index("update_norm")
    found = values(
        Selection().choose({"layers": table.set_column(place, table.field(place), pa.array(update, pa.float32()))})
    )
    assert found[0, "quantiles/l2_norm_ratio/update_param/max"] == 0.75
    assert (1, "quantiles/l2_norm_ratio/update_param/max") not in found
    assert (1, "quantiles/l2_norm/grad/max") in found


def test_quantiles_are_numpys() -> None:
    random = np.random.default_rng(1)
    grad = random.lognormal(size=(1, 101)).astype(np.float32)
    found = values(Selection().choose({"layers": layers([4], 101, grad_norm=grad)}))
    for name, share in (("min", 0), ("q05", 0.05), ("q95", 0.95), ("max", 1)):
        assert found[4, f"quantiles/l2_norm/grad/{name}"] == pytest.approx(np.quantile(grad.astype(float), share))


def test_layers_asked_for_are_sent_whole_beyond_the_budget() -> None:
    selection = Selection(layers=["layer7", "*99"], budget=10)
    found = values(selection.choose({"layers": layers(range(40), 200)}))
    asked = {name for _, name in found if name.endswith(("/layer7", "/layer99", "/layer199"))}
    assert {"trust_ratio/layer7", "l2_norm/update/layer99", "l2_norm_ratio/update_param/layer199"} <= asked
    assert all((step, "l2_norm/grad/layer7") in found for step in range(40))
    assert len(found) <= 3 * 5 * 40 + 10


def test_a_layer_that_jumps_is_sent_and_goes_on_being_sent() -> None:
    selection, random = Selection(), np.random.default_rng(2)
    sent = []
    for flush in range(8):
        grad = random.lognormal(sigma=0.05, size=(10, 1000))
        if flush == 4:
            grad[-1, 555] *= 1000
        found = values(selection.choose({"layers": layers(range(10 * flush, 10 * flush + 10), 1000, grad_norm=grad)}))
        sent.append({name for _, name in found if name.startswith("l2_norm/grad/")})
    assert ["l2_norm/grad/layer555" in names for names in sent] == [False] * 4 + [True] * 4
    assert len(set.union(*sent)) <= 21  # noise alone moves none


def test_ten_thousand_tensors_have_a_bounded_number_of_names() -> None:
    selection, random, seen = Selection(), np.random.default_rng(3), set()
    for flush in range(40):
        # Wild on purpose: each figure is off its median by large factors in every step.
        wild = {name: random.lognormal(sigma=3, size=(2, 10_000)) for name in ("trust_ratio", "grad_norm")}
        tables = {"steps": steps(2 * flush, 2), "layers": layers([2 * flush, 2 * flush + 1], 10_000, **wild)}
        found = values(selection.choose(tables))
        assert len(found) <= 200
        seen |= {name for _, name in found}
    assert len(seen) <= 1000


def test_findings_become_alerts_after_their_step() -> None:
    table = rows(
        "findings",
        {"step": [1, 2], "rule": ["loss_spike", "non_finite"], "parameter": [None, "a"], "value": [3.0, None],
         "threshold": [2.0, None], "text": ["the loss rose", "a isn't finite"]},
    )  # fmt: skip
    chosen = Selection().choose({"steps": steps(0, 4), "findings": table})
    assert [item for item in chosen if isinstance(item, Alert)] == [
        Alert(1, "loss_spike", None, 3.0, 2.0, "the loss rose"),
        Alert(2, "non_finite", "a", None, None, "a isn't finite"),
    ]
    assert [item.step for item in chosen] == [0, 1, 1, 2, 2, 3]


def test_too_many_findings_are_cut_and_said() -> None:
    table = rows("findings", {"step": range(100), "rule": ["r"] * 100, "text": ["t"] * 100})
    selection = Selection()
    assert len(selection.choose({"findings": table})) == 20
    assert selection.left_out == "left out: 80 findings (they are in the trace)"


def test_epochs_and_curvature_have_names_of_their_own() -> None:
    epochs = rows(
        "epochs", {"step": [4], "epoch": [0], "test_acc1": [91.5], "train_eval_loss": [0.25], "seconds": [2.0]}
    )
    curvature = rows(
        "curvature",
        {"step": [2, 2, 3], "measurement_id": ["m", "m", "n"], "measure": ["eigenvalue", "eigenvalue", "trace"],
         "operator": ["hessian", "effective", "hessian"], "scope": ["all", "all", "fc"], "rank": [1, 2, None],
         "value": [5.0, 1.5, 40.0], "limit": [None, 2.0, None]},
    )  # fmt: skip
    assert values(Selection().choose({"epochs": epochs, "curvature": curvature})) == {
        (4, "metrics/test/acc1"): 91.5,
        (4, "metrics/train_eval/loss"): 0.25,
        (4, "time/epoch_seconds"): 2.0,
        (2, "curvature/hessian/eigenvalue/1"): 5.0,
        (2, "curvature/effective/eigenvalue/2"): 1.5,
        (2, "curvature/effective/limit"): 2.0,
        (3, "curvature/hessian/trace/fc"): 40.0,
    }


def test_times_are_those_of_the_steps() -> None:
    times = [1_000_000 * second for second in (10, 20)]
    table = rows("steps", {"step": [0, 1], "loss": [1.0, 2.0], "time": times})
    epochs = rows("epochs", {"step": [2], "epoch": [0], "test_acc1": [1.0]})
    chosen = Selection().choose({"steps": table, "epochs": epochs})
    assert [(item.step, item.time) for item in chosen] == [(0, 10.0), (1, 20.0), (2, 20.0)]


def test_a_tensor_that_is_named_like_a_total_has_another_name() -> None:
    table = layers([0], 1)
    place = table.schema.get_field_index("parameter")
    renamed = table.set_column(
        place, table.field(place), pa.array(["global"]).dictionary_encode().cast(table.field(place).type)
    )
    found = values(Selection().choose({"steps": steps(0, 1, grad_norm=[7.0]), "layers": renamed}))
    assert found[0, "l2_norm/grad/global"] == 7
    assert found[0, "l2_norm/grad/global (tensor)"] == 2


def test_what_a_small_budget_leaves_out_is_told_as_what_it_is() -> None:
    selection = Selection(budget=1)
    assert values(selection.choose({"steps": steps(0, 1, lr=[0.1])})) == {(0, "loss/train"): 1}
    assert selection.left_out == "left out: the totals of 1 of 1 steps (a higher --budget sends more)"


def test_quantiles_and_layers_for_which_there_is_no_room_are_told() -> None:
    selection = Selection(budget=20)  # the loss, and 19 of 28 quantiles; both layers would be followed
    found = values(selection.choose({"steps": steps(0, 1), "layers": layers([0], 2)}))
    assert len(found) == 20
    assert not [name for _, name in found if "layer" in name]
    assert selection.left_out == (
        "left out: the figures of 2 of 2 tensors (--layers GLOB sends them); "
        "9 quantiles over layers (a higher --budget sends them)"
    )


def test_the_layers_of_a_later_phase_get_curves() -> None:
    random, selection = np.random.default_rng(0), Selection()
    selection.choose({"steps": steps(0, 5), "layers": layers(range(5), 30, grad_norm=random.lognormal(size=(5, 30)))})
    later = layers(range(5, 10), 2)
    place = later.schema.get_field_index("parameter")
    names = pa.array(["head.weight", "head.bias"] * 5).dictionary_encode().cast(later.schema.field(place).type)
    later = later.set_column(place, later.schema.field(place), names)
    found = values(selection.choose({"steps": steps(5, 5), "layers": later}))
    assert found[9, "l2_norm/grad/head.weight"] == found[9, "l2_norm/grad/head.bias"] == 2


def test_a_finding_without_a_text_is_an_alert_with_an_empty_one() -> None:
    (alert,) = Selection().choose({"findings": rows("findings", {"step": [3], "rule": ["loss_spike"]})})
    assert alert == Alert(3, "loss_spike", None, None, None, "")
