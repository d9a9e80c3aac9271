"""Run one cell: train, test the network of the last epoch, and record what came out."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from lightning_balq.callback import QuantizationCallback
from lightning_balq.nn.monitor import CodeMonitor
from recipes.compare.cells import FLOAT, Cell, Options
from recipes.compare.history import History, finite
from recipes.compare.records import FAILED, FINISHED, LOG, METRICS, Record, Results
from recipes.configuration import load
from recipes.environment import environment
from recipes.train import TrainingProgram, main

LAST = "last.ckpt"
WRONG_OPTION = 2
"""Status with which the training program exits for a wrong option; it has others for signals, which are no failures."""

SETTINGS = ("seed_everything", "data", "model", "quantization", "weight_clipping", "init_from", "trainer")
"""What a record keeps of the configuration."""

OF_PLACE = ("default_root_dir", "logger", "enable_progress_bar", "enable_model_summary")
"""Options of the Trainer that say where a run is, not what it is."""


def run(cell: Cell, results: Results, options: Options) -> Record | None:
    """Run a cell if it is due, and write its record, also if it fails.

    Returns:
        The record; ``None`` if another process is at work on the cell.
    """
    folder = results.run(cell.name)
    try:
        # The system gives the lock back however a process ends.
        with FileLock(folder / "lock", timeout=0):
            if results.is_due(cell.name, options.retry):
                record = attempt(cell, results, options)
                results.write(cell.name, record)
                # Others may begin with a float network.
                if record["status"] == FINISHED and (cell.method.name != FLOAT or record["diverged"]):
                    (folder / LAST).unlink(missing_ok=True)
    except Timeout:
        return None
    return results.record(cell.name)


def attempt(cell: Cell, results: Results, options: Options) -> Record:
    """Train and test the network of a cell; return its record, also if that failed.

    Interruptions are no failures and are raised.
    """
    torch.set_num_threads(options.threads)
    folder = results.run(cell.name)
    try:
        return cell.described() | train(cell, folder, [*place(folder, options), *start(cell, folder, results)])
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != WRONG_OPTION:
            raise
        traceback.print_exc()
        refused = isinstance(error, SystemExit)
        message = "a setting was refused, the log says which" if refused else f"{type(error).__name__}: {error}"
        return cell.described() | failure(cell, message, folder)


def failure(cell: Cell, message: str, folder: Path) -> Record:
    """What a record says of a run that failed."""
    log = f"runs/{folder.name}/{LOG}"
    described = {"status": FAILED, "error": message.splitlines()[0], "log": log, "configuration": None}
    return described | environment(device_of(cell))


def device_of(cell: Cell) -> torch.device:
    """The device that a cell is, or would have been, trained on."""
    trainer = load(cell.recipe).get("trainer", {})
    accelerator = cell.changes.get("trainer.accelerator", trainer.get("accelerator"))
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def train(cell: Cell, folder: Path, options: Sequence[str]) -> Record:
    """Train and test the network of a cell; return what came out.

    Args:
        cell: which network.
        folder: where it works.
        options: of the command line, for where and how.
    """
    history = History()
    try:
        program = main([*cell.arguments(), *options], callbacks=[history])
    except Exception:
        if not history.diverged:
            raise
        # Weights that are not finite make the next step fail, here or there.
        ended = {"configuration": None} | environment(device_of(cell))
        return {"status": FINISHED} | outcome(history, None) | ended
    ended = {"configuration": configuration(program)} | environment(program.trainer.strategy.root_device)
    return {"status": FINISHED} | outcome(history, program) | ended


def place(folder: Path, options: Options) -> list[str]:
    """Options that say where and how a cell runs: in its folder, in one process, on one device."""
    words = [
        f"--trainer.default_root_dir={folder}", "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}",
        "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", f"--checkpoint.dirpath={folder}", "--checkpoint.save_top_k=0",
    ]  # fmt: skip
    last = folder / LAST
    if options.start_over:
        last.unlink(missing_ok=True)
    return [*words, f"--ckpt_path={last}"] if last.exists() else words


def start(cell: Cell, folder: Path, results: Results) -> list[str]:
    """Option that says what a cell begins with, unless it goes on from its last epoch.

    Raises:
        FileNotFoundError: if the float network that it begins with is not there.
    """
    if cell.start is None or (folder / LAST).exists():
        return []
    record = results.record(cell.start.name)
    trained = results.run(cell.start.name) / LAST
    if record is None or record["status"] == FAILED or not trained.exists():
        how = "was not run" if record is None else "failed or diverged"
        raise FileNotFoundError(
            f"{cell.method.name} begins with the float network of its recipe and seed, which {how}: run the method "
            f"{FLOAT} too, and `--retry`"
        )
    return [f"--init_from={trained}"]


def outcome(history: History, program: TrainingProgram | None) -> Record:
    """Metrics, codes, bytes and time; no test and no codes of a network that diverged."""
    plan = history.plan
    ended = program is not None and not history.diverged
    tested = test(program) if program is not None and ended else {}
    metric = next((name for name in METRICS if name in tested), None)
    return {
        "diverged": history.diverged,
        "metric": metric,
        "test": tested,
        "best": best(history.curve),
        "curve": history.curve,
        "epochs": len(history.curve),
        "effective_bitwidth": effective_bitwidth(program) if program is not None and ended and plan else None,
        "overhead": overhead(program) if program is not None else None,
        "bytes": history.float_bytes if plan is None else plan.quantized_bytes,
        "float_bytes": history.float_bytes,
        "float_layers": {} if plan is None else {layer.name: layer.reason for layer in plan.layers if layer.reason},
        "seconds": history.seconds,
        "resumed": history.resumed,
    }


def test(program: TrainingProgram) -> dict[str, float | None]:
    """Metrics of the network of the last epoch on the test data."""
    (metrics,) = program.trainer.test(program.model, datamodule=program.datamodule, verbose=False)
    return {key: finite(value) for key, value in metrics.items()}


def best(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Best validation of all epochs, by the metrics that tables compare."""
    found = {}
    for name, better in METRICS.values():
        values = [(epoch[name], epoch["epoch"]) for epoch in curve if epoch.get(name) is not None]
        if values:
            value = better(value for value, _ in values)
            found = {"metric": name, "value": value, "epoch": next(epoch for v, epoch in values if v == value)}
    return found


def effective_bitwidth(program: TrainingProgram) -> float:
    """Entropy in bits of the codes of all quantized weights."""
    return CodeMonitor().record(program.model)[1].effective_bitwidth


def overhead(program: TrainingProgram) -> float | None:
    """Share of a training step spent quantizing, as the callback measured it; the median."""
    callbacks = [callback for callback in program.trainer.callbacks if isinstance(callback, QuantizationCallback)]
    measured = [share for callback in callbacks for share in callback.state_dict()["overheads"]]
    return median(measured) if measured else None


def configuration(program: TrainingProgram) -> dict[str, Any]:
    """Every setting of a run, defaults included, but for where it was run and what the Trainer is not told."""
    written = yaml.safe_load((Path(program.trainer.log_dir) / "config.yaml").read_text(encoding="utf-8"))
    kept = {key: written.get(key) for key in SETTINGS}
    told = {key: value for key, value in kept["trainer"].items() if value is not None}
    kept["trainer"] = {key: value for key, value in told.items() if key not in OF_PLACE}
    return portable(kept)


def portable(value: Any) -> Any:
    """The same without the folders of this machine."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
