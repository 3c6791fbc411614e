"""The interface of a phase: all that differs between classification, pretraining and linear evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from tvlars_probe.curvature.losses import Composed
from tvlars_probe.runners.phases.modes import MODES, PHASES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.data.augmentation import Augmentation
    from tvlars_probe.data.batches import BatchPlan, Indices, Share
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.optimizers.schedules import Schedule, ScheduleConfig
    from tvlars_probe.runners.configuration.training import TrainConfig
    from tvlars_probe.runners.evaluation import Tally
    from tvlars_probe.runners.phases.replica import Replica

    Batch = tuple[Tensor, ...]


class Phase(ABC):
    """A phase of a run: its batches, model, optimizer, loss and scores, all determined by the configuration.

    The training loop, the checks before a run and the measurements after it use these methods, and never depend on
    which phase it is. A new phase is one subclass, of `FollowingPhase` where it goes on from another's model, and one
    line in `tvlars_probe.runners.phases.modes.MODES`.

    Args:
        config: configuration of the run.
        name: name of the phase in the trace.

    Attributes:
        views: how many views of each sample the model takes.
        is_sum_over_samples: whether the loss of a batch is the mean of a loss per sample, so that it can be computed in
            pieces.
        batch_option: the option that sets the batch size.
    """

    views: ClassVar[int] = 1
    is_sum_over_samples: ClassVar[bool] = True
    batch_option: ClassVar[str] = "--batch-size"

    def __init__(self, config: TrainConfig, name: str) -> None:
        self.config, self.name = config, name

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Passes over the training data."""

    @property
    def schedule(self) -> ScheduleConfig:
        """The learning-rate schedule: the run's own, unless a phase has another."""
        return self.config.schedule

    def build_schedule(self, plan: BatchPlan) -> Schedule:
        """The schedule of the phase's steps.

        Args:
            plan: the phase's batches.

        Raises:
            UserError: the warm-up takes all steps of the phase.
        """
        return self.schedule.build(epochs=self.epochs, steps_per_epoch=plan.steps_per_epoch, batch_size=plan.batch_size)

    @property
    def updates_before(self) -> int:
        """Updates that the optimizer has counted before the phase's first one: a branch goes on from its parent's."""
        return 0

    @property
    def model_option(self) -> str:
        """The option that decides the size of the model, with its value, for error messages."""
        return f"--model {self.config.model.name}"

    @abstractmethod
    def plan(self, samples: int, *, rank: int = 0, world_size: int = 1) -> BatchPlan:
        """How epochs of ``samples`` samples are cut into batches, and each batch over the ranks."""

    @abstractmethod
    def build_model(self, data: ImageData) -> nn.Module:
        """The model, with fresh weights drawn from torch's global generator."""

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """An optimizer of ``model``: the run's own kind, unless a phase has another."""
        return self.config.optimizer.build(model.parameters())

    @abstractmethod
    def augmentation(self) -> Augmentation:
        """What makes training batches from images."""

    @abstractmethod
    def tally(self, device: torch.device) -> Tally:
        """An empty tally for what an epoch's batches score."""

    @abstractmethod
    def backward(self, replica: Replica, share: Share, epoch: int, tally: Tally) -> Tensor:
        """Add the gradient of the global batch's mean loss to the parameters, from this rank's share of the batch.

        Under DDP, the mean over ranks of what each rank adds is that gradient.

        Args:
            replica: this rank's copy of the model.
            share: this rank's samples of the batch.
            epoch: index of the epoch, for the augmentation.
            tally: counts the share's scores.

        Returns:
            the mean loss of the share, a scalar on the device.
        """

    @abstractmethod
    def evaluate(self, replica: Replica, data: ImageData, tally: Tally) -> dict[str, float | None]:
        """An epoch's row of the table ``epochs``: scores counted in training, and scores of the model as it is now."""

    @abstractmethod
    def probe_batch(self, images: TensorImages, indices: Indices, dtype: torch.dtype) -> Batch:
        """The samples at ``indices`` as a batch to probe the loss on. What is random is the same for every run."""

    @abstractmethod
    def probe_outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs on a batch made by `probe_batch`."""

    @abstractmethod
    def loss_of_outputs(self, outputs: Any, batch: Batch) -> Tensor:
        """Mean loss of a batch's outputs."""

    def probe_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a batch made by `probe_batch`."""
        return self.loss_of_outputs(self.probe_outputs(model, batch), batch)

    @property
    def probed(self) -> Composed:
        """`probe_loss` in its two parts."""
        return Composed(self.probe_outputs, self.loss_of_outputs)

    def probe_bn_mode(self, asked: str) -> str:
        """BatchNorm's mode while the loss is probed in training, where a user asks for the mode ``asked``."""
        return asked


class FollowingPhase(Phase):
    """A phase that goes on from the model of the phase before it."""

    @abstractmethod
    def take_over(self, model: nn.Module, trained: nn.Module) -> None:
        """Copy into ``model`` what it shares with ``trained``, the model that the previous phase has trained."""


def phase_named(name: str, config: TrainConfig) -> Phase:
    """The phase called ``name`` of a run with this configuration."""
    module, _, kind = PHASES[name].rpartition(".")
    phase: Phase = getattr(import_module(module), kind)(config, name)
    return phase


def phases_of(config: TrainConfig) -> list[Phase]:
    """The phases of a run with this configuration, in order."""
    return [phase_named(name, config) for name in MODES[config.mode].phases]
