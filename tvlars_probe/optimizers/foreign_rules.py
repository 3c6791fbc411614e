"""Rules for the optimizers of other packages. Needs neither those packages nor torch.

`tvlars_probe.optimizers.rules` says what a rule is. The rules for timm (1.0), pytorch_optimizer (4) and lion-pytorch
(0.2) are tested against the packages. apex needs a CUDA compiler, so its rules are tested against its documented
formulas. Where a description can't express an option that is switched on (timm's ``caution``, for instance), the group
is unknown.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tvlars_probe.optimizers.description_words import NORM_CAP, Momentum, Preconditioner, Scaling
from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.rules import adam, decay, heavy_ball, number

if TYPE_CHECKING:
    from tvlars_probe.optimizers.rules import Rule, Settings


def _timm_lars(settings: Settings) -> GroupDescription:
    """timm's LARS adapts where there is weight decay, divides by ‖g‖ + λ‖w‖ + eps, and clips as LARC does."""
    adapts = settings["weight_decay"] != 0 or settings["always_adapt"]
    scaling = Scaling(
        kind="trust-ratio",
        eta=number(settings["trust_coeff"]),
        divisor="sum",
        eps=number(settings["eps"]),
        clip="rate" if settings["trust_clip"] else "none",
        idle_without="gradient",
    )
    return GroupDescription(
        optimizer="Lars",
        momentum=heavy_ball(settings, starts_whole=True),
        decay=decay(settings, "coupled"),
        scaling=scaling if adapts else Scaling(),
    )


def _timm_lamb(settings: Settings) -> GroupDescription | None:
    """timm's LAMB corrects the bias, adapts where there is weight decay, and clips all groups' gradients together."""
    if settings["caution"] or settings.get("decoupled_decay") or not settings["grad_averaging"]:
        return None
    adapts = settings["weight_decay"] != 0 or settings["always_adapt"]
    return _lamb(
        "Lamb",
        settings,
        bias_corrected=bool(settings["bias_correction"]),
        adapts=bool(adapts),
        clip="one" if settings["trust_clip"] else "none",
    )


def _apex_lamb(settings: Settings) -> GroupDescription | None:
    """apex's FusedLAMB is timm's LAMB in one kernel. With ``use_nvlamb`` it adapts groups without decay, too."""
    if not settings["adam_w_mode"] or not settings["grad_averaging"]:
        return None
    adapts = settings["weight_decay"] != 0 or settings.get("use_nvlamb", False)
    return _lamb("FusedLAMB", settings, bias_corrected=bool(settings["bias_correction"]), adapts=bool(adapts))


def _lamb(
    optimizer: str, settings: Settings, *, bias_corrected: bool, adapts: bool, **scaling: Any
) -> GroupDescription:
    """What timm's and apex's LAMB have in common."""
    beta1, beta2 = settings["betas"]
    # All groups' gradients are scaled as one, so both packages read the optimizer's default, not a group's own setting.
    clipped = settings.get("defaults", settings).get("max_grad_norm")
    # The official LAMB caps ‖w‖ at 10; these two don't.
    ratio = Scaling(kind="trust-ratio", direction="preconditioned", **scaling)
    return GroupDescription(
        optimizer=optimizer,
        momentum=Momentum(form="moving-average", beta=number(beta1), over="gradient", bias_corrected=bias_corrected),
        decay=decay(settings, "direction"),
        preconditioner=Preconditioner(
            kind="adam",
            beta=number(beta2),
            eps=number(settings["eps"]),
            bias_corrected=bias_corrected,
            second_moment="exp_avg_sq",
        ),
        scaling=ratio if adapts else Scaling(),
        max_grad_norm=number(clipped) if clipped else None,
    )


def _timm_sgdw(settings: Settings) -> GroupDescription | None:
    """timm's SGD with decoupled decay."""
    if settings.get("caution") or settings.get("corrected_weight_decay"):
        return None
    return GroupDescription(
        optimizer="SGDW",
        momentum=heavy_ball(settings, starts_whole=True),
        decay=decay(settings, "decoupled"),
        maximize=bool(settings.get("maximize")),
    )


def _timm_adamw(settings: Settings) -> GroupDescription | None:
    """timm's own AdamW, from before torch had one."""
    if any(settings.get(name) for name in ("caution", "corrected_weight_decay", "clipping_threshold")):
        return None
    return adam(settings, optimizer="AdamWLegacy", form="decoupled")


