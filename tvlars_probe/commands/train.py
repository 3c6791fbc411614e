"""``tvlars-probe train``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.options import Command, FilePath, option
from tvlars_probe.commands.text import say
from tvlars_probe.curvature.results import BN_MODES, OPERATORS
from tvlars_probe.data.registry import AUGMENTATIONS, DATASETS, DataConfig
from tvlars_probe.errors import UserError
from tvlars_probe.models.backbones import MODELS, STEMS, ModelConfig
from tvlars_probe.models.initialization import INITIALIZATIONS
from tvlars_probe.optimizers.registry import OPTIMIZERS, OptimizerConfig
from tvlars_probe.optimizers.schedules import SCHEDULES, ScheduleConfig
from tvlars_probe.runners.config import (
    DETAILS,
    ON_PROBE_ERROR,
    PRECISIONS,
    PlaceConfig,
    RecordConfig,
    SharpnessConfig,
    TrainConfig,
)
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.phases.modes import MODES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tvlars_probe.runners.planning import Done, Job

_RATES = "; ".join(f"{name} {entry.default_lr:g}" for name, entry in OPTIMIZERS.items())

# Where each option's value goes in `TrainConfig`; the others concern the run directory.
_SECTIONS: dict[str, tuple[str, type[Any], dict[str, str]]] = {
    "data": (
        "data",
        DataConfig,
        {
            "dataset": "name",
            "data_dir": "folder",
            **{name: name for name in ("download", "val", "limit", "image_size", "augmentation")},
        },
    ),
    "model": ("model", ModelConfig, {"model": "name", "stem": "stem", "winit": "winit"}),
    "optimizer": (
        "optimizer",
        OptimizerConfig,
        {
            "optimizer": "name",
            **{
                name: name
                for name in (
                    "lr", "weight_decay", "momentum", "nesterov", "eta", "lmbda", "alpha", "delay", "gamma_min",
                    "denominator", "exclusion", "trust_clip", "adam", "excluded_lr",
                )
            },
        },
    ),
    "schedule": ("schedule", ScheduleConfig, {"schedule": "name", "warmup_epochs": "warmup_epochs"}),
    "place": ("place", PlaceConfig, {name: name for name in ("devices", "nproc", "threads", "port", "workers")}),
    "recording": (
        "recording",
        RecordConfig,
        {
            "record": "detail",
            "record_every": "every",
            **{
                name: name
                for name in (
                    "checkpoint_every", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints",
                    "train_eval_samples", "on_probe_error",
                )
            },
        },
    ),
    "barlow": (
        "barlow",
        BarlowTwinsConfig,
        {
            "cl_epochs": "epochs",
            "btlmbda": "lmbda",
            **{name: name for name in ("projector", "lr_classifier", "lr_backbone", "probe_batch_size")},
        },
    ),
    "sharpness": (
        "sharpness",
        SharpnessConfig,
        {
            "sharpness_every": "every",
            "sharpness_operators": "operators",
            "sharpness_samples": "samples",
            "sharpness_bn": "bn_mode",
            "sharpness_tol": "tol",
            "probe_budget": "budget",
        },
    ),
}  # fmt: skip
_PLAIN = ("mode", "batch_size", "micro_batch", "epochs", "seed", "precision", "sync_bn")


def _choice(names: Any) -> click.Choice[str]:
    return click.Choice(list(names), case_sensitive=False)


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """All options that say what to train."""
    d, t, b, o = "Data and model", "Training", "Barlow Twins", "Optimizer"
    r, s, p = "Recording", "Sharpness", "Devices"
    options = (
        option("--dataset", "--ds", section=d, type=_choice(DATASETS), default="digits", help="Data set."),
        option("--data-dir", section=d, type=FilePath(path_type=str), help="Its folder, if not in the usual places."),
        option(
            "--download/--no-download", section=d, default=None, show_default="cifar10 and cifar100 only",
            help="Let torchvision download it if missing.",
        ),
        option("--val", section=d, type=float, default=0.0, help="Fraction of the training data to hold out."),
        option("--limit", section=d, type=int, help="Use only so many training and test samples."),
        option(
            "--image-size", section=d, type=int, show_default="as they are",
            help="Side to which the images of an imagefolder are brought.",
        ),
        option(
            "--augmentation", section=d, type=_choice(AUGMENTATIONS), default="auto",
            help="Of a classifier's training images: crop, mirror, rotation; auto: as the data set has it.",
        ),
        option("--model", section=d, type=_choice(MODELS), default="cnn", help="Model."),
        option(
            "--stem", section=d, type=_choice(STEMS), default="imagenet",
            help="First layers of a ResNet: 7x7 with stride and pooling, or 3x3.",
        ),
        option(
            "--winit", section=d, type=_choice(INITIALIZATIONS), default="default",
            help="How the weights of convolutions and linear layers are drawn; default: as the layers do it.",
        ),
        option(
            "--mode", section=t, type=_choice(MODES), default="clf",
            help="clf: classification. bt: Barlow Twins, then a linear probe.",
        ),
        option("--batch-size", "--bs", section=t, type=int, default=512, help="Batch of one update, over all ranks."),
        option(
            "--micro-batch", section=t, type=int,
            help="Most samples a rank computes at once; gradients accumulate to the same update (BatchNorm apart: its "
            "statistics are the micro-batch's).",
        ),
        option("--epochs", section=t, type=int, default=20, help="Passes over the training data; bt: the probe's."),
        option("--schedule", "--sd", section=t, type=_choice(SCHEDULES), default="none", help="Schedule of the rate."),
        option(
            "--warmup-epochs", section=t, type=float, show_default="20 or a fifth of the epochs, whichever is less",
            help="Length of lars-warm's warm-up, fractions allowed.",
        ),
        option("--seed", section=t, type=int, default=0, help="Seed of everything random."),
        option("--precision", section=t, type=_choice(PRECISIONS), default="float32", help="bf16 is by autocast."),
        option("--sync-bn", section=t, is_flag=True, help="BatchNorm over the samples of all ranks; bt always has it."),
        option(
            "--cl-epochs", "--cl_epochs", section=b, type=int, default=1000, help="Passes over the data of pretraining."
        ),
        option("--btlmbda", section=b, type=float, default=0.005, help="Weight of the redundancy term."),
        option("--projector", section=b, default="4096-4096-4096", help="Widths of the projector's layers."),
        option(
            "--lr-classifier", "--lr_classifier", section=b, type=float, default=0.3,
            help="Learning rate of the linear probe: SGD, cosine.",
        ),
        option(
            "--lr-backbone", "--lr_backbone", section=b, type=float, default=0.0,
            help="That of the backbone meanwhile; 0 freezes it.",
        ),
        option("--probe-batch-size", section=b, type=int, default=256, help="Batch of the linear probe."),
        option("--optimizer", "--opt", section=o, type=_choice(OPTIMIZERS), default="lars", help="Optimizer."),
        option("--lr", section=o, type=float, show_default=_RATES, help="Learning rate."),
        option("--weight-decay", "--wd", section=o, type=float, default=5e-4, help="Weight decay."),
        option("--momentum", section=o, type=float, default=0.9, help="Momentum of lars, tvlars and sgd."),
        option("--nesterov", section=o, is_flag=True, help="Nesterov momentum for sgd."),
        option("--eta", section=o, type=float, default=0.001, help="Trust coefficient of lars and tvlars."),
        option("--lmbda", section=o, type=float, default=0.001, help="TVLARS' delay factor, per update."),
        option("--alpha", section=o, type=float, default=0.1, help="TVLARS' alpha."),
        option("--delay", section=o, type=float, default=0.0, help="TVLARS' d_e, in updates."),
        option("--gamma-min", section=o, type=float, default=0.0, help="TVLARS' gamma_min."),
        option(
            "--denominator", section=o, type=_choice(("decayed", "sum", "grad")), default="decayed",
            help="What lars and tvlars divide by: |g + wd w|, |g| + wd |w|, or |g|.",
        ),
        option(
            "--exclusion", section=o, type=_choice(("ndim", "undecayed")), default="ndim",
            help="What lars and tvlars don't adapt: tensors of one dimension, or also any that are not decayed.",
        ),
        option("--trust-clip", section=o, is_flag=True, help="Clip the trust ratio: lars, tvlars to lr; lamb to 1."),
        option("--adam", section=o, is_flag=True, help="Switch lamb's trust ratio off."),
        option(
            "--excluded-lr", section=o, type=float, show_default="--lr",
            help="Learning rate of what lars and tvlars exclude: biases and normalisation.",
        ),
        option(
            "--record", section=r, type=_choice(DETAILS), default="full",
            help="Which norms of the layers: all, all but the update's, or none.",
        ),
        option("--record-every", section=r, type=int, default=1, help="Record the layers every so many steps."),
        option(
            "--checkpoint-every", section=r, type=int, default=1,
            help="Epochs between checkpoints (the last and the best are kept); 0 writes only the last.",
        ),
        option(
            "--checkpoint-steps", section=r, type=int, show_default="at epochs' ends only",
            help="Updates between further checkpoints.",
        ),
        option(
            "--checkpoint-minutes", section=r, type=float, show_default="at epochs' ends only",
            help="Minutes between further checkpoints.",
        ),
        option(
            "--keep-checkpoints", section=r, type=int, default=1,
            help="How many of the latest are kept, beside the best; 0 keeps all.",
        ),
        option(
            "--on-probe-error", section=r, type=_choice(ON_PROBE_ERROR), default="warn",
            help="When a probe raises: go on training without the probes, or end the run.",
        ),
        option(
            "--train-eval-samples", section=r, type=int, default=10_000,
            help="Training samples evaluated at each epoch's end; 0 for none.",
        ),
        option(
            "--sharpness-every", section=s,
            help="Measure the Hessian's top eigenvalue every so many steps, or 'log': dense early.",
        ),
        option(
            "--sharpness-operators", section=s, greedy=True, type=_choice(OPERATORS), default=OPERATORS,
            help="Of the Hessian itself, as the optimizer's rates scale it, and relative to each tensor's norm.",
        ),
        option("--sharpness-samples", section=s, type=int, default=256, help="Training samples it is measured on."),
        option("--sharpness-bn", section=s, type=_choice(BN_MODES), default="train", help="BatchNorm meanwhile."),
        option("--sharpness-tol", section=s, type=float, default=1e-3, help="Relative error of the eigenvalue."),
        option("--probe-budget", section=s, help="Highest share of the run's time for it, such as 10%."),
        option(
            "--devices", "--dv", section=p, greedy=True, default=("auto",), show_default="first CUDA device, else cpu",
            help="cpu, or numbers of CUDA devices, one rank each.",
        ),
        option("--nproc", section=p, type=int, show_default="1", help="Ranks on the CPU."),
        option("--threads", section=p, type=int, show_default="cores / ranks", help="torch threads per rank."),
        option("--port", section=p, type=int, default=0, show_default="a free one", help="Port for the ranks to meet."),
        option("--workers", section=p, type=int, default=4, help="Threads that decode image files."),
    )  # fmt: skip
    for add in reversed(options):
        command = add(command)
    return command


def build_config(values: dict[str, Any]) -> TrainConfig:
    """The configuration that a command line's values say."""
    parts = {
        name: kind(**{field: values[given] for given, field in fields.items()})
        for name, kind, fields in _SECTIONS.values()
    }
    return TrainConfig(**parts, **{name: values[name] for name in _PLAIN})


