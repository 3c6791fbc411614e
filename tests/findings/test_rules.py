"""Each rule against the oracle, wherever flushes and resumes part the steps, and against what it is told to spare."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.findings.windows import NAMES, SOUND, inspected, rows_of, tensors
from tests.oracles import findings as oracle
from tests.oracles.findings import Row
from tvlars_probe.findings.inspector import RULES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.findings.finding import Finding

STEPS = 200

edges = st.lists(st.integers(1, STEPS - 1), max_size=12)


def steps_of(found: list[Finding]) -> list[int]:
    return [one.step for one in found]


def test_nothing_is_found_in_a_sound_run() -> None:
    assert inspected(rows_of(STEPS), tensors(weight_cap=10.0, divisor_cap=10.0), [*RULES], [7, 90]) == []


@settings(deadline=None, max_examples=60)
@given(
    jumps=st.dictionaries(st.integers(0, STEPS - 1), st.sampled_from([1.05, 3.0, 50.0, 1e8, math.nan, math.inf])),
    untold=st.sets(st.integers(0, STEPS - 1), max_size=20),
    flushes=edges,
    resumes=st.booleans(),
)
def test_spikes_are_those_of_the_oracle(
    jumps: dict[int, float], untold: set[int], flushes: list[int], resumes: bool
) -> None:
    rows = rows_of(STEPS)
    for step, factor in jumps.items():
        rows[step].loss *= factor
        rows[step].grad_norm *= factor
    for step in untold:
        rows[step].loss = None
    losses = [math.nan if row.loss is None else row.loss for row in rows]
    about = tensors()
    assert steps_of(inspected(rows, about, ["loss_spike"], flushes, resumes)) == oracle.spikes(losses)
    grads = oracle.spikes([row.grad_norm for row in rows])
    assert steps_of(inspected(rows, about, ["grad_spike"], flushes, resumes)) == grads


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_spike_is_one_at_any_size(scale: float) -> None:
    rows = rows_of(STEPS)
    for row in rows:
        row.grad_norm *= scale
    rows[150].grad_norm *= 20
    rows[150].figures["fc.weight"]["grad_norm"] = 19.0 * SOUND["grad_norm"]
    (found,) = inspected(rows, tensors(), ["grad_spike"])
    assert (found.step, found.parameter, found.value) == (150, "fc.weight", rows[150].grad_norm)
    assert found.threshold is not None
    assert found.threshold < rows[150].grad_norm
    assert "99 % of ‖g‖² is that of fc.weight" in found.text


@pytest.mark.parametrize("factor", [1e200, 1e160, 1e-200])
def test_a_value_of_another_size_changes_no_threshold_before_it(factor: float) -> None:
    """Whether it stands in the same flush as the steps before it or not: of these none is a spike."""
    rows = rows_of(STEPS)
    for row in rows[150:]:
        row.loss *= factor
    spikes = oracle.spikes([row.loss for row in rows])
    assert spikes == ([150] if factor > 1 else [])
    for flushes in ((), (149,), (150,), range(1, STEPS)):
        assert steps_of(inspected(rows, tensors(), ["loss_spike"], flushes)) == spikes


@pytest.mark.parametrize("flushes", [(), range(1, 1000, 7)])
@pytest.mark.parametrize("resumes", [False, True])
def test_norms_before_clipping_are_no_spikes_among_clipped_ones(flushes: Sequence[int], resumes: bool) -> None:
    """As under a trainer that clips at 1, and tells the norm before in each tenth step alone."""
    rows = rows_of(1000)
    for k, row in enumerate(rows):
        row.before_clipping = k % 10 == 9
        row.grad_norm = 30 + math.cos(k) if row.before_clipping else 1.0
    assert inspected(rows, tensors(), ["grad_spike"], flushes, resumes) == []
    rows[949].grad_norm, rows[951].grad_norm = 100.0, 2.0
    found = inspected(rows, tensors(), ["grad_spike"], flushes, resumes)
    assert [(one.step, one.value) for one in found] == [(949, 100.0), (951, 2.0)]
    # σ of a cosine is 1/√2; that of a constant is none, and a thousandth stands for it.
    assert [one.threshold for one in found] == [pytest.approx(30 + 6 / math.sqrt(2), abs=0.1), pytest.approx(1.001)]


def test_a_constant_loss_has_no_spikes_by_rounding() -> None:
    rows = rows_of(STEPS)
    for k, row in enumerate(rows):
        row.loss = 0.1 + 1e-17 * k
    assert inspected(rows, tensors(), ["loss_spike"]) == []


@settings(deadline=None, max_examples=60)
@given(
    drops=st.dictionaries(
        st.tuples(st.integers(0, STEPS - 1), st.sampled_from(["conv.weight", "fc.weight"])),
        st.sampled_from([1e-3, 1e-7, 1e-9, 0.0, 1e4]),
    ),
    unrecorded=st.sets(st.integers(0, STEPS - 1), max_size=30),
    with_phi=st.booleans(),
    flushes=edges,
)
def test_vanished_ratios_are_those_of_the_oracle(
    drops: dict[tuple[int, str], float], unrecorded: set[int], with_phi: bool, flushes: list[int]
) -> None:
    rows = rows_of(STEPS)
    for k, row in enumerate(rows):
        for figures in row.figures.values():
            figures["phi"] = math.exp(-k / 5) if with_phi else math.nan
            figures["trust_ratio"] *= figures["phi"] if with_phi else 1.0
    for (step, name), factor in drops.items():
        rows[step].figures[name]["trust_ratio"] *= factor
    for step in unrecorded:
        rows[step].figures = {}
    adapted = [oracle.Row(figures={n: f for n, f in row.figures.items() if n.endswith("weight")}) for row in rows]
    expected = [*oracle.episodes(adapted, oracle.vanished)]
    found = inspected(rows, tensors(phi=with_phi), ["ratio_vanished"], flushes)
    assert steps_of(found) == sorted({step for step, _ in expected})
    assert all((one.step, one.parameter) in expected for one in found)


def test_a_ratio_that_phi_takes_to_zero_has_not_vanished() -> None:
    """The norms stay as they are: a float32 holds no ratio any more from step 20 on, a float64 no φ from step 150."""
    rows = rows_of(STEPS)
    for k, row in enumerate(rows):
        for figures in row.figures.values():
            figures["phi"] = math.exp(-5 * k)
            figures["trust_ratio"] = float(np.float32(figures["trust_ratio"] * figures["phi"]))
    assert rows[-1].figures["fc.weight"]["phi"] == 0
    assert inspected(rows, tensors(phi=True), ["ratio_vanished"]) == []


CLAMPS = [
    ({"weight_cap": 10.0}, "weight_norm", 10.0, "‖w‖ 10 is at or beyond the bound 10;"),
    ({"divisor_cap": 10.0}, "direction_norm", 12.0, "its divisor 12 is at or beyond the bound 10;"),
    ({"clip": "one"}, "trust_ratio", 1.0, "its value 1 is at or beyond the bound 1;"),
    ({"clip": "rate"}, "trust_ratio", 1.0, "its value 1 is at or beyond the bound 1;"),
]


@pytest.mark.parametrize(("scaling", "figure", "value", "told"), CLAMPS)
def test_a_clamp_is_found_where_it_begins_to_bind(
    scaling: dict[str, object], figure: str, value: float, told: str
) -> None:
    rows = rows_of(20)
    for step in (5, 6, 9):
        for name in NAMES:  # of which vectors are not adapted
            rows[step].figures[name][figure] = value
    rows[7].figures = {}  # not recorded: the episode goes on
    for flushes in ([], [6], [7, 8], [*range(20)]):
        found = inspected(rows, tensors(**scaling), ["ratio_clamped"], flushes)
        assert [(one.step, one.parameter, one.value) for one in found] == [
            (5, "conv.weight", value), (9, "conv.weight", value),
        ]  # fmt: skip
        assert found[0].text == f"the trust ratio of conv.weight is clamped: {told} likewise 1 other: fc.weight"
    assert inspected(rows, tensors(), ["ratio_clamped"]) == []


def test_a_ratio_of_one_for_a_norm_of_zero_is_no_clamp() -> None:
    rows = rows_of(3)
    rows[0].figures["fc.weight"] |= {"trust_ratio": 1.0, "weight_norm": 0.0}
    rows[1].figures["conv.weight"] |= {"trust_ratio": 1.0, "grad_norm": 0.0, "direction_norm": 0.0}
    assert inspected(rows, tensors(clip="one"), ["ratio_clamped"]) == []


@pytest.mark.parametrize("resumes", [False, True])
def test_phi_dies_once(resumes: bool) -> None:
    rows = rows_of(40)
    for k, row in enumerate(rows):
        row.phi = 0.9 * math.exp(-k / 2)
    rows[30].phi = math.nan  # the first group's optimizer didn't step
    expected = oracle.dead(rows)
    assert len(expected) == 1
    for flushes in ([], [3, 20, 21, 31]):
        assert steps_of(inspected(rows, tensors(phi=True), ["phi_dead"], flushes, resumes)) == expected


@pytest.mark.parametrize("resumes", [False, True])
def test_an_excluded_tensor_is_overwritten(resumes: bool) -> None:
    rows = rows_of(12)
    rows[0].figures["fc.bias"]["weight_norm"] = 0.0  # begins at zero
    rows[3].figures["fc.bias"]["update_norm"] = 5.0
    rows[4].figures["fc.weight"]["update_norm"] = 5.0  # is adapted
    rows[5].figures["conv.bias"]["update_norm"] = 2.0  # exactly its norm
    rows[6].figures["conv.bias"]["update_norm"] = 7.0  # the same episode
    rows[7].figures["conv.bias"]["update_norm"] = math.nan  # not measured: it goes on
    rows[8].figures["conv.bias"]["update_norm"] = 7.0
    rows[10].figures["conv.bias"]["update_norm"] = 7.0
    for flushes in ([], [6], [1, 8]):
        found = inspected(rows, tensors(), ["excluded_overwritten"], flushes, resumes)
        assert [(one.step, one.parameter, one.value, one.threshold) for one in found] == [
            (5, "conv.bias", 2.0, 2.0), (10, "conv.bias", 7.0, 2.0),
        ]  # fmt: skip


@pytest.mark.parametrize("resumes", [False, True])
def test_a_weight_is_overwritten_whether_a_ratio_scales_it_or_not(resumes: bool) -> None:
    rows = rows_of(12)
    rows[0].figures["conv.weight"]["weight_norm"] = 0.0  # begins at zero
    rows[3].figures["conv.weight"]["update_norm"] = 5.0
    rows[4].figures["fc.bias"]["update_norm"] = 5.0  # a vector
    rows[5].figures["fc.weight"]["update_norm"] = 2.0  # exactly its norm
    rows[6].figures["fc.weight"]["update_norm"] = 7.0  # the same episode
    rows[9].figures["fc.weight"]["update_norm"] = 7.0
    for flushes in ([], [6], [1, 8]):
        found = inspected(rows, tensors(), ["weight_overwritten"], flushes, resumes)
        assert [(one.step, one.parameter, one.value, one.threshold) for one in found] == [
            (5, "fc.weight", 2.0, 2.0), (9, "fc.weight", 7.0, 2.0),
        ]  # fmt: skip


@pytest.mark.parametrize("resumes", [False, True])
def test_a_tensor_of_zeros_that_moves_at_the_full_rate(resumes: bool) -> None:
    rows = rows_of(12)
    rows[0].figures["fc.weight"] |= {"weight_norm": 0.0, "trust_ratio": 1.0}
    rows[1].figures["fc.weight"]["trust_ratio"] = 0.02
    # No gradient: it doesn't move. Then it does, and its ratio is a tenth in the next recorded step.
    rows[3].figures["conv.weight"] |= {"weight_norm": 0.0, "trust_ratio": 1.0, "grad_norm": 0.0}
    rows[6].figures["conv.weight"] |= {"weight_norm": 0.0, "trust_ratio": 1.0}
    del rows[7].figures["conv.weight"]
    rows[8].figures["conv.weight"]["trust_ratio"] = 0.1
    rows[9].figures["fc.bias"] |= {"weight_norm": 0.0, "trust_ratio": 1.0}  # no ratio is taken of vectors here
    # Its ratio stays near one, as under LAMB with large updates.
    rows[10].figures["fc.weight"] |= {"weight_norm": 0.0, "trust_ratio": 1.0}
    rows[11].figures["fc.weight"]["trust_ratio"] = 0.11
    for flushes in ([], [1], [7, 8], [*range(1, 12)]):
        found = inspected(rows, tensors(), ["full_rate_from_zero"], flushes, resumes)
        assert [(one.step, one.parameter, one.value, one.threshold) for one in found] == [
            (1, "fc.weight", 1.0, pytest.approx(0.2)), (8, "conv.weight", 1.0, pytest.approx(1.0)),
        ]  # fmt: skip


@pytest.mark.parametrize("rounding", [2**-24, 2**-8])
def test_an_update_below_the_rounding_of_its_type(rounding: float) -> None:
    rows = rows_of(8)
    rows[2].figures["fc.weight"]["update_norm"] = 0.9 * rounding * 2.0
    rows[3].figures["fc.weight"]["update_norm"] = 1.1 * rounding * 2.0
    rows[4].figures["fc.weight"] |= {"update_norm": 0.0, "grad_norm": 0.0}  # a dead unit has no update to lose
    rows[5].figures["fc.weight"] |= {"update_norm": 0.0, "lr": 0.0}
    rows[5].figures["conv.bias"] |= {"update_norm": 0.0, "grad_norm": 1e-8}  # of rounding alone
    rows[6].figures["fc.weight"]["update_norm"] = 0.0
    rows[7].figures["conv.bias"] |= {"update_norm": 0.0, "lr": 1e-3}  # the end of a schedule
    about = tensors(rounding=rounding)
    found = inspected(rows, about, ["update_below_rounding"], [3, 5])
    assert [(one.step, one.parameter, one.threshold) for one in found] == [
        (2, "fc.weight", rounding * 2.0), (6, "fc.weight", rounding * 2.0),
    ]  # fmt: skip


def test_what_is_not_finite_is_one_finding_until_it_is_finite_again() -> None:
    rows = rows_of(12)
    for step in (3, 4):
        rows[step].figures["fc.weight"]["grad_norm"] = math.inf
        rows[step].figures["fc.bias"]["weight_norm"] = math.nan
    rows[7].loss = math.nan
    rows[9].figures = {}
    rows[9].loss = None  # nothing is known of this step
    rows[10].loss = math.inf
    for resumes in (False, True):
        found = inspected(rows, tensors(), ["non_finite"], [4, 8, 10], resumes)
        assert [(one.step, one.parameter) for one in found] == [(3, "fc.bias"), (7, None), (10, None)]
        assert found[0].text == f"the weights of fc.bias aren't finite; the loss is {rows[3].loss:.4g}"
        assert found[2].value == math.inf


def noisy(rows: list[Row], batch: float, scale: float, *, spread: float, seed: int = 0) -> list[Row]:
    """The rows, with a batch and estimates of |G|² = 1 and tr Σ = ``scale`` that scatter."""
    rng = np.random.default_rng(seed)
    for row in rows:
        row.batch = batch
        row.signal, row.noise = 1 + spread * rng.normal(), scale * (1 + spread * rng.normal())
    return rows


@settings(deadline=None, max_examples=40)
@given(
    scales=st.lists(st.sampled_from([1.0, 20.0, 31.0, 33.0, 100.0, math.nan, math.inf, -1.0]), min_size=4, max_size=4),
    untold=st.sets(st.integers(0, STEPS - 1), max_size=20),
    flushes=edges,
    resumes=st.booleans(),
)
def test_batches_beyond_noise_are_those_of_the_oracle(
    scales: list[float], untold: set[int], flushes: list[int], resumes: bool
) -> None:
    rows = noisy(rows_of(STEPS), 64.0, 1.0, spread=0.3)
    for step, row in enumerate(rows):
        row.noise *= scales[step // 50]
    for step in untold:
        rows[step].signal = math.nan
    assert steps_of(inspected(rows, tensors(), ["batch_beyond_noise"], flushes, resumes)) == oracle.beyond_noise(rows)


def test_a_batch_far_beyond_the_noise_is_told_once_an_episode() -> None:
    rows = [row for scale in (4.0, 4.0, 90.0, 4.0) for row in noisy(rows_of(64), 64.0, scale, spread=0.1)]
    found = inspected(rows, tensors(), ["batch_beyond_noise"])
    assert steps_of(found) == [63, 255]
    assert (found[0].value, found[0].parameter) == (64.0, None)
    assert found[0].threshold == pytest.approx(8, rel=0.05)
    assert "a batch of 64 is far beyond the gradient's noise scale" in found[0].text
    assert "94 % of its samples are wasted" in found[0].text


@pytest.mark.parametrize(("scale", "most"), [(256.0, 0.0), (64.0, 0.0), (32.0, 0.01), (4.0, 1.0)])
def test_a_batch_up_to_the_noise_scale_is_told_of_in_no_run(scale: float, most: float) -> None:
    """400 runs of four stretches of two pieces in three dimensions, whose estimates scatter the most."""
    rng = np.random.default_rng(1)
    pieces = rng.normal(size=(400, 4 * 64, 2, 3)) * np.sqrt(scale / 3 / 32) + [1.0, 0.0, 0.0]
    square, whole = (pieces**2).sum(-1).mean(-1), (pieces.mean(-2) ** 2).sum(-1)
    noise = (square - whole) / (2 / 64 - 1 / 64)
    signal, told = whole - noise / 64, 0
    for run in range(400):
        rows = [Row(batch=64.0, signal=s, noise=n) for s, n in zip(signal[run], noise[run], strict=True)]
        told += bool(inspected(rows, tensors(), ["batch_beyond_noise"]))
    assert told / 400 <= most
    assert scale > 4 or told == 400