def _lion(settings: Settings, form: str = "decoupled", *, decayed: float | None = None) -> GroupDescription:
    """Lion (Chen et al. 2023, arXiv:2302.06675): the sign of one moving average, while another one is kept."""
    beta1, beta2 = settings["betas"]
    chosen = settings if decayed is None else {"weight_decay": decayed}
    return GroupDescription(
        optimizer="Lion",
        momentum=Momentum(form="moving-average", beta=number(beta2), over="gradient", output_beta=number(beta1)),
        decay=decay(chosen, form),
        preconditioner=Preconditioner(kind="sign"),
        maximize=bool(settings.get("maximize")),
    )


def _timm_lion(settings: Settings) -> GroupDescription | None:
    return None if settings["caution"] or settings["corrected_weight_decay"] else _lion(settings)


def _lucidrains_lion(settings: Settings) -> GroupDescription:
    """lion-pytorch's, whose ``decoupled_weight_decay`` divides λ by the rate at which the optimizer was made."""
    share = number(settings["_init_lr"]) if settings["decoupled_wd"] else 1.0
    return _lion(settings, decayed=number(settings["weight_decay"]) / share)


def _kozistr_lion(settings: Settings) -> GroupDescription | None:
    if _has_extras(settings, "adanorm", "cautious"):
        return None
    return _lion(settings, "decoupled" if settings["weight_decouple"] else "coupled")


def _novograd(
    settings: Settings, *, decays_apart: bool, starts_whole: bool, preconditioner: Preconditioner
) -> GroupDescription:
    """NovoGrad (Ginsburg et al. 2019, arXiv:1905.11286): momentum over gradients, each divided by its norm's average.

    The momentum isn't damped unless ``grad_averaging`` is set, and decay is added after the division.
    """
    beta1, beta2 = (number(beta) for beta in settings["betas"])
    return GroupDescription(
        optimizer="NovoGrad",
        momentum=Momentum(
            form="heavy-ball",
            beta=beta1,
            dampening=beta1 if settings["grad_averaging"] else 0.0,
            starts_whole=starts_whole,
        ),
        decay=decay(settings, "decoupled" if decays_apart else "direction"),
        preconditioner=replace(preconditioner, kind="norm", beta=beta2, eps=number(settings["eps"])),
        maximize=bool(settings.get("maximize")),
    )


def _timm_novograd(settings: Settings) -> GroupDescription | None:
    if settings["corrected_weight_decay"]:
        return None
    keeps_maximum = bool(settings["amsgrad"])
    norm = Preconditioner(
        keeps_maximum=keeps_maximum, whole="zero", second_moment="max_exp_avg_sq" if keeps_maximum else "exp_avg_sq"
    )
    return _novograd(settings, decays_apart=bool(settings["decoupled_decay"]), starts_whole=False, preconditioner=norm)


def _kozistr_novograd(settings: Settings) -> GroupDescription | None:
    if _has_extras(settings, "adam_debias"):
        return None
    norm = Preconditioner(whole="first", second_moment="grads_ema")
    return _novograd(settings, decays_apart=bool(settings["weight_decouple"]), starts_whole=True, preconditioner=norm)


def _has_extras(settings: Settings, *names: str) -> bool:
    """Whether a group of pytorch_optimizer has options that no description expresses: these, or others of many."""
    return any(settings.get(name) for name in (*names, "fixed_decay", "use_gc"))


def _kozistr_lars(settings: Settings) -> GroupDescription:
    """pytorch_optimizer's LARS leaves vectors out of decay and adaptation, and divides by ‖g‖ + λ‖w‖."""
    momentum = heavy_ball(settings)  # its buffer starts at zero, unlike torch's and timm's
    return GroupDescription(
        optimizer="LARS",
        momentum=momentum,
        decay=decay(settings, "coupled", spares_vectors=True),
        scaling=Scaling(
            kind="trust-ratio", eta=number(settings["trust_coefficient"]), divisor="sum", spares_vectors=True
        ),
        maximize=bool(settings.get("maximize")),
        update_norm="buffer" if momentum.form == "heavy-ball" else "weights",
    )


def _kozistr_lamb(settings: Settings) -> GroupDescription | None:
    """pytorch_optimizer's LAMB corrects the first moment's bias by the rate alone, and adds eps to the divisor, too.

    The second moment's bias is not corrected.
    """
    further = ("rectify", "adanorm", "pre_norm")
    # With decoupled decay it takes ‖w‖ after the decay, which no description expresses.
    decays_apart = settings["weight_decay"] and settings["weight_decouple"]
    if any(settings.get(name) for name in further) or decays_apart or not settings["grad_averaging"]:
        return None
    beta1, beta2 = settings["betas"]
    eps = number(settings["eps"])
    scaling = Scaling(kind="trust-ratio", direction="preconditioned", weight_cap=NORM_CAP, eps=eps)
    return GroupDescription(
        optimizer="Lamb",
        momentum=Momentum(
            form="moving-average",
            beta=number(beta1),
            over="gradient",
            rate_corrected=not settings.get("adam_debias", False),
        ),
        decay=decay(settings, "direction"),
        preconditioner=Preconditioner(kind="adam", beta=number(beta2), eps=eps, second_moment="exp_avg_sq"),
        scaling=Scaling() if settings["adam"] else scaling,
        maximize=bool(settings.get("maximize")),
    )


