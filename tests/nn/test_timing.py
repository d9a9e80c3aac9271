"""The timer adds up what runs under it, measured by a fake clock."""

import pytest
import torch
from torch import nn

from lightning_balq.nn import quantize_, quantized_layers, timing
from lightning_balq.nn.timing import QuantizationTimer
from tests.helpers import everything, randn

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by one second each time it is read."""
    readings = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(readings)))


@pytest.mark.usefixtures("clock")
def test_time_under_the_timer_adds_up():
    timer = QuantizationTimer()
    assert timer.seconds() == 0.0
    for _ in range(3):
        with timer.measure(CPU):
            pass
    assert timer.seconds() == 3.0


@pytest.mark.usefixtures("clock")
def test_quantizers_of_weight_and_input_are_timed_while_a_timer_is_set():
    layer = nn.Linear(4, 3)
    quantize_(layer, everything(activation_bits=2))
    schedule = next(state.schedule for _, _, state in quantized_layers(layer))
    layer(randn(2, 4))
    schedule.timer = timer = QuantizationTimer()
    layer(randn(2, 4))
    assert timer.seconds() == 2.0
    schedule.timer = None
    layer(randn(2, 4))
    assert timer.seconds() == 2.0


def test_exception_passes_through_the_timer():
    with pytest.raises(ValueError, match="inside"), QuantizationTimer().measure(CPU):
        raise ValueError("inside")


def test_time_on_a_gpu_is_that_between_events_once_the_device_is_done(monkeypatch):
    done = []

    class Event:
        """An event at the number of milliseconds that the device has run."""

        milliseconds = 0

        def record(self):
            Event.milliseconds += 500
            self.at = Event.milliseconds

        def elapsed_time(self, other):
            assert done, "the device was not waited for"
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append(True))
    timer = QuantizationTimer()
    for _ in range(3):
        with timer.measure(torch.device("cuda")):
            pass
    assert not done  # a step waits for nothing
    assert timer.seconds() == 1.5
