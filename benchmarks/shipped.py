"""Trained networks as files: are they as good there as in PyTorch, how large, and how fast?

Question: does a trained network keep its accuracy or perplexity, on all test data, in each form it can be shipped in;
how large are they, and how fast with one and two threads?
Not measured: other runtimes and processors.
Run: python -m benchmarks.shipped RECIPE CHECKPOINT [--data-path FOLDER]

RECIPE is the one that trained CHECKPOINT. Each form is tested by the code that tests the model itself, which gets the
outputs of the file in place of its own. Timed is one image, or the 35 steps of one text. The reference is the same
network in float, exported by torch, whose weights do not matter.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from benchmarks.bars import last_runs, where
from benchmarks.harness import measure, ratio
from benchmarks.program import records, report, show
from benchmarks.records import Record, append, results_path
from benchmarks.shipped_forms import FLOAT, PYTORCH, Form, Network, make_forms
from lightning_balq.cli.comparison import compare_exported
from lightning_balq.cli.sources import build_model, quantized_model, read_checkpoint
from recipes.configuration import load
from recipes.data.cifar10 import Cifar10
from recipes.data.digits import Digits
from recipes.data.markov import MarkovText
from recipes.data.text import PennTreebank
from recipes.environment import environment
from recipes.models.classifier import ImageClassifier
from recipes.models.language import LanguageModel

NAME = "shipped"
THREADS = (1, 2)
REPEATS = 30
COMPARED = 10**7
"""Outputs that are compared one by one, those of the first batches; the metric is that of all."""

COMPARED_INPUTS = 64
"""Images or texts, at most, with which layers are compared one by one."""
NOT_MEASURED = "No records yet. Measure: `python -m benchmarks.shipped RECIPE CHECKPOINT`."
NAMES = {"test_accuracy": ("accuracy, %", 100.0), "test_perplexity": ("perplexity", 1.0)}
"""Words for a metric, and what it is shown times."""

DATA: dict[str, Callable[..., LightningDataModule]] = {
    kind.__name__: kind for kind in (Cifar10, Digits, MarkovText, PennTreebank)
}
MODELS = {kind.__name__: kind for kind in (ImageClassifier, LanguageModel)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Test and time one network in all forms, and append the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file that the checkpoint was trained by")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-path", metavar="FOLDER", help="data.path of the recipe")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds of timing; default {REPEATS}")
    parser.add_argument("--output", type=Path, help="file of records; default: in results/")
    given = parser.parse_args(arguments)
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]:
        parser.error(f"these packages are not installed: {', '.join(missing)}")
    device = torch.device("cpu")
    output = given.output or results_path(NAME, device)
    described = {"bench": NAME, "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    try:
        network = read(given.recipe, given.checkpoint, given.data_path)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    tested: dict[str, Record] = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        torch._dynamo.reset()  # compiled programs keep the number of threads
        with tempfile.TemporaryDirectory() as folder:
            forms = make_forms(network, Path(folder))
            tested = tested or evaluate_all(network, forms)
            one = network.inputs(1)
            cases = {name: form.case(one) for name, form in forms.items()}
            parameters = {"network": given.recipe.stem, "threads": threads}
            group = records(measure(cases, device, given.repeats).items(), parameters, FLOAT)
        report(group)
        for record in group:
            append(output, record | tested[record["case"]] | described | environment(device))


def read(recipe: Path, checkpoint: Path, data_path: str | None) -> Network:
    """Build model and data of a recipe, and load a checkpoint."""
    settings = load(recipe)
    data, model = settings["data"], settings["model"]
    for part, known in ((data, DATA), (model, MODELS)):
        if part["class_path"] not in known:
            raise ValueError(f"{recipe} must have a class of {', '.join(known)}, got {part['class_path']}")
    found = DATA[data["class_path"]](**data.get("init_args", {}), **({} if data_path is None else {"path": data_path}))
    found.prepare_data()
    found.setup("test")
    kind = MODELS[model["class_path"]]
    factory = f"{kind.__module__}:{kind.__qualname__}"

    def rebuild() -> Any:
        return build_model(factory, {}, read_checkpoint(checkpoint)).eval()

    quantized: Any = quantized_model(factory, {}, checkpoint).eval()
    return Network(rebuild(), quantized, rebuild, found)


def evaluate_all(network: Network, forms: dict[str, Form]) -> dict[str, Record]:
    """Metric, size, and differences of outputs from those of the quantized model, by form."""
    metric, right = evaluate(network, forms[PYTORCH])
    tested: dict[str, Record] = {FLOAT: {"bytes": forms[FLOAT].size}}  # its weights were never trained
    for name in forms.keys() - {FLOAT}:
        value, logits = evaluate(network, forms[name])
        pairs = list(zip(logits, right, strict=True))
        differences = torch.cat([(one - other).abs().flatten() for one, other in pairs])
        same = torch.cat([(one.argmax(-1) == other.argmax(-1)).flatten() for one, other in pairs])
        tested[name] = {
            "bytes": forms[name].size,
            "metric": metric[0],
            "value": value[1],
            "difference": value[1] - metric[1],
            "median_error": float(differences.median()),
            "argmax_agreement": float(same.double().mean()),
            "layer_error": layer_error(network, forms[name]),
        }
    return tested


@torch.no_grad()
def layer_error(network: Network, form: Form) -> float | None:
    """Largest difference of a layer's output on the inputs that the file gives it, as a share of its largest output."""
    if form.run is None:
        return None
    inputs = network.inputs(COMPARED_INPUTS)
    layers = compare_exported(network.quantized, form.run(inputs), inputs, {}).layers
    return max(layer.outputs / layer.magnitude for layer in layers if layer.outputs is not None and layer.magnitude)


