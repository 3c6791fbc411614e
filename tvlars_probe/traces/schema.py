"""Every table of a trace: its columns with type, unit and definition.

Names are the field's terms and appear unchanged in code, charts and documents. Columns are only ever added, nullable,
never retyped or redefined. **Step t is the state before update t, everywhere.** ``w`` is the parameter tensor before
the update; ``g`` the gradient as ``optimizer.step()`` uses it: of the mean loss over the global batch, reduced,
accumulated, un-scaled, after clipping if there was any, before weight decay; ``Δw`` the update really applied.
"""

from __future__ import annotations

from tvlars_probe.errors import unknown
from tvlars_probe.traces.table_form import Column, Table

ONLY_PHASE = "train"
"""The phase of a loop that names none."""

_RUN = Column("run", "name", "name", "the run's run_id", required=True)
_STEP = Column("step", "int64", "step", "index of the optimizer update, from 0", required=True)
_PHASE = Column("phase", "name", "name", "train, pretrain or linear")

# By far the longest table: float32, the type of the recorder's buffer, keeps its rows short. With the two norms ⟨w, g⟩
# gives what LARS divides by for any λ: ‖g + λw‖² = ‖g‖² + 2λ⟨w, g⟩ + λ²‖w‖². ⟨w, r⟩ does the same for LAMB.
LAYERS = Table(
    "layers",
    "one row per recorded step and parameter tensor; a tensor without gradient in a step has no row; a figure beyond "
    "float32 is infinite or zero, and the manifest's notes name the first such weight_norm or grad_norm",
    (
        _RUN,
        _STEP,
        Column(
            "parameter",
            "name",
            "name",
            "name as in model.named_parameters() of the unwrapped model; tied tensors once; tensors of no module are "
            "optimizer<i>.group<j>.<k>",
            required=True,
        ),
        Column("weight_norm", "float32", "1", "‖w‖₂ (the papers' LWN)"),
        Column("grad_norm", "float32", "1", "‖g‖₂ (the papers' LGN)"),
        Column("weight_grad_dot", "float32", "1", "⟨w, g⟩"),
        Column(
            "direction_norm",
            "float32",
            "1",
            "norm the trust ratio divides by (LARS, TVLARS: ‖g + λw‖ or the denominator chosen; LAMB, NLAMB: "
            "‖r + λw‖); null for optimizers that divide by none",
        ),
        Column("adam_norm", "float32", "1", "LAMB, NLAMB: ‖r‖, r the Adam direction; null for other optimizers"),
        Column("weight_adam_dot", "float32", "1", "LAMB, NLAMB: ⟨w, r⟩; null for other optimizers"),
        Column(
            "update_norm",
            "float32",
            "1",
            "‖Δw‖₂; taken from the optimizer's state where that gives it (LARS, TVLARS, LAMB, SGD with momentum): "
            "the update before it is rounded into the weights: below some 1e-7·‖w‖ these no longer move; null with "
            "--record norms, and in nine recorded steps of ten where only a copy of over 2²⁰ weights would give it",
        ),
        Column(
            "trust_ratio",
            "float32",
            "1",
            "factor by which this tensor's rate was really scaled, φ and clamps included; Muon's is its factor of the "
            "shape; 1 where excluded, at zero norm, or for optimizers known to have none; null where it isn't known "
            "(others' LAMB; optimizers without a description)",
        ),
        Column("phi", "float32", "1", "TVLARS' φ_t as applied to this tensor, 1 where not applied; null for others"),
        Column("lr", "float32", "1", "the group's learning rate in this step"),
        Column(
            "weight_spectral_norm",
            "float32",
            "1",
            "largest singular value of w, flattened to a matrix from the second dimension on, as it was found: one "
            "within the error of it is; null for vectors and in steps not asked for (--spectral-every)",
            later=True,
        ),
        Column(
            "weight_spectral_norm_error",
            "float32",
            "1",
            "how far weight_spectral_norm can be off, at most; for matrices of more than 64 rows and columns but for a "
            "chance of 1e-6 each",
            later=True,
        ),
        Column(
            "update_spectral_norm",
            "float32",
            "1",
            "the same of Δw, the difference of the weights after and before the update; null with --record norms, too",
            later=True,
        ),
        Column(
            "update_spectral_norm_error",
            "float32",
            "1",
            "how far update_spectral_norm can be off, at most, in the same sense",
            later=True,
        ),
    ),
)

