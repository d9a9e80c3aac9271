"""Test accuracy of every setting of BalancedQuantization, by width, network and seed.

Question: which `scale`, `center`, `activation_range` and `granularity` should be the defaults?  A default must train
without NaN and without collapse at every width on every network, and no other setting may be significantly better.
Not measured: speed, large models, long schedules, and layers at the ends of a network, which stay float.

Fixed before the first run: the settings, widths, networks, seeds and epochs below, and the definition of a collapse;
the rule that turns results into defaults is in `benchmarks/README.md`. Runs of one network and seed start from the same
weights and see the same batches.

Run: python -m benchmarks.study_defaults            (resumes: runs already recorded are skipped)
     python -m benchmarks.study_defaults --output try.jsonl --only network=mlp bits=1 scale=max
"""

import argparse
import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.records import Record, append, read, results_path
from lightning_balq import BalancedQuantization, UniformQuantization
from recipes.digits import DigitsClassifier, Network, batches, digits
from recipes.environment import environment

BENCHMARK = "study_defaults"
NETWORKS: tuple[Network, ...] = ("cnn_bn", "cnn", "mlp")
BITS = (1, 2, 3, 4, 8)  # of weights and of activations
SEEDS = (0, 1, 2)
EPOCHS = 10
BATCH_SIZE = 64
COLLAPSE = 0.5
"""A run has collapsed if its test accuracy is below this share of the float accuracy of the same network and seed."""


@dataclass(frozen=True)
class Setting:
    """How weights and activations are quantized, or `method="float"`; `None` where an option does not apply."""

    method: str
    scale: str | None = None
    center: str | None = None
    activation_range: str | None = None
    granularity: str | None = None


@dataclass(frozen=True)
class Run:
    """One training run; what identifies it in the records."""

    setting: Setting
    bits: int | None
    network: Network
    seed: int

    def identity(self) -> Record:
        """Fields by which a record of this run is found."""
        return {**asdict(self.setting), "bits": self.bits, "network": self.network, "seed": self.seed}


FLOAT = Setting("float")
SCALES = ("max", "mean", "least_squares")
CENTERS = ("mean", "median")
RANGES = ("unit", "observed")
SETTINGS = (
    *(Setting("balanced", *options, "per_tensor") for options in product(SCALES, CENTERS, RANGES)),
    *(Setting("balanced", scale, "mean", "observed", "per_channel") for scale in SCALES),
    # Context: the baseline with its default scale and with the one that fits the weights.
    *(Setting("uniform", scale, None, "observed", "per_tensor") for scale in ("max", "least_squares")),
)


def all_runs() -> Iterator[Run]:
    """Every run of the study: seeds outermost, so that an interrupted study still compares all settings."""
    for seed, network in product(SEEDS, NETWORKS):
        yield Run(FLOAT, None, network, seed)
        for bits, setting in product(BITS, SETTINGS):
            yield Run(setting, bits, network, seed)


class LossRecorder(Callback):
    """Keeps the training loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def quantization(setting: Setting, bits: int | None) -> list[Callback]:
    """Return the callback that a setting describes, in a list; an empty one for float."""
    if setting.method == "float":
        return []
    kind: Any = BalancedQuantization if setting.method == "balanced" else UniformQuantization
    options = {key: value for key, value in asdict(setting).items() if key != "method" and value is not None}
    return [
        kind(weight_bits=bits, activation_bits=bits, non_finite="warn", record_every_n_steps=0, verbose=0, **options)
    ]


def train(run: Run, *, epochs: int) -> Record:
    """Train and test once; the record says what came out, without the environment and without judging it."""
    started = time.perf_counter()
    train_set, test_set = digits()
    seed_everything(run.seed, verbose=False)
    model, recorder = DigitsClassifier(run.network), LossRecorder()
    trainer = Trainer(
        max_epochs=epochs, callbacks=[recorder, *quantization(run.setting, run.bits)], accelerator="cpu", devices=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, batches(train_set, BATCH_SIZE, seed=run.seed))
    finite = all(bool(value.isfinite().all()) for value in model.state_dict().values())
    # What has become NaN cannot be quantized again for the test; it knows no digit.
    tested = (
        trainer.test(model, batches(test_set, len(test_set)), verbose=False) if finite else [{"test_accuracy": 0.0}]
    )
    steps = len(train_set) // BATCH_SIZE
    loss = sum(recorder.losses[-steps:]) / steps
    return {
        **run.identity(),
        "epochs": epochs,
        "test_accuracy": tested[0]["test_accuracy"],
        "final_train_loss": loss if math.isfinite(loss) else None,  # mean of the last epoch; JSON has no NaN
        "non_finite": not (finite and all(map(math.isfinite, recorder.losses))),
        "seconds": round(time.perf_counter() - started, 2),
    }


def collapsed(test_accuracy: float, float_accuracy: float) -> bool:
    """Whether a run has lost at least half of what the float network reaches."""
    return test_accuracy < COLLAPSE * float_accuracy


def study(output: Path, runs: Iterable[Run], *, epochs: int = EPOCHS) -> int:
    """Append a record for every run that `output` does not hold yet, float references included; return how many.

    Raises:
        ValueError: if `output` holds records of another number of epochs.
    """
    records = read(output)
    if any(record["epochs"] != epochs for record in records):
        raise ValueError(
            f"`output` must hold runs of {epochs} epochs only, got others in {output.name}: use another file"
        )
    known = {_key(record): record for record in records}
    where = environment(torch.device("cpu"))
    written = 0
    for run in _with_references(runs):
        if _key(run.identity()) in known:
            continue
        record = train(run, epochs=epochs)
        reference = known.get(_key(Run(FLOAT, None, run.network, run.seed).identity()), record)
        record["collapsed"] = collapsed(record["test_accuracy"], reference["test_accuracy"])
        known[_key(record)] = record
        append(output, record | where)
        written += 1
    return written


def _with_references(runs: Iterable[Run]) -> Iterator[Run]:
    """Put the float run of the same network and seed before each run; it is what a collapse is measured by."""
    for run in runs:
        yield Run(FLOAT, None, run.network, run.seed)
        yield run


def _key(record: Record) -> tuple[object, ...]:
    return tuple(record[name] for name in Run(FLOAT, None, "mlp", 0).identity())


def select(runs: Iterable[Run], only: Sequence[str]) -> Iterator[Run]:
    """Keep the runs that match every `field=value`; a field given twice allows both values."""
    wanted: dict[str, set[str]] = {}
    for pair in only:
        name, _, value = pair.partition("=")
        wanted.setdefault(name, set()).add(value)
    for run in runs:
        identity = run.identity()
        if unknown := wanted.keys() - identity.keys():
            raise ValueError(f"`only` must name fields of {sorted(identity)}, got {sorted(unknown)}")
        if all(str(identity[name]) in values for name, values in wanted.items()):
            yield run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or the part of it that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=results_path(BENCHMARK, torch.device("cpu")))
    parser.add_argument("--only", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"the study is {EPOCHS}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a sum over threads may add in another order
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    written = study(options.output, select(all_runs(), options.only), epochs=options.epochs)
    print(f"{written} runs added to {options.output.name}")


if __name__ == "__main__":
    main()
