import itertools

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from benchmarks import training
from benchmarks.training import step_seconds

BATCH = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])


class Watcher(Callback):
    steps = 0

    def on_train_batch_end(self, *args: object) -> None:
        self.steps += 1


@pytest.mark.filterwarnings("ignore")
def test_the_median_of_the_steps_after_the_warm_up_is_returned(monkeypatch):
    # Starts of steps 1 to 5 and the end of the last: 2 steps of warm-up, then 1, 4 and 2 seconds.
    stamps = iter([0.0, 100.0, 200.0, 201.0, 205.0, 207.0])
    monkeypatch.setattr(training, "time", type("Clock", (), {"perf_counter": lambda: next(stamps)}))
    watcher = Watcher()
    assert step_seconds(nn.Linear(3, 2), [watcher], BATCH, 3, 2, torch.device("cpu")) == 2.0
    assert watcher.steps == 5


@pytest.mark.filterwarnings("ignore")
def test_a_step_holds_what_later_callbacks_do(monkeypatch):
    events = itertools.count()
    monkeypatch.setattr(training, "time", type("Clock", (), {"perf_counter": lambda: float(next(events))}))

    class Slow(Callback):
        def on_train_batch_end(self, *args: object) -> None:
            next(events)

    assert step_seconds(nn.Linear(3, 2), [Slow()], BATCH, 3, 1, torch.device("cpu")) == 2.0