def _apex_adam(settings: Settings) -> GroupDescription | None:
    if not settings["bias_correction"]:
        return None
    return adam(settings, optimizer="FusedAdam", form="decoupled" if settings["adam_w_mode"] else "coupled")


def _apex_sgd(settings: Settings) -> GroupDescription | None:
    if settings["wd_after_momentum"]:
        return None
    return GroupDescription(
        optimizer="FusedSGD",
        momentum=heavy_ball(settings, starts_whole=True),
        decay=decay(settings, "coupled"),
    )


def _apex_adagrad(settings: Settings) -> GroupDescription:
    # It adds λw to the preconditioned direction. Since nothing scales that, it is decoupled decay by another name.
    decays_apart = bool(settings["adagrad_w_mode"])
    return GroupDescription(
        optimizer="FusedAdagrad",
        decay=decay(settings, "direction" if decays_apart else "coupled"),
        preconditioner=Preconditioner(kind="adagrad", eps=number(settings["eps"]), second_moment="sum"),
    )


FOREIGN: dict[str, Rule] = {
    "timm.optim.lars.Lars": _timm_lars,
    "timm.optim.lamb.Lamb": _timm_lamb,
    "timm.optim.sgdw.SGDW": _timm_sgdw,
    "timm.optim.adamw.AdamWLegacy": _timm_adamw,
    "timm.optim.lion.Lion": _timm_lion,
    "timm.optim.nvnovograd.NvNovoGrad": _timm_novograd,
    "pytorch_optimizer.optimizer.lars.LARS": _kozistr_lars,
    "pytorch_optimizer.optimizer.lamb.Lamb": _kozistr_lamb,
    "pytorch_optimizer.optimizer.lion.Lion": _kozistr_lion,
    "pytorch_optimizer.optimizer.novograd.NovoGrad": _kozistr_novograd,
    "lion_pytorch.lion_pytorch.Lion": _lucidrains_lion,
    "apex.optimizers.fused_lamb.FusedLAMB": _apex_lamb,
    "apex.optimizers.fused_adam.FusedAdam": _apex_adam,
    "apex.optimizers.fused_sgd.FusedSGD": _apex_sgd,
    "apex.optimizers.fused_adagrad.FusedAdagrad": _apex_adagrad,
}
"""The rule of each class, by the class's full name."""

_EARLIEST = {"pytorch_optimizer": 4}
"""The first described major version of packages whose earlier versions compute something else under the same names."""

WRAPPERS = {
    "accelerate.optimizer.AcceleratedOptimizer": "optimizer",
    "lightning.pytorch.core.optimizer.LightningOptimizer": "_optimizer",
    "pytorch_lightning.core.optimizer.LightningOptimizer": "_optimizer",
    "lightning.fabric.wrappers._FabricOptimizer": "_optimizer",
    "lightning_fabric.wrappers._FabricOptimizer": "_optimizer",
}
"""Optimizers that only delegate to another one, with the attribute that holds it."""

_BY_DEEPSPEED = "is DeepSpeed's, which spreads weights, gradients or moments over ranks"

SPREADING = {
    **dict.fromkeys(
        ("DeepSpeedOptimizer", "ZeROOptimizer", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"),
        _BY_DEEPSPEED,
    ),
    "deepspeed.runtime.bf16_optimizer.BF16_Optimizer": _BY_DEEPSPEED,
    "deepspeed.runtime.fp16.fused_optimizer.FP16_Optimizer": _BY_DEEPSPEED,
    "deepspeed.runtime.fp16.unfused_optimizer.FP16_UnfusedOptimizer": _BY_DEEPSPEED,
    "fairscale.optim.oss.OSS": "is fairscale's, which spreads gradients and moments over ranks",
    "torch.distributed.optim.post_localSGD_optimizer.PostLocalSGDOptimizer": "lets each rank have weights of its own",
}
"""Optimizers whose step no rank sees whole, by full name or by name alone, and what each does."""


def is_described_version(path: str) -> bool:
    """Whether the rules hold for the installed version of the package that ``path``, a class's full name, is in."""
    package = path.partition(".")[0]
    if package not in _EARLIEST:
        return True
    try:
        return int(metadata.version(package).partition(".")[0]) >= _EARLIEST[package]
    except (metadata.PackageNotFoundError, ValueError):
        return False
