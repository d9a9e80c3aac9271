import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR
from torch.utils.data import DataLoader, IterableDataset

from recipes.models.learning_rate import Schedule
from tests.recipes.tiny import RandomImages, quiet_trainer, tiny_classifier

STEPS, EPOCH = 24, 6


def factors(schedule, steps=STEPS):
    return [schedule.factor(step, steps, EPOCH) for step in range(steps + 1)]


def those_of_torch(schedule, **options):
    """Learning rates of a schedule of torch that begins with 1."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = schedule(optimizer, **options)
    rates = []
    for _ in range(STEPS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant"), [1.0] * (STEPS + 1)),
        (Schedule("cosine"), those_of_torch(CosineAnnealingLR, T_max=STEPS)),
        (Schedule("linear"), those_of_torch(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=STEPS)),
        (
            Schedule("multistep", milestones=[1, 2.5], decay=4),
            those_of_torch(MultiStepLR, milestones=[EPOCH, 15], gamma=0.25),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_schedule_is_that_of_torch(schedule, expected):
    assert factors(schedule) == pytest.approx(expected, abs=1e-12)  # torch multiplies from step to step


def test_warm_up_comes_first_and_the_schedule_has_what_is_left():
    cosine = factors(Schedule("cosine", warm_up=1.5))
    assert cosine[:9] == pytest.approx([step / 9 for step in range(1, 10)])
    assert cosine[9:] == pytest.approx([(1 + math.cos(math.pi * step / 15)) / 2 for step in range(16)])
    assert factors(Schedule("constant", warm_up=0.5)) == pytest.approx([1 / 3, 2 / 3] + [1] * 23)


def test_milestones_count_from_the_beginning_and_in_warm_up_too():
    warmed = factors(Schedule("multistep", milestones=[1, 3], warm_up=2))
    assert warmed == pytest.approx(
        [n / 12 for n in range(1, 7)] + [n / 120 for n in range(7, 13)] + [0.1] * 6 + [0.01] * 7
    )


def test_a_step_behind_the_end_has_the_rate_of_the_end():
    assert Schedule("linear").factor(30, STEPS, EPOCH) == 0 == Schedule("cosine").factor(30, STEPS, EPOCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "step"}, "`schedule` must be one of constant, linear, cosine, multistep, got 'step'"),
        ({"decay": 0.1}, "`decay` divides the learning rate and must be at least 1, got 0.1"),
        ({"warm_up": -1}, "`warm_up` must be a number of epochs, 0 or more, got -1"),
        ({"name": "multistep"}, "`milestones` must name epochs for `schedule: multistep`, .*; got none"),
        ({"name": "cosine", "milestones": [3]}, r"`milestones` must be empty for `schedule: cosine`, .* got \[3\]"),
        ({"name": "multistep", "milestones": [3, 2]}, r"must be epochs in ascending order, got \[3, 2\]"),
        ({"name": "multistep", "milestones": [0, 2]}, r"must be epochs in ascending order, got \[0, 2\]"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


# ---- in a training ---------------------------------------------------------------------------------------------------


def rates(root, model, data, **options):
    """Learning rate of each optimizer step."""
    used = []
    trainer = quiet_trainer(root, **options)

    def optimizer_step(epoch, batch_idx, optimizer, closure):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step(closure=closure)

    model.optimizer_step = optimizer_step
    trainer.fit(model, datamodule=data)
    return used


def test_the_learning_rate_follows_optimizer_steps(tmp_path):
    # 6 batches an epoch, 4 of which make a step, and what is left another: 2 steps an epoch
    model = tiny_classifier(schedule="linear", warm_up=1, learning_rate=0.4)
    used = rates(tmp_path, model, RandomImages(), max_epochs=3, accumulate_grad_batches=4)
    assert used == pytest.approx([0.2, 0.4, 0.4, 0.3, 0.2, 0.1])


def test_epochs_are_known_where_steps_end_the_training(tmp_path):
    model = tiny_classifier(schedule="linear", warm_up=0.5, learning_rate=0.6)
    used = rates(tmp_path, model, RandomImages(), max_epochs=-1, max_steps=9)
    assert used == pytest.approx([0.2, 0.4, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


class Stream(RandomImages):
    """The same images from a source that does not say how many it has."""

    def train_dataloader(self):
        class Images(IterableDataset):
            def __iter__(this):
                return iter(list(zip(*self.images(0), strict=True)))

        return DataLoader(Images(), self.batch_size)


def test_a_schedule_follows_a_stream_whose_steps_are_given(tmp_path):
    model = tiny_classifier(schedule="linear", learning_rate=0.4)
    assert rates(tmp_path, model, Stream(), max_steps=4, max_epochs=-1) == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, r"`schedule: cosine` must know how long .*: set `--trainer\.max_steps`"),
        ({"schedule": "constant", "warm_up": 1}, r"do not say how many batches .* `--trainer\.limit_train_batches`"),
    ],
)
def test_a_stream_that_leaves_a_schedule_without_an_end_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, max_epochs=2).fit(tiny_classifier(**options), datamodule=Stream())
