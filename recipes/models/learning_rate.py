"""How the learning rate follows the steps of a training: a factor that depends on the step and on nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning.pytorch import Trainer

ScheduleName = Literal["constant", "linear", "cosine", "multistep"]


@dataclass(frozen=True)
class Schedule:
    r"""A schedule of the learning rate, with a warm-up in front.

    During warm-up the learning rate grows by the same amount each step (Goyal et al. 2017, arXiv:1706.02677). Behind
    it, with :math:`t` the share of the remaining steps that are done, its factor is :math:`1`, :math:`1 - t`,
    :math:`(1 + \cos \pi t) / 2` (Loshchilov & Hutter 2017, arXiv:1608.03983), or that of the milestones, which are
    counted from the beginning.

    Args:
        name: what the learning rate does.
        milestones: epochs after which ``"multistep"`` divides it.
        decay: what it is divided by at every milestone.
        warm_up: epochs of warm-up; parts of one too.

    Raises:
        ValueError: if an argument is out of range, or there are milestones without ``"multistep"`` or the other way.
    """

    name: ScheduleName = "constant"
    milestones: Sequence[float] = ()
    decay: float = 10.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        names = get_args(ScheduleName)
        if self.name not in names:
            raise ValueError(f"`schedule` must be one of {', '.join(names)}, got {self.name!r}")
        if self.decay < 1:
            raise ValueError(f"`decay` divides the learning rate and must be at least 1, got {self.decay}")
        if self.warm_up < 0:
            raise ValueError(f"`warm_up` must be a number of epochs, 0 or more, got {self.warm_up}")
        if self.name == "multistep" and not self.milestones:
            raise ValueError("`milestones` must name epochs for `schedule: multistep`, for example [80, 120]; got none")
        if self.name != "multistep" and self.milestones:
            raise ValueError(
                f"`milestones` must be empty for `schedule: {self.name}`, which has none, got {list(self.milestones)}; "
                "they are for `schedule: multistep`"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) <= 0:
            raise ValueError(f"`milestones` must be epochs in ascending order, got {list(self.milestones)}")

    @property
    def counts_epochs(self) -> bool:
        """Whether it has to know how long an epoch is."""
        return bool(self.milestones) or self.warm_up > 0

    @property
    def needs_end(self) -> bool:
        """Whether it has to know how long the training is."""
        return self.name in ("linear", "cosine")

    def factor(self, step: int, steps: float, epoch_steps: float) -> float:
        """Return the factor of the learning rate.

        Args:
            step: optimizer steps done, 0 or more.
            steps: optimizer steps of the training; infinity where no end is known.
            epoch_steps: optimizer steps of an epoch; infinity where its length is not known.

        Example:
            >>> schedule = Schedule("linear", warm_up=0.5)
            >>> [schedule.factor(step, steps=8, epoch_steps=8) for step in range(9)]
            [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
        """
        warm_up = self._warm_up_steps(epoch_steps)
        if step < warm_up:
            return (step + 1) / warm_up * self._decayed(step, epoch_steps)
        if not self.needs_end:
            return self._decayed(step, epoch_steps)
        done = min((step - warm_up) / max(steps - warm_up, 1), 1.0)
        return 1 - done if self.name == "linear" else (1 + math.cos(math.pi * done)) / 2

    def _warm_up_steps(self, epoch_steps: float) -> int:
        return round(self.warm_up * epoch_steps) if self.warm_up else 0

    def _decayed(self, step: int, epoch_steps: float) -> float:
        return self.decay ** -sum(step >= round(milestone * epoch_steps) for milestone in self.milestones)

    def check(self, steps: float, epoch_steps: float) -> None:
        """Check that a training is one that the schedule can follow.

        Args:
            steps: optimizer steps of the training; infinity where no end is known.
            epoch_steps: optimizer steps of an epoch; infinity where its length is not known.

        Raises:
            ValueError: if a length is needed and not known.
        """
        if self.needs_end and not math.isfinite(steps):
            raise ValueError(
                f"`schedule: {self.name}` must know how long the training is, and neither `trainer.max_steps` nor the "
                "length of the data and `trainer.max_epochs` say it: set `--trainer.max_steps`"
            )
        if self.counts_epochs and not math.isfinite(epoch_steps):
            raise ValueError(
                "`warm_up` and `milestones` are epochs, and the training data do not say how many batches an epoch "
                "has: set `--trainer.limit_train_batches` to their number"
            )


def training_steps(trainer: Trainer) -> tuple[float, float]:
    """Return how many optimizer steps the training and one of its epochs have; infinity where that is not known."""
    steps = float(trainer.estimated_stepping_batches)
    trainer.fit_loop.setup_data()  # which was not necessary above if there is no `max_epochs`
    epoch_steps = trainer.num_training_batches / trainer.accumulate_grad_batches
    epoch_steps = math.ceil(epoch_steps) if math.isfinite(epoch_steps) else math.inf
    return steps if steps >= 0 else math.inf, epoch_steps