STEPS = Table(
    "steps",
    "one row per optimizer update",
    (
        _RUN,
        _STEP,
        Column("epoch", "int64", "epoch", "from 0, restarting per phase"),
        _PHASE,
        Column("loss", "float64", "1", "mean loss over the global batch"),
        Column("lr", "float64", "1", "learning rate of the first parameter group; null where that didn't step"),
        Column("phi", "float64", "1", "TVLARS' φ_t of the first parameter group; null for other optimizers"),
        Column("grad_norm", "float64", "1", "‖g‖₂ over all the optimizers' parameters; null in unrecorded steps"),
        Column("weight_norm", "float64", "1", "‖w‖₂ over the parameters with gradient; null in unrecorded steps"),
        Column(
            "grad_norm_before_clipping",
            "float64",
            "1",
            "‖g‖₂ over the tensors that were clipped, before clipping; null if unknown",
            later=True,
        ),
        Column("clip_scale", "float64", "1", "factor by which gradient clipping scaled the gradient; null if unknown"),
        Column("samples", "int64", "sample", "samples seen up to and including this step, over all ranks"),
        Column(
            "tokens",
            "int64",
            "token",
            "tokens seen up to and including this step, over all ranks; null where the loop doesn't tell them",
            later=True,
        ),
        Column("time", "time", "UTC", "wall-clock time at the end of the step"),
        Column("step_seconds", "float64", "s", "time since the previous step's end, without probes"),
        Column("probe_seconds", "float64", "s", "time that probes took in this step"),
    ),
)


def _accuracies(prefix: str, what: str) -> tuple[Column, ...]:
    return (
        Column(f"{prefix}_loss", "float64", "1", f"mean loss on {what}"),
        Column(f"{prefix}_acc1", "float64", "%", f"top-1 accuracy on {what}"),
        Column(f"{prefix}_acc5", "float64", "%", f"top-5 accuracy on {what}"),
    )


EPOCHS = Table(
    "epochs",
    "one row per finished epoch",
    (
        _RUN,
        _STEP,
        Column("epoch", "int64", "epoch", "from 0, restarting per phase", required=True),
        _PHASE,
        *_accuracies("train", "the training batches as they were trained on, each by the model of its step"),
        *_accuracies("train_eval", "un-augmented training data (or a fixed sample of it) by the epoch's last model"),
        *_accuracies("val", "the training data held out by --val"),
        *_accuracies("test", "the test data, each sample once at any world size"),
        Column("seconds", "float64", "s", "duration of the epoch, evaluation included"),
    ),
)

# Columns that the tables of measurements share: the measurement, its operator, its data and settings.
_MEASUREMENT = (
    Column("measurement_id", "name", "name", "rows made together from one state of the model", required=True),
    Column("created_at", "time", "UTC", "when it was measured"),
)
_OPERATOR = (
    Column(
        "operator",
        "name",
        "name",
        "hessian; effective: D^½ (H + Λ) D^½ with the rates D that the optimizer applied and its coupled decay Λ, or "
        "what stands in for decoupled decay that tensors don't share; relative: each tensor scaled by its norm; none",
    ),
    Column("scope", "name", "name", "all, or the layer or tensor whose block it is"),
    Column("scope_kind", "name", "name", "all, layer or tensor"),
)
_SAMPLE = (
    Column("samples", "int64", "sample", "samples of the loss"),
    Column("sample_id", "name", "name", "hash of their indices"),
    Column(
        "draw",
        "int64",
        "1",
        "0 to K − 1: which of the disjoint samples of sharpness --draws K; null without draws",
        later=True,
    ),
    Column("loss", "float64", "1", "mean loss over them"),
    Column("split", "name", "name", "train, val or test"),
    Column("bn_mode", "name", "name", "BatchNorm: eval (running statistics), train (the sample's), frozen-batch"),
    Column("seed", "int64", "1", "of everything random"),
    Column("precision", "name", "name", "float32 or float64"),
    Column("engine", "name", "name", "lanczos or pyhessian"),
)

_CHECK = (
    "of the products: agrees (forward over reverse gives the same, to rounding), differs, asymmetric, or not "
    "cross-checked, with the custom autograd functions in the loss's graph; null where there was no check"
)

