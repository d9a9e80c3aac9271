"""Time of a training step, quantized against float. Runs in a worker process while the others are idle."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from lightning_balq.nn import activation_quantizers, update_ranges_
from recipes.quickstart.methods import CASES, FLOAT, Case
from recipes.quickstart.training import BATCH_SIZE, Training, split

WARM_UP = 5


def relative_step_times(rounds: int) -> dict[str, list[float]]:
    """Step time of each quantized row relative to float's, in rounds of one step of every row.

    Rounds, because a machine's speed changes while one measures: the steps of a round share it.
    """
    steps = {name: prepare_step(case) for name, case in CASES.items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    floats = seconds.pop(FLOAT.label)
    return {name: [a / b for a, b in zip(values, floats, strict=True)] for name, values in seconds.items()}


def prepare_step(case: Case) -> Callable[[], None]:
    """A training step as the Trainer would run it, without the Trainer's own time, which is the same for all rows."""
    training = Training(case, seed=0)
    training.fit(max_steps=1)  # leaves the network quantized
    model = training.model.train()
    optimizer = torch.optim.Adam(model.parameters())
    ranges = list(activation_quantizers(model))
    images, labels = split()[0][:BATCH_SIZE]

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        optimizer.step()
        update_ranges_(ranges)

    return step
