"""The tables of what is measured of a state of the model: curvature, gradient noise, the loss around it."""

from __future__ import annotations

from tvlars_probe.traces.key_columns import PHASE, RUN, STEP
from tvlars_probe.traces.table_form import Column, Table

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
        "hessian; effective: D^½ (H + Λ) D^½ with the rates D that the optimizer applied and its coupled decay Λ (for "
        "decoupled decay that differs between tensors, the Λ of the same effect); relative: each tensor scaled by its "
        "norm; ggn: the generalised Gauss-Newton matrix Jᵀ·∇²ℓ·J, J the Jacobian of the model's outputs; adaptive: "
        "|w|·Jᵀ·J·|w| over the outputs' mean square, each sample's outputs taken minus their mean; none",
    ),
    Column("scope", "name", "name", "all, or the layer or tensor whose block it is"),
    Column("scope_kind", "name", "name", "all, layer or tensor"),
)
_SAMPLE = (
    Column("samples", "int64", "sample", "number of samples that the loss is the mean over"),
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
        RUN,
        STEP,
        PHASE,
        *_MEASUREMENT,
        Column(
            "measure",
            "name",
            "name",
            "eigenvalue, trace, epsilon_sharpness; batch_sharpness: mean of gᵀHg/|g|² over mini-batches, of their own "
            "gradients and Hessians; directional_sharpness: ΔᵀHΔ/|Δ|² along the update Δ of the step (after training, "
            "the coming one); critical_sharpness: 2/(c·lr), c the smallest multiple of Δ at which the loss rises, lr "
            "the first parameter group's",
            required=True,
        ),
        *_OPERATOR,
        Column("rank", "int64", "1", "of an eigenvalue: 1, 2, ... from the top, -1, -2, ... from the bottom"),
        Column("value", "float64", "1", "the figure"),
        Column(
            "error",
            "float64",
            "1",
            "absolute error of the value on its own sample; null for lower bounds, for a single mini-batch, and for "
            "directional_sharpness, which is exact there. sharpness --draws tells how far other samples differ",
        ),
        Column(
            "error_kind",
            "name",
            "name",
            "residual; kato-temple (residual²/gap); standard-error; or bracket: c lies between a multiple that raises "
            "the loss and one that doesn't. The first two are raised where an eigenvalue may have been missed, or a "
            "check found a larger error",
        ),
        Column(
            "low",
            "float64",
            "1",
            "of a trace or batch sharpness: lower end of its 95 % interval, by Student's distribution",
            later=True,
        ),
        Column("high", "float64", "1", "of a trace or batch sharpness: upper end of it", later=True),
        Column("tol", "float64", "1", "relative error asked for; of critical sharpness, that of c"),
        Column(
            "converged",
            "bool",
            "1",
            "whether the error is at most tol times the value (near zero: times a small share of the largest), no "
            "larger eigenvalue can have been missed, and no check of the products contradicts it; false for a trace "
            "whose products aren't symmetric",
        ),
        Column("check", "name", "name", _CHECK, later=True),
        Column(
            "matvecs",
            "int64",
            "1",
            "products with the operator that the measurement of this scope took; of epsilon_sharpness evaluations of "
            "loss and gradient, of critical_sharpness forward passes over the sample",
        ),
        *_SAMPLE,
        Column("batch_size", "int64", "sample", "batch_sharpness: samples of a mini-batch", later=True),
        Column("epsilon", "float64", "1", "epsilon_sharpness: size of the box"),
        Column("dimensions", "int64", "1", "epsilon_sharpness: of the random subspace; null for the whole space"),
        Column("rate_step", "int64", "step", "effective: the step whose applied rates D holds"),
        Column(
            "limit",
            "float64",
            "1",
            "effective: the value above which training on a quadratic loss diverges; decoupled decay lowers it; null "
            "if unknown",
        ),
        Column("seconds", "float64", "s", "duration"),
    ),
)

SPECTRUM = Table(
    "spectrum",
    "one row per point of a spectral density",
    (
        RUN,
        STEP,
        PHASE,
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
        RUN,
        STEP,
        *_MEASUREMENT,
        PHASE,
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

NOISE = Table(
    "noise",
    "one row per estimate of the gradient's noise: of the whole model (scope all), of a layer or of a tensor; rows are "
    "raw, and averaged only by analyses",
    (
        RUN,
        STEP,
        PHASE,
        Column("measurement_id", "name", "name", "rows made together from one state; null for the pieces of a step"),
        Column("created_at", "time", "UTC", "when it was measured; null for the pieces of a step"),
        Column(
            "source",
            "name",
            "name",
            "training: from the pieces of the step's own batch (its micro-batches on all ranks); probe: on a fixed "
            "sample",
            required=True,
        ),
        Column("scope", "name", "name", "all, or the layer or tensor it is of"),
        Column("scope_kind", "name", "name", "all, layer or tensor"),
        Column("pieces", "int64", "1", "number of pieces whose gradients were compared"),
        Column("piece_size", "float64", "sample", "mean size of a piece, in samples, or in tokens where unit says so"),
        Column("unit", "name", "name", "samples or tokens: sizes count these, and tr Σ is of the gradient of one"),
        Column("samples", "int64", "sample", "samples (or tokens) of all pieces together"),
        Column(
            "gradient_square",
            "float64",
            "1",
            "|G|², the squared norm of the mean loss's true gradient; the estimate is unbiased, and may be negative",
        ),
        Column("gradient_square_error", "float64", "1", "its standard error; null for the pieces of one step"),
        Column(
            "noise_trace",
            "float64",
            "1",
            "tr Σ, the trace of the covariance of one sample's (or token's) gradient, unbiased",
        ),
        Column("noise_trace_error", "float64", "1", "its standard error; null for the pieces of one step"),
        Column(
            "noise_skewness",
            "float64",
            "1",
            "skewness of the pieces' squared distances from their mean gradient, of which tr Σ is the mean; null for "
            "the pieces of one step",
            later=True,
        ),
        Column(
            "heavy_tails",
            "bool",
            "1",
            "whether the pieces are fewer than 25·noise_skewness²: then intervals of tr Σ and B_simple hold the truth "
            "less often than in 95 %",
            later=True,
        ),
        Column("top_share", "float64", "1", "share of tr Σ along the top eigenvectors of the Hessian, if measured"),
        Column("top_share_error", "float64", "1", "its standard error"),
        Column("top_vectors", "int64", "1", "the number of these eigenvectors"),
        Column("loss", "float64", "1", "mean loss over the samples"),
        Column("split", "name", "name", "train, val or test"),
        Column("bn_mode", "name", "name", "BatchNorm: eval (running statistics), train (each piece's), frozen-batch"),
        Column("sample_id", "name", "name", "hash of the samples' indices; null for the pieces of a step"),
        Column("seed", "int64", "1", "of everything random"),
        Column("precision", "name", "name", "type of the weights"),
        Column("seconds", "float64", "s", "duration; null for the pieces of a step, which are part of it"),
    ),
)