CURVATURE = Table(
    "curvature",
    "one row per figure; in training for the state before the step, after it for the state of a checkpoint",
    (
        _RUN,
        _STEP,
        _PHASE,
        *_MEASUREMENT,
        Column("measure", "name", "name", "eigenvalue, trace or epsilon_sharpness", required=True),
        *_OPERATOR,
        Column("rank", "int64", "1", "of an eigenvalue: 1, 2, ... from the top, -1, -2, ... from the bottom"),
        Column("value", "float64", "1", "the figure"),
        Column("error", "float64", "1", "of the value, absolute; null for lower bounds"),
        Column(
            "error_kind",
            "name",
            "name",
            "residual or kato-temple (residual²/gap), each raised to what may hide and what the checks found; or "
            "standard-error",
        ),
        Column(
            "low", "float64", "1", "of a trace: lower end of its 95 % interval, by Student's distribution", later=True
        ),
        Column("high", "float64", "1", "of a trace: upper end of it", later=True),
        Column("tol", "float64", "1", "relative error asked for"),
        Column(
            "converged",
            "bool",
            "1",
            "whether the error reached it, and no check of the products speaks against it; false for a trace whose "
            "products aren't symmetric",
        ),
        Column("check", "name", "name", _CHECK, later=True),
        Column("matvecs", "int64", "1", "products with the operator that the measurement of this scope took"),
        *_SAMPLE,
        Column("epsilon", "float64", "1", "epsilon_sharpness: size of the box"),
        Column("dimensions", "int64", "1", "epsilon_sharpness: of the random subspace; null for the whole space"),
        Column("rate_step", "int64", "step", "effective: the step whose applied rates D holds"),
        Column(
            "limit",
            "float64",
            "1",
            "effective: value beyond which a quadratic diverges, lowered by decoupled decay; null if unknown",
        ),
        Column("seconds", "float64", "s", "duration"),
    ),
)

SPECTRUM = Table(
    "spectrum",
    "one row per point of a spectral density",
    (
        _RUN,
        _STEP,
        _PHASE,
        *_MEASUREMENT,
        *_OPERATOR,
        Column("grid", "float64", "1", "eigenvalue λ", required=True),
        Column("density", "float64", "1", "share of eigenvalues per unit of λ, smoothed"),
        Column("error", "float64", "1", "standard error, by the random vectors and the quadrature"),
        Column("low", "float64", "1", "lower end of the 95 % interval of the density", later=True),
        Column("high", "float64", "1", "upper end of it", later=True),
        Column("check", "name", "name", _CHECK, later=True),
        Column("sigma", "float64", "1", "width of the smoothing"),
        *_SAMPLE,
    ),
)

LANDSCAPE = Table(
    "landscape",
    "one row per point of a slice through the loss, at w + alpha·d1 + beta·d2, or on the line between two runs",
    (
        _RUN,
        _STEP,
        *_MEASUREMENT,
        _PHASE,
        Column("run2", "name", "name", "run_id of the other end of the line; null along random directions"),
        Column("alpha", "float64", "1", "multiple of the first direction; a line's ends are 0 and 1", required=True),
        Column("beta", "float64", "1", "multiple of the second direction; null for one direction"),
        Column("loss", "float64", "1", "mean loss there"),
        Column("acc1", "float64", "%", "top-1 accuracy there"),
        Column("samples", "int64", "sample", "samples of the loss"),
        Column("split", "name", "name", "train, val or test"),
        Column("bn_mode", "name", "name", "BatchNorm statistics: interpolated, or estimated again at each point"),
        Column("seed", "int64", "1", "of the directions and the sample"),
        Column("precision", "name", "name", "float32 or float64; null in rows of older versions", later=True),
        Column("seconds", "float64", "s", "duration of the whole slice"),
    ),
)

FINDINGS = Table(
    "findings",
    "one row per finding: what a rule found wrong in the recorded steps, at the flush that wrote them",
    (
        _RUN,
        _STEP,
        Column("rule", "name", "name", "id of the rule: see docs/findings.md", required=True),
        Column("parameter", "name", "name", "the tensor it is about; null where it is about the whole model"),
        Column("value", "float64", "1", "what the rule compares"),
        Column("threshold", "float64", "1", "what it compares the value with; null for a rule without one"),
        Column("text", "name", "name", "the finding as one sentence"),
    ),
)

TABLES = {table.name: table for table in (LAYERS, STEPS, EPOCHS, CURVATURE, SPECTRUM, LANDSCAPE, FINDINGS)}


def table(name: str) -> Table:
    """The table of that name.

    Raises:
        UserError: there is none.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    return TABLES[name]