def evaluate(network: Network, form: Form) -> tuple[tuple[str, float], list[Tensor]]:
    """Name and value of the metric of a form on all test data, and the logits of the first batches."""
    model, outputs = network.quantized, Noted(form.forward)
    forward = model.forward
    model.forward = outputs  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    try:
        (found,) = trainer.test(model, datamodule=network.data, verbose=False)
    finally:
        model.forward = forward  # type: ignore[method-assign]
    name = "test_accuracy" if "test_accuracy" in found else "test_perplexity"
    return (name, found[name]), outputs.logits


@dataclass
class Noted:
    """A forward whose first logits are kept."""

    forward: Callable[..., Any]
    logits: list[Tensor] = field(default_factory=list)

    def __call__(self, *inputs: Any) -> Any:
        """Call the forward."""
        outputs = self.forward(*inputs)
        if sum(logits.numel() for logits in self.logits) < COMPARED:
            self.logits.append(outputs if isinstance(outputs, Tensor) else outputs[0])
        return outputs


def shipped_table(found: Sequence[Record]) -> str:
    """Size, quality, differences and speed of each network in each form, from its last records."""
    if not found:
        return NOT_MEASURED
    latest = [r for name in dict.fromkeys(_network(r) for r in found) for r in last_runs(_of(found, name))]
    lines = []
    for name in dict.fromkeys(map(_network, latest)):
        group = _of(latest, name)
        threads = sorted({record["parameters"]["threads"] for record in group})
        word, scale = NAMES[next(record["metric"] for record in group if "metric" in record)]
        speeds = " | ".join(f"times as fast as float, threads: {count}" for count in threads)
        lines += [
            f"`{name}`:",
            "",
            f"| form | kB | {word} | difference | argmax agrees | median of outputs | largest of a layer | {speeds} |",
            f"| --- |{' ---: |' * (6 + len(threads))}",
        ]
        for record in (record for record in group if record["parameters"]["threads"] == threads[0]):
            cells = [record["case"], f"{record['bytes'] / 1000:,.1f}", *_quality(record, scale)]
            for count in threads:
                rounds = [other for other in group if other["parameters"]["threads"] == count]
                cells.append(show(ratio(rounds, FLOAT, record["case"])))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, where(latest)])


def _quality(record: Mapping[str, Any], scale: float) -> list[str]:
    if "metric" not in record:
        return [""] * 5
    value, difference = record["value"] * scale, record["difference"] * scale
    agreement, error = record["argmax_agreement"], record["median_error"]
    layers = "" if record["layer_error"] is None else f"{record['layer_error']:.1e}"
    return [f"{value:.3f}", f"{difference:+.5f}", f"{agreement:.2%}", f"{error:.1e}", layers]


def _network(record: Record) -> str:
    name: str = record["parameters"]["network"]
    return name


def _of(found: Sequence[Record], name: str) -> list[Record]:
    return [record for record in found if _network(record) == name]


if __name__ == "__main__":
    main()
