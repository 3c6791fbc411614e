"""Every table of a trace: its columns with type, unit and definition. Those of measurements are in a file of their own.

Names are the field's terms and appear unchanged in code, charts and documents. Columns are only ever added, nullable,
never retyped or redefined. **Step t is the state before update t, everywhere.** ``w`` is the parameter tensor before
the update; ``g`` the gradient as ``optimizer.step()`` uses it: of the mean loss over the global batch, reduced,
accumulated, un-scaled, after clipping if there was any, before weight decay; ``Δw`` the update really applied.
"""

from __future__ import annotations

from tvlars_probe.errors import unknown
from tvlars_probe.traces.key_columns import PHASE, RUN, STEP
from tvlars_probe.traces.measurement_tables import CURVATURE, LANDSCAPE, NOISE, SPECTRUM
from tvlars_probe.traces.table_form import Column, Table

ONLY_PHASE = "train"
"""The phase of a loop that names none."""

# By far the longest table: float32, the type of the recorder's buffer, keeps its rows short. With the two norms ⟨w, g⟩
# gives what LARS divides by for any λ: ‖g + λw‖² = ‖g‖² + 2λ⟨w, g⟩ + λ²‖w‖². ⟨w, r⟩ does the same for LAMB.
LAYERS = Table(
    "layers",
    "one row per recorded step and parameter tensor; a tensor without gradient in a step has no row; a figure beyond "
    "float32 is infinite or zero, and the manifest's notes name the first such weight_norm or grad_norm",
    (
        RUN,
        STEP,
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
            "‖Δw‖₂. LARS, TVLARS, LAMB and SGD with momentum: from the optimizer's state, before the update is "
            "rounded into the weights (one below some 1e-7·‖w‖ no longer moves them). Others: from a copy of the "
            "weights; of a tensor of more than 2²⁰ weights in one recorded step of ten, and null in the others. Null "
            "with --record norms",
        ),
        Column(
            "trust_ratio",
            "float32",
            "1",
            "factor by which the optimizer scaled this tensor's rate, with φ and clamps; for Muon its factor for the "
            "tensor's shape. 1 where the tensor is excluded, where a norm is zero, and for optimizers known to "
            "have no such factor; null where it isn't known (LAMB of other packages, optimizers without a description)",
        ),
        Column("phi", "float32", "1", "TVLARS' φ_t as applied to this tensor, 1 where not applied; null for others"),
        Column("lr", "float32", "1", "the group's learning rate in this step"),
        Column(
            "weight_spectral_norm",
            "float32",
            "1",
            "estimate of the largest singular value of w, flattened to a matrix from the second dimension on; null for "
            "vectors and in steps without a measurement (--spectral-every)",
            later=True,
        ),
        Column(
            "weight_spectral_norm_error",
            "float32",
            "1",
            "the true value is at most this far from weight_spectral_norm; of matrices of more than 64 rows and "
            "columns it is so with probability 1 − 1e-6 each",
            later=True,
        ),
        Column(
            "update_spectral_norm",
            "float32",
            "1",
            "the same of Δw, the weights after the update minus those before it; also null with --record norms",
            later=True,
        ),
        Column(
            "update_spectral_norm_error",
            "float32",
            "1",
            "the same of update_spectral_norm",
            later=True,
        ),
    ),
)

STEPS = Table(
    "steps",
    "one row per optimizer update",
    (
        RUN,
        STEP,
        Column("epoch", "int64", "epoch", "from 0, restarting per phase"),
        PHASE,
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
        RUN,
        STEP,
        Column("epoch", "int64", "epoch", "from 0, restarting per phase", required=True),
        PHASE,
        *_accuracies("train", "the training batches as they were trained on, each by the model of its step"),
        *_accuracies("train_eval", "un-augmented training data (or a fixed sample of it) by the epoch's last model"),
        *_accuracies("val", "the training data held out by --val"),
        *_accuracies("test", "the test data, each sample once at any world size"),
        Column("seconds", "float64", "s", "duration of the epoch, evaluation included"),
    ),
)

FINDINGS = Table(
    "findings",
    "one row per finding: what a rule found wrong in the recorded steps, at the flush that wrote them",
    (
        RUN,
        STEP,
        Column("rule", "name", "name", "id of the rule: see docs/guides/findings.md", required=True),
        Column("parameter", "name", "name", "the tensor it is about; null where it is about the whole model"),
        Column("value", "float64", "1", "what the rule compares"),
        Column("threshold", "float64", "1", "what it compares the value with; null for a rule without one"),
        Column("text", "name", "name", "the finding as one sentence"),
    ),
)

TABLES = {table.name: table for table in (LAYERS, STEPS, EPOCHS, CURVATURE, SPECTRUM, NOISE, LANDSCAPE, FINDINGS)}


def table(name: str) -> Table:
    """The table of that name.

    Raises:
        UserError: there is none.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    return TABLES[name]
