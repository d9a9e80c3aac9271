"""What is recorded, where it goes, when, and what it costs."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_balq import BalancedQuantization, UniformQuantization, unquantize_
from lightning_balq.functional import balanced_codes
from tests.callback.tiny import Batches, TinyModel, quiet_trainer, tiny_model

KEYS = {"effective_bitwidth", "bin_utilization", "imbalance", "code_flip_rate"}


class Codes(Callback):
    """Keeps the codes of both quantized layers after each step, from the float weights."""

    def __init__(self) -> None:
        self.history: list[list[np.ndarray]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: TinyModel, outputs: Any, batch: Any, batch_idx: int) -> None:
        layers = (pl_module.net[3], pl_module.net[7])
        self.history.append([balanced_codes(layer.weight, 2).numpy().ravel() for layer in layers])


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("balq/effective_bitwidth")]


def entropy(codes: np.ndarray) -> float:
    share = np.bincount(codes, minlength=4) / codes.size
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def test_records_reach_every_logger_and_equal_numpy(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / name, name="", version="") for name in "ab"]
    codes = Codes()
    callbacks = [codes, BalancedQuantization(2, 2, verbose=0, record_every_n_steps=4)]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, logger=loggers, max_epochs=3)
    trainer.fit(tiny_model(), Batches())
    written = rows(tmp_path / "a")
    assert written == rows(tmp_path / "b")
    assert [int(row["step"]) for row in written] == [4, 8, 12, 16, 18]  # 18 steps: the last interval is not full
    for row, before in zip(written[1:], (4, 8, 12, 16), strict=True):
        now, then = codes.history[int(row["step"]) - 1], codes.history[before - 1]
        for name, mine, earlier in zip(("net.3", "net.7"), now, then, strict=True):
            counts = np.bincount(mine, minlength=4)
            # Statistics are computed in float32 on the way to the logger, hence the tolerance.
            assert float(row[f"balq/{name}/effective_bitwidth"]) == pytest.approx(entropy(mine), rel=1e-6)
            assert float(row[f"balq/{name}/bin_utilization"]) == (counts > 0).mean()
            assert float(row[f"balq/{name}/imbalance"]) == pytest.approx(counts.max() / counts.min(), rel=1e-6)
            assert float(row[f"balq/{name}/code_flip_rate"]) == pytest.approx((mine != earlier).mean(), rel=1e-6)
        sizes = [layer.size for layer in now]
        overall = np.average([entropy(layer) for layer in now], weights=sizes)
        assert float(row["balq/effective_bitwidth"]) == pytest.approx(overall, rel=1e-6)
        flips = np.average([(a != b).mean() for a, b in zip(now, then, strict=True)], weights=sizes)
        assert float(row["balq/code_flip_rate"]) == pytest.approx(flips, rel=1e-6)
    assert set(written[0]) >= {f"balq/{name}/{key}" for name in ("net.3", "net.7") for key in KEYS}
    metrics = trainer.callback_metrics
    assert {key for key in metrics if key.startswith("balq/")} == {key for key in written[0] if key.startswith("balq/")}
    assert all(0 < float(row["balq/overhead"]) < 1 for row in written[:-1])
    assert written[-1]["balq/overhead"] == ""  # no batch was timed for the last record


def test_aggregates_reach_the_progress_bar(tmp_path: Path) -> None:
    class Bar(ProgressBar):
        def disable(self) -> None:
            return None

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.seen = self.get_metrics(trainer, pl_module)

    bar = Bar()
    callbacks = [BalancedQuantization(2, verbose=0, record_every_n_steps=3), bar]
    quiet_trainer(tmp_path, callbacks=callbacks, enable_progress_bar=True).fit(tiny_model(), Batches())
    assert {"balq/effective_bitwidth", "balq/overhead"} <= set(bar.seen)


def test_no_record_when_turned_off(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, verbose=0, record_every_n_steps=0)])
    trainer.fit(tiny_model(), Batches())
    assert not [key for key in trainer.callback_metrics if key.startswith("balq/")]


def test_recording_does_not_change_training(tmp_path: Path) -> None:
    losses = []
    for every in (0, 1):
        model = tiny_model()
        callback = BalancedQuantization(2, 2, verbose=0, record_every_n_steps=every)
        quiet_trainer(tmp_path, callbacks=[callback], max_epochs=2).fit(model, Batches())
        losses.append(model.losses)
    assert losses[0] == losses[1]


def test_overhead_is_the_share_of_the_step_spent_quantizing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once a look, shares can be counted: two looks for each quantizer call."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0, record_every_n_steps=6)])
    trainer.fit(tiny_model(), Batches())
    # Start, then 2 weights and 2 inputs with 2 looks each (1 tick inside), then end: 4 ticks of 9.
    assert float(trainer.callback_metrics["balq/overhead"]) == pytest.approx(4 / 9)


def test_steps_that_are_not_recorded_read_nothing_back_from_the_device(tmp_path: Path) -> None:
    """Counts what would wait for a GPU: reading a scalar. Float training and ours must be equal between records.

    Except for the first batch, after which it is asked once whether activation ranges are known.
    """

    class Reads(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    class Watch(Callback):
        def __init__(self) -> None:
            self.counts: list[int] = []

        def on_train_batch_start(self, *_: Any) -> None:
            self.mode = Reads()
            self.mode.__enter__()

        def on_train_batch_end(self, *_: Any) -> None:
            self.mode.__exit__(None, None, None)
            self.counts.append(self.mode.count)

    counts = {}
    for name, callbacks in {
        "float": [],
        "uniform": [UniformQuantization(2, 2, verbose=0, record_every_n_steps=5)],
        "mean": [BalancedQuantization(2, 2, verbose=0, record_every_n_steps=5)],
        "median": [BalancedQuantization(2, 2, center="median", verbose=0, record_every_n_steps=5)],
    }.items():
        watch = Watch()
        quiet_trainer(tmp_path, callbacks=[*callbacks, watch]).fit(tiny_model(), Batches())
        counts[name] = watch.counts
    for name in ("uniform", "mean", "median"):
        unrecorded = [index for index in range(1, 6) if index != 4]
        assert [counts[name][index] for index in unrecorded] == [counts["float"][index] for index in unrecorded]
    assert counts["mean"][4] > counts["float"][4]  # the counter can see a read


def test_unquantized_and_quantized_again_records_afresh(tmp_path: Path) -> None:
    model = tiny_model()
    callback = BalancedQuantization(2, verbose=0, record_every_n_steps=6)
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    trainer.fit(model, Batches())
    unquantize_(model)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, Batches())
    assert np.isnan(float(trainer.callback_metrics["balq/code_flip_rate"]))
