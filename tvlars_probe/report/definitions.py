"""The meaning of the terms on the page."""

DEFINITIONS: dict[str, str] = {
    "step": "Index of the optimizer's update, from 0. Everything at step t describes the state before update t.",
    "weight norm ‖w‖": "Euclidean norm of a parameter tensor before the update (the papers' LWN).",
    "gradient norm ‖g‖": "Norm of the gradient of the mean loss over the global batch, before weight decay (LGN).",
    "norm ratio ‖w‖/‖g‖": "The papers' layer-wise norm ratio (LNR).",
    "trust ratio": "Factor by which a tensor's learning rate was really scaled, φ and clamps included; 1 for tensors "
    "that are left out of adaptation (biases, normalisation layers).",
    "effective rate": "Learning rate times trust ratio, before momentum and, in the Adam family, before 1/√v. Its "
    "logarithm is the sum of the logarithms of peak rate, schedule, eta, φ, norm ratio and clip.",
    "φ": "TVLARS' factor in time, 1/(α + exp(λ(t − d_e))) + γ_min, in place of warm-up.",
    "own ratio": "The trust ratio without φ: what the tensor's own norms make of its rate.",
    "hot layer": "An adapted layer whose own ratio is, early on, more than twice what it settles at (its later "
    "median): at full rate it takes steps much longer than its usual ones.",
    "overwritten tensor": "An unadapted tensor that one step at full rate moves by more than its own norm.",
    "redundant scaling": "Warm-up steps and layers in which the schedule holds back a layer whose own ratio is already "
    "below what it settles at.",
    "explosion": "A quantity beyond five times both its start and its later median, where the rise is sudden, the loss "
    "harmed, the value not finite, or where it doesn't come back. That of ‖w‖/‖g‖ counts only where ‖g‖ or ‖Δw‖/‖w‖ "
    "rises, too. Peak over later median and the steps to recover are given with it.",
    "sharpness": "Largest eigenvalue λ₁ of the loss's Hessian on a fixed sample of the data. Another sample of that "
    "size has another sharpness.",
    "on this sample of n, mean of K samples of n": "What a sharpness was measured on. The mean over several samples "
    "(draws) has a standard error, and Student's interval: of the mean over samples of that size, which isn't the "
    "sharpness of all the data. A curve is of one sample, or of the same draws; where a step was measured more than "
    "once on it, the latest figure is taken.",
    "relative sharpness": "The same with each tensor scaled by its norm; unchanged when a normalised layer is "
    "rescaled.",
    "effective sharpness": "The same under the rates that the optimizer really applied; the limit is where a "
    "quadratic's oscillation would grow. For mini-batch runs it is a reference, not a verdict.",
    "adaptive sharpness": "Largest mean square change of the outputs, as a share of their own mean square, for changes "
    "of the weights by shares of their own size. No rescaling of layers or units that preserves the function moves it, "
    "nor does a factor on the outputs or on the loss.",
    "trapped, escaped, never sharp": "By adaptive sharpness alone. A rise to twice its lowest value so far is a sharp "
    "phase. A run that ends below half of its top has escaped, one that doesn't is trapped.",
    "noise scale": "B_simple = tr Σ/|G|²: the variance of one sample's gradient over the squared norm of the mean "
    "gradient, averaged apart over recorded steps. Below it a batch of twice the size saves nearly half of the steps; "
    "far beyond it hardly any.",
    "below, at, beyond": "Whether the run's own batch lies below the noise scale's 95 % interval, within it or beyond.",
    "BatchNorm mode": "eval uses running statistics, train those of the sample, frozen-batch those of the sample held "
    "constant. No chart joins two modes.",
    "generalisation gap": "Accuracy on un-augmented training data minus accuracy on test data, in percentage points.",
    "95 % from, to": "Student's interval for a mean over seeds; that of a setting reaches further by what choosing its "
    "learning rate makes the mean too good.",
    "too good by up to": "What a mean gains by choosing its learning rate on the same seeds: the best rate's mean "
    "minus what one half of the seeds shows at the rate that the other half chooses.",
    "p against the best": "Probability of so large a difference from the best setting, among as many settings, if all "
    "were equally good.",
}
"""A definition for each term, in the order of the page."""
