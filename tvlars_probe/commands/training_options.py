"""What to train, as options of a command line, and the configuration that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.options import Choice, FilePath, option
from tvlars_probe.commands.probe_options import PROBE_OPTIONS, PROBE_PARTS
from tvlars_probe.data.registry import AUGMENTATIONS, DATASETS, DataConfig
from tvlars_probe.errors import UserError
from tvlars_probe.exports.budget import TRACKERS
from tvlars_probe.findings.ids import IDS, WORDS
from tvlars_probe.models.backbones import MODELS, STEMS, ModelConfig
from tvlars_probe.models.initialization import INITIALIZATIONS
from tvlars_probe.optimizers.registry import OPTIMIZERS, OptimizerConfig
from tvlars_probe.optimizers.schedules import SCHEDULES, ScheduleConfig
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import DETAILS, ON_PROBE_ERROR, RecordConfig
from tvlars_probe.runners.configuration.training import PRECISIONS, TrainConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.phases.modes import MODES

if TYPE_CHECKING:
    from collections.abc import Callable

_RATES = "; ".join(f"{name} {entry.default_lr:g}" for name, entry in OPTIMIZERS.items())
"""Default of ``--lr`` in the help."""


def _same(*names: str) -> dict[str, str]:
    """Options that have the names of their fields."""
    return {name: name for name in names}


# Where options go in `TrainConfig`: for each of its parts the class, and the field of each option. Options that are in
# neither `_PARTS` nor `_PLAIN` concern the run directory.
_PARTS: dict[str, tuple[type[Any], dict[str, str]]] = {
    "data": (
        DataConfig,
        {"dataset": "name", "data_dir": "folder", **_same("download", "val", "limit", "image_size", "augmentation")},
    ),
    "model": (ModelConfig, {"model": "name", **_same("stem", "winit", "channels_last")}),
    "optimizer": (
        OptimizerConfig,
        {
            "optimizer": "name",
            **_same(
                "lr", "weight_decay", "momentum", "nesterov", "eta", "lmbda", "alpha", "delay", "gamma_min",
                "denominator", "exclusion", "trust_clip", "adam", "excluded_lr", "muon_rest", "muon_rest_lr",
            ),
        },
    ),
    "schedule": (ScheduleConfig, {"schedule": "name", **_same("warmup_epochs", "peak_lr")}),
    "place": (PlaceConfig, _same("devices", "nproc", "threads", "port", "workers")),
    "recording": (
        RecordConfig,
        {
            "record": "detail",
            "record_every": "every",
            **_same(
                "checkpoint_every", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints",
                "train_eval_samples", "on_probe_error", "spectral_every", "noise", "findings", "stop_on", "export",
                "export_layers",
            ),
        },
    ),
    "barlow": (
        BarlowTwinsConfig,
        {
            "cl_epochs": "epochs",
            "btlmbda": "lmbda",
            **_same("projector", "lr_classifier", "lr_backbone", "probe_batch_size"),
        },
    ),
    **PROBE_PARTS,
}  # fmt: skip
_PLAIN = ("mode", "batch_size", "micro_batch", "epochs", "seed", "precision", "sync_bn")
"""Options that are fields of `TrainConfig` itself."""


_DATA, _TRAINING, _BARLOW, _OPTIMIZER = "Data and model", "Training", "Barlow Twins", "Optimizer"
_RECORDING, _DEVICES = "Recording", "Devices"

_OPTIONS = (
    option("--dataset", "--ds", section=_DATA, type=Choice(DATASETS), default="digits", help="Data set."),
    option(
        "--data-dir", section=_DATA, type=FilePath(path_type=str),
        help="Folder of the data, if it isn't in the usual places.",
    ),
    option(
        "--download/--no-download", section=_DATA, default=None, show_default="cifar10 and cifar100 only",
        help="Let torchvision download it if missing.",
    ),
    option("--val", section=_DATA, type=float, default=0.0, help="Fraction of the training data to hold out."),
    option("--limit", section=_DATA, type=int, help="Use only so many training and test samples."),
    option(
        "--image-size", section=_DATA, type=int, show_default="as they are",
        help="Resize the images of an imagefolder to this side.",
    ),
    option(
        "--augmentation", section=_DATA, type=Choice(AUGMENTATIONS), default="auto",
        help="Of a classifier's training images: crop, mirror, rotation; auto: as the data set has it.",
    ),
    option("--model", section=_DATA, type=Choice(MODELS), default="cnn", help="Model."),
    option(
        "--stem", section=_DATA, type=Choice(STEMS), default="imagenet",
        help="First layers of a ResNet: 7x7 with stride and pooling, or 3x3.",
    ),
    option(
        "--winit", section=_DATA, type=Choice(INITIALIZATIONS), default="default",
        help="Random initial weights of convolutions and linear layers; default: torch's own.",
    ),
    option(
        "--channels-last", section=_DATA, is_flag=True,
        help="Channels side by side in memory: often faster; rounds otherwise.",
    ),
    option(
        "--mode", section=_TRAINING, type=Choice(MODES), default="clf",
        help="clf: classification. bt: Barlow Twins, then a linear probe.",
    ),
    option(
        "--batch-size", "--bs", section=_TRAINING, type=int, default=512,
        help="Batch of one update, over all ranks.",
    ),
    option(
        "--micro-batch", section=_TRAINING, type=int,
        help="Most samples a rank computes at once; gradients accumulate to the same update (BatchNorm apart: its "
        "statistics are the micro-batch's).",
    ),
    option(
        "--epochs", section=_TRAINING, type=int, default=20,
        help="Passes over the training data; in bt those of the linear probe.",
    ),
    option(
        "--schedule", "--sd", section=_TRAINING, type=Choice(SCHEDULES), default="none",
        help="Schedule of the rate.",
    ),
    option(
        "--warmup-epochs", section=_TRAINING, type=float, show_default="20 or a fifth of the epochs, whichever is less",
        help="Length of lars-warm's warm-up, fractions allowed.",
    ),
    option("--seed", section=_TRAINING, type=int, default=0, help="Seed of everything random."),
    option("--precision", section=_TRAINING, type=Choice(PRECISIONS), default="float32", help="bf16 is by autocast."),
    option(
        "--sync-bn", section=_TRAINING, is_flag=True,
        help="BatchNorm over the samples of all ranks; bt always has it.",
    ),
    option(
        "--cl-epochs", "--cl_epochs", section=_BARLOW, type=int, default=1000,
        help="Passes over the data of pretraining.",
    ),
    option("--btlmbda", section=_BARLOW, type=float, default=0.005, help="Weight of the redundancy term."),
    option("--projector", section=_BARLOW, default="4096-4096-4096", help="Widths of the projector's layers."),
    option(
        "--lr-classifier", "--lr_classifier", section=_BARLOW, type=float, default=0.3,
        help="Learning rate of the linear probe: SGD, cosine.",
    ),
    option(
        "--lr-backbone", "--lr_backbone", section=_BARLOW, type=float, default=0.0,
        help="Learning rate of the backbone during the linear probe; 0 freezes it.",
    ),
    option("--probe-batch-size", section=_BARLOW, type=int, default=256, help="Batch of the linear probe."),
    option("--optimizer", "--opt", section=_OPTIMIZER, type=Choice(OPTIMIZERS), default="lars", help="Optimizer."),
    option(
        "--lr", section=_OPTIMIZER, type=float, show_default=_RATES,
        help="Learning rate; the schedule multiplies it, lars-warm also by batch/256.",
    ),
    option(
        "--peak-lr", section=_OPTIMIZER, type=float, show_default="what --lr comes to",
        help="Highest rate that the schedule reaches, with any batch size; in place of --lr.",
    ),
    option("--weight-decay", "--wd", section=_OPTIMIZER, type=float, default=5e-4, help="Weight decay."),
    option("--momentum", section=_OPTIMIZER, type=float, default=0.9, help="Momentum of lars, tvlars and sgd."),
    option("--nesterov", section=_OPTIMIZER, is_flag=True, help="Nesterov momentum for sgd."),
    option("--eta", section=_OPTIMIZER, type=float, default=0.001, help="Trust coefficient of lars and tvlars."),
    option("--lmbda", section=_OPTIMIZER, type=float, default=0.001, help="TVLARS' delay factor, per update."),
    option("--alpha", section=_OPTIMIZER, type=float, default=0.1, help="TVLARS' alpha."),
    option("--delay", section=_OPTIMIZER, type=float, default=0.0, help="TVLARS' d_e, in updates."),
    option("--gamma-min", section=_OPTIMIZER, type=float, default=0.0, help="TVLARS' gamma_min."),
    option(
        "--denominator", section=_OPTIMIZER, type=Choice(("decayed", "sum", "grad")), default="decayed",
        help="What lars and tvlars divide by: |g + wd w|, |g| + wd |w|, or |g|.",
    ),
    option(
        "--exclusion", section=_OPTIMIZER, type=Choice(("ndim", "undecayed")), default="ndim",
        help="What lars and tvlars don't adapt: tensors of one dimension, or also any that are not decayed.",
    ),
    option(
        "--trust-clip", section=_OPTIMIZER, is_flag=True,
        help="Clip the trust ratio: lars, tvlars to lr; lamb, nlamb to 1.",
    ),
    option("--adam", section=_OPTIMIZER, is_flag=True, help="Switch the trust ratio of lamb and nlamb off."),
    option(
        "--excluded-lr", section=_OPTIMIZER, type=float, show_default="--lr",
        help="Learning rate of what lars and tvlars exclude: biases and normalisation.",
    ),
    option(
        "--muon-rest", section=_OPTIMIZER, type=Choice(OPTIMIZERS["muon"].rests),
        show_default=OPTIMIZERS["muon"].rests[0],
        help="Optimizer of the tensors that muon doesn't take: all but matrices between the first and the last layer.",
    ),
    option(
        "--muon-rest-lr", section=_OPTIMIZER, type=float,
        show_default="; ".join(f"{name} {OPTIMIZERS[name].default_lr:g}" for name in OPTIMIZERS["muon"].rests),
        help="Its learning rate.",
    ),
    option(
        "--record", section=_RECORDING, type=Choice(DETAILS), default="full",
        help="Which norms of the layers: all, all but the update's, or none.",
    ),
    option("--record-every", section=_RECORDING, type=int, default=1, help="Record the layers every so many steps."),
    option(
        "--noise", section=_RECORDING, is_flag=True,
        help="Estimate the gradient's noise in recorded steps, from micro-batches and ranks.",
    ),
    option(
        "--spectral-every", section=_RECORDING, type=int, show_default="never",
        help="Measure the spectral norms of weights and updates every so many steps.",
    ),
    option(
        "--findings", section=_RECORDING, greedy=True, type=Choice((*WORDS, *IDS)), default=("default",),
        help="Rules that look for what is wrong while the run trains.",
    ),
    option(
        "--stop-on", section=_RECORDING, greedy=True, type=Choice(("none", *IDS)), show_default="none",
        help="End the run, with a checkpoint, when one of these rules finds something.",
    ),
    option(
        "--checkpoint-every", section=_RECORDING, type=int, default=1,
        help="Epochs between checkpoints (the last and the best are kept); 0 writes only the last.",
    ),
    option(
        "--checkpoint-steps", section=_RECORDING, type=int, show_default="at epochs' ends only",
        help="Updates between further checkpoints.",
    ),
    option(
        "--checkpoint-minutes", section=_RECORDING, type=float, show_default="at epochs' ends only",
        help="Minutes between further checkpoints.",
    ),
    option(
        "--keep-checkpoints", section=_RECORDING, type=int, default=1,
        help="How many of the latest are kept, beside the best; 0 keeps all.",
    ),
    option(
        "--on-probe-error", section=_RECORDING, type=Choice(ON_PROBE_ERROR), default="warn",
        help="When a probe raises: go on training without the probes, or end the run.",
    ),
    option(
        "--train-eval-samples", section=_RECORDING, type=int, default=10_000,
        help="Training samples evaluated at each epoch's end; 0 for none.",
    ),
    option(
        "--export", section=_RECORDING, greedy=True, type=Choice(TRACKERS), show_default="none",
        help="Trackers that are sent the run while it trains.",
    ),
    option(
        "--export-layers", section=_RECORDING, greedy=True, metavar="GLOB...", show_default="none",
        help="Tensors of which they get all figures, by patterns of their names.",
    ),
    *PROBE_OPTIONS,
    option(
        "--devices", "--dv", section=_DEVICES, greedy=True, default=("auto",),
        show_default="first CUDA device, else cpu",
        help="cpu, or numbers of CUDA devices, one rank each.",
    ),
    option("--nproc", section=_DEVICES, type=int, show_default="1", help="Ranks on the CPU."),
    option("--threads", section=_DEVICES, type=int, show_default="cores / ranks", help="torch threads per rank."),
    option(
        "--port", section=_DEVICES, type=int, default=0, show_default="a free one",
        help="Port for the ranks to meet.",
    ),
    option("--workers", section=_DEVICES, type=int, default=4, help="Threads that decode image files."),
)  # fmt: skip
"""All options that say what to train, in the order of the help."""


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options that say what to train."""
    # Reversed: the decorator that is applied last stands first in the help.
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def build_config(values: dict[str, Any]) -> TrainConfig:
    """The configuration that the options of a command line describe.

    Args:
        values: the options by the names of their parameters.

    Raises:
        UserError: a value is outside its range, or two don't go together.
    """
    if values["lr"] is not None and values["peak_lr"] is not None:
        raise UserError(
            f"--lr {values['lr']:g} and --peak-lr {values['peak_lr']:g} are two words for one rate: --peak-lr "
            "is what the schedule reaches, --lr what it multiplies; leave one of them out"
        )
    parts = {
        name: kind(**{field: values[given] for given, field in fields.items()})
        for name, (kind, fields) in _PARTS.items()
    }
    return TrainConfig(**parts, **{name: values[name] for name in _PLAIN})


def changes_on_resume(ctx: click.Context) -> dict[str, Any]:
    """The values of the options given beside ``--resume``, by the fields that they change.

    Raises:
        UserError: an option is given that says neither where a run computes nor what of it is recorded.
    """
    allowed = {**_PARTS["place"][1], **_PARTS["recording"][1]}
    changes = {}
    for name, value in ctx.params.items():
        # Defaults don't count: the run keeps what it was started with.
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE or name == "resume":
            continue
        if name not in allowed:
            raise UserError(
                f"--{name.replace('_', '-')} can't be changed in a run that is resumed (only devices, processes and "
                f"recording can); leave it out, or start a new run"
            )
        changes[allowed[name]] = value
    return changes
