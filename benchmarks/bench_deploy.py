"""Time of an image through a network in int8, against float networks in torch and in ONNX Runtime.

Question: how much faster is a quantized network in int8, made by `to_deploy`, than the same network in float?
Not measured: accuracy, larger batches, other processors; sizes of files.
Run: python -m benchmarks.bench_deploy

Batch 1, channels last, weights frozen where code is compiled, for float too. Weights are random: times do not depend on
them. The first and the last layer are float in all. ONNX Runtime is left out, with a line that says so, where the
packages onnxruntime and onnxscript are not installed. Its threads must not spin while others are measured, so they
stop after each call. ``--quick``: ResNet-20 on a small image instead of ResNet-18.
"""

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, measure
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from lightning_balq import BalancedQuantizer, QuantizationConfig, quantize_
from lightning_balq.export import compile_deploy, deploy_report, to_deploy
from lightning_balq.nn import activation_quantizers, update_ranges_
from recipes.models.cifar_resnet import resnet20
from recipes.models.resnet import resnet18

BITS = 4
REFERENCE = "float, torch"
COMPILED = "float, torch compiled"
RUNTIME = "float, ONNX Runtime"
INT8 = f"int8, balanced W{BITS}A{BITS}"
BAR = 0.769
"""Time in int8 that ONNX Runtime takes 1.3 times as long as in float."""

RESNET18, RESNET20 = "ResNet-18, 224x224", "ResNet-20, 32x32"


@dataclass(frozen=True)
class Deployed:
    """A network and its images.

    Attributes:
        build: makes the network, given the number of classes.
        classes: number of classes.
        size: width and height of an image.
    """

    build: Callable[[int], nn.Module]
    classes: int
    size: int


NETWORKS = {RESNET18: Deployed(resnet18, 1000, 224), RESNET20: Deployed(resnet20, 10, 32)}


def run(options: Options) -> Iterator[list[Record]]:
    """Measure one network in all ways."""
    name = RESNET20 if options.quick else RESNET18
    network = NETWORKS[name]
    torch.manual_seed(0)
    plain = network.build(network.classes)
    images = torch.randn(8, 3, network.size, network.size)
    quantized = quantized_copy(plain, images)
    plain = plain.train()
    with torch.no_grad():
        plain(images)  # the statistics of its norms
    plain.eval().to(memory_format=torch.channels_last)
    deployed = to_deploy(quantized)
    image = images[:1].contiguous(memory_format=torch.channels_last)
    cases: dict[str, Case] = {
        REFERENCE: partial(forward, plain, image),
        COMPILED: partial(compile_deploy(plain), image),
        INT8: partial(compile_deploy(deployed), image),
    }
    with tempfile.TemporaryDirectory() as folder:
        session = runtime(plain, image, Path(folder))
        if session is None:
            print("left out: ONNX Runtime (pip install onnxruntime onnxscript)")
        else:
            cases[RUNTIME] = session
        layers = len(deploy_report(deployed).int8)
        parameters = {
            "network": name,
            "threads": torch.get_num_threads(),
            "int8_layers": layers,
            "instructions": instructions(),
        }
        yield records(measure(cases, options.device, options.repeats).items(), parameters, REFERENCE)


def instructions() -> str:
    """Which vectors torch uses on this processor, and whether they multiply bytes in one step, as int8 wants."""
    supports = getattr(torch.cpu, "_is_vnni_supported", None) or getattr(torch.cpu, "_is_cpu_support_vnni", None)
    return torch.backends.cpu.get_cpu_capability() + (" with VNNI" if supports is not None and supports() else "")


def quantized_copy(plain: nn.Module, images: Tensor) -> nn.Module:
    """Quantized network that has seen a batch, in evaluation mode."""
    model = copy.deepcopy(plain)
    quantize_(model, QuantizationConfig(BalancedQuantizer(BITS), activation_bits=BITS))
    model.train()(images)
    update_ranges_(activation_quantizers(model))
    return model.eval()


@torch.no_grad()
def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Run a model without gradients."""
    return model(images)


def runtime(model: nn.Module, image: Tensor, folder: Path) -> Case | None:
    """The float network in ONNX Runtime; ``None`` if it is not installed."""
    if any(importlib.util.find_spec(package) is None for package in ("onnxruntime", "onnxscript")):
        return None
    import onnxruntime

    path = folder / "float.onnx"
    torch.onnx.export(model, (image,), path, dynamo=True, verbose=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: image.numpy()}
    difference = abs(session.run(None, given)[0] - forward(model, image).numpy()).max()
    if difference > 1e-3:
        raise RuntimeError(f"ONNX Runtime computes something else: outputs differ by {difference}")
    return lambda: session.run(None, given)


BENCHMARK = Benchmark("bench_deploy", __doc__, run, repeats=50, quick_repeats=20, threads=(1, 2))

if __name__ == "__main__":
    BENCHMARK.main()