def changes_on_resume(ctx: click.Context) -> dict[str, Any]:
    """The options given beside --resume, which may only be such as don't change a run's numbers."""
    allowed = {**_SECTIONS["place"][2], **_SECTIONS["recording"][2]}
    changes = {}
    for name, value in ctx.params.items():
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE or name == "resume":
            continue
        if name not in allowed:
            raise UserError(
                f"--{name.replace('_', '-')} can't be changed in a run that is resumed (only devices, processes and "
                f"recording can); leave it out, or start a new run"
            )
        changes[allowed[name]] = value
    return changes


@click.command(cls=Command, name="train", context_settings={"max_content_width": 110})
@training_options
@option("--run-dir", section="Run", type=FilePath(), show_default="a telling name under runs/", help=
        "Folder of the run. The same command again continues an interrupted run and skips a finished one.")  # fmt: skip
@option("--resume", section="Run", type=FilePath(), help="Continue this run from its last checkpoint.")
@option("--rerun", section="Run", is_flag=True, help="Train again, in a new folder beside the run that is there.")
@click.pass_context
def command(ctx: click.Context, /, run_dir: Path | None, resume: Path | None, rerun: bool, **values: Any) -> None:
    """Train a model and record every layer.

    Trains an image classifier on one device, on several CUDA devices (--devices 0 1 2 3), on CPU ranks (--devices cpu
    --nproc N), or as torchrun started it, and records every layer's norms and trust ratios in every step into the
    run directory.
    """
    if resume is not None:
        changes = changes_on_resume(ctx)
        from tvlars_probe.runners import train as runner

        path = runner.resume(resume, changes, command=tuple(sys.argv), announce=_announce)
    else:
        config = build_config(values)
        from tvlars_probe.runners import train as runner

        path = runner.train(config, run_dir, rerun=rerun, command=tuple(sys.argv), announce=_announce)
    _summarise(path)


def _announce(plan: Job | Done) -> None:
    from tvlars_probe.runners.planning import Done

    if isinstance(plan, Done):
        say(f"Already trained: {plan.path}")
        if plan.recorded_otherwise:
            say(
                "It was recorded with other options than these, which had no effect: --rerun trains it again, "
                "'tvlars-probe sharpness' measures its checkpoints"
            )
    elif plan.checkpoint is not None:
        say(f"Continuing {plan.path} from {plan.checkpoint.name}")
    elif plan.continues:
        say(f"Continuing {plan.path} from the beginning: it has no checkpoint yet")
    else:
        say(f"Recording into {plan.path}")


def _summarise(path: Path) -> None:
    from tvlars_probe.commands.show import summary_lines
    from tvlars_probe.runs import open_run

    for line in summary_lines(open_run(path)):
        say(line)
