"""Train one network: data, network and Trainer of the study. Runs in a worker process."""

import logging
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import TensorDataset

import lightning_balq
from lightning_balq.callback import QuantizationCallback
from lightning_balq.nn import quantized_layers
from recipes.digits import DigitsClassifier, Network, batches, digits
from recipes.quickstart.methods import CASES, FLOAT, Case
from recipes.quickstart.results import Layer, Run, Setup, Weights

NETWORK: Network = "cnn_strided"
TRAIN_IMAGES = 597  # fewer than usual, so that 1200 images remain to tell rows apart
BATCH_SIZE = 64
LEARNING_RATE = 5e-3
RECORD_EVERY_N_STEPS = 6  # a run has about 70
DRAWN_LAYER = "net.6"
HISTOGRAM_BINS = 80
EFFECTIVE_BITWIDTH = "balq/effective_bitwidth"


class History(Logger):
    """Keeps in memory what the callback records."""

    def __init__(self) -> None:
        super().__init__()
        self.effective_bitwidth: list[tuple[int, float]] = []

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is not None and EFFECTIVE_BITWIDTH in metrics:
            self.effective_bitwidth.append((step, metrics[EFFECTIVE_BITWIDTH]))


@dataclass
class Training:
    """Everything one run needs, the same for every row but for the callback."""

    case: Case
    seed: int
    model: DigitsClassifier = field(init=False)
    callback: QuantizationCallback | None = field(init=False)
    history: History = field(init=False, default_factory=History)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = DigitsClassifier(NETWORK, LEARNING_RATE)
        self.callback = build_callback(self.case)

    def fit(self, **limits: int) -> Trainer:
        """Train as far as ``max_epochs`` or ``max_steps`` says."""
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=[] if self.callback is None else [self.callback],
            logger=self.history,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[LightningEnvironment()],  # not the cluster that this may be started on
            **limits,  # type: ignore[arg-type]  # expected "int", as they are
        )
        trainer.fit(self.model, batches(split()[0], BATCH_SIZE, self.seed))
        return trainer


def build_callback(case: Case) -> QuantizationCallback | None:
    """The callback of a row; ``None`` for the float network."""
    if case.method.callback is None:
        return None
    kind = getattr(lightning_balq, case.method.callback)
    callback: QuantizationCallback = kind(
        weight_bits=case.bits,
        activation_bits=case.bits,
        record_every_n_steps=RECORD_EVERY_N_STEPS,
        verbose=0,
        **case.method.arguments,
    )
    return callback


@cache
def split() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set."""
    return digits(TRAIN_IMAGES)


def train(name: str, seed: int, epochs: int, drawn: bool) -> Run:
    """Train and test the network of one row from one seed; keep a histogram of weights if it is ``drawn``."""
    training = Training(CASES[name], seed)
    before, after = model_bytes(training)
    trainer = training.fit(max_epochs=epochs)
    test = batches(split()[1], batch_size=600)
    accuracy = trainer.test(training.model, test, verbose=False)[0]["test_accuracy"]
    return Run(
        case=name,
        seed=seed,
        accuracy=100 * accuracy,
        effective_bitwidth=training.history.effective_bitwidth,
        float_bytes=before,
        quantized_bytes=after,
        weights=drawn_weights(training.model) if drawn else None,
    )


def model_bytes(training: Training) -> tuple[int, int]:
    """Bytes of all parameters in float32, and with the quantized layers as codes and scales."""
    if training.callback is None:
        size = sum(parameter.nbytes for parameter in training.model.parameters())
        return size, size
    plan = training.callback.plan(training.model)
    return plan.float_bytes, plan.quantized_bytes


@torch.no_grad()
def drawn_weights(model: nn.Module) -> Weights:
    """Histogram of the float weights of one layer for each code, and the value of each code."""
    weight = model.get_submodule(DRAWN_LAYER).get_parameter("weight").flatten()
    quantizers = {name: state.weights["weight"] for name, _, state in quantized_layers(model)}
    codes, levels = torch.zeros(len(weight), dtype=torch.long), []
    if quantizers:
        quantizer = quantizers[DRAWN_LAYER]
        codes = quantizer.codes(weight).long()
        # Of all weights' levels only those that are used can be seen; the others follow.
        levels = evenly_spaced(codes, quantizer(weight), quantizer.bits)
    largest = weight.abs().max().item()
    edges = torch.linspace(-largest, largest, HISTOGRAM_BINS + 1)
    rows = [weight[codes == code] for code in range(max(len(levels), 1))]
    counts = [torch.histogram(row, edges).hist.int().tolist() for row in rows]
    return Weights(DRAWN_LAYER, edges.tolist(), counts, levels)


def evenly_spaced(codes: torch.Tensor, values: torch.Tensor, bits: int) -> list[float]:
    """Value of every code, from that of one: level ``c`` is an odd integer times half the distance of two levels."""
    half_step = (values[0] / (2 * codes[0] - (2**bits - 1))).item()
    return [half_step * (2 * code - (2**bits - 1)) for code in range(2**bits)]


def describe(seeds: list[int], epochs: int, workers: int) -> Setup:
    """What is run, where."""
    reference = Training(next(case for case in CASES.values() if case.method is not FLOAT), seed=0)
    assert reference.callback is not None
    layers = reference.callback.plan(reference.model).layers
    packages = ("torch", "lightning", "torchmetrics", "scikit-learn", "numpy", "matplotlib")
    versions = {name: version(name) for name in packages}
    return Setup(
        seeds=seeds,
        epochs=epochs,
        steps=epochs * len(batches(split()[0], BATCH_SIZE, seed=0)),
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        train_images=len(split()[0]),
        test_images=len(split()[1]),
        layers=[Layer(layer.name, layer.type, layer.weights, layer.reason) for layer in layers],
        calls={name: written_out(case) for name, case in CASES.items() if case.method is not FLOAT},
        versions={"Python": platform.python_version(), "lightning_balq": lightning_balq.__version__, **versions},
        processor=platform.processor() or platform.machine(),
        workers=workers,
    )


def written_out(case: Case) -> str:
    """The call that makes a row's callback, with those defaults that other rows change."""
    callback = build_callback(case)
    names = ("weight_bits", "activation_bits", "center", "scale", "granularity", "activation_range")
    given = ", ".join(f"{name}={getattr(callback, name)!r}" for name in names if hasattr(callback, name))
    return f"{case.method.callback}({given})"


def be_quiet() -> None:
    """Leave the terminal to the process that started this one: no warnings, no tips; one thread."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
