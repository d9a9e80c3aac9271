"""Time of quantizing all weights of a network, against the least that memory allows, and the launches that it takes.

The reference copies as many values as the weights have, which reads and writes each once. A quantizer that reads its
weights n times and writes them once cannot take less than (n + 1) / 2 of that: ``floor`` of a record. Uniform levels
read twice, for the scale and for the codes, balanced ones once more for each bit. Weights that fit into a cache of the
GPU can be faster than that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.alternatives import straight_through, uniform
from benchmarks.harness import Case, measure
from benchmarks.peers import weight_peers
from benchmarks.program import Options, records
from benchmarks.records import Record
from lightning_balq import BalancedQuantizer, UniformQuantizer
from lightning_balq.nn import WeightQuantizer
from recipes.models.language import LanguageModel
from recipes.models.networks import build

REFERENCE = "copy"
BITS = (2, 4)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": partial(build, "resnet18", 1000),
    "LSTM of the Penn Treebank": LanguageModel,
    "ResNet-50": partial(build, "resnet50", 1000),
    "AlexNet": partial(build, "alexnet", 1000),
}


def run(name: str, bits: int, options: Options) -> list[Record]:
    """Measure all quantizers of one network and width."""
    torch.manual_seed(0)
    model = MODELS[name]().to(options.device)
    weights = [parameter.detach() for parameter in model.parameters() if parameter.dim() > 1]
    made = cases(weights, bits)
    measured = measure(made, options.device, options.repeats, budget=options.budget)
    sizes = {"weights": sum(map(Tensor.numel, weights)), "tensors": len(weights)}
    group = records(measured.items(), {"model": name, "bits": bits, **sizes}, REFERENCE)
    floors = {"uniform": (2 + 1) / 2, "balanced mean": (bits + 1 + 1) / 2}
    return [
        record | {"launches": launches(made[record["case"]], options.device), "floor": floors.get(record["case"])}
        for record in group
    ]


def cases(weights: Sequence[Tensor], bits: int) -> dict[str, Case]:
    """The reference, this library's quantizers, what a user would write, and peers."""
    flat = torch.cat([weight.flatten() for weight in weights])
    copy = torch.empty_like(flat)
    made: dict[str, Case] = {
        REFERENCE: lambda: copy.copy_(flat),
        "balanced mean": _all(BalancedQuantizer(bits), weights),
        "uniform": _all(UniformQuantizer(bits), weights),
        "balanced median": _all(BalancedQuantizer(bits, center="median"), weights),
        "uniform, op by op": _each([straight_through(uniform, weight, bits, per_channel=False) for weight in weights]),
    }
    return made | peers(weights, bits)


def peers(weights: Sequence[Tensor], bits: int) -> dict[str, Case]:
    """Quantizers of other libraries, which know convolutions; a matrix is one too."""
    convolutions = [nn.Parameter(weight[..., None, None] if weight.dim() == 2 else weight) for weight in weights]
    found = [weight_peers(convolutions[0], bits, per_channel=False)]
    with redirect_stdout(StringIO()):  # which peers are left out has been said
        found += [weight_peers(weight, bits, per_channel=False) for weight in convolutions[1:]]
    return {name: _each([one[name] for one in found]) for name in found[0]}


def launches(case: Case, device: torch.device) -> int | None:
    """Kernels and copies that one call launches on a GPU; ``None`` on a CPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        case()
        torch.cuda.synchronize(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events() or ())


def groups() -> Iterator[tuple[str, int]]:
    """Networks and widths, the more important first."""
    for name in MODELS:
        for bits in BITS:
            yield name, bits


def _all(quantizer: WeightQuantizer, weights: Sequence[Tensor]) -> Case:
    return lambda: quantizer.levels_of_all(weights)


def _each(calls: Sequence[Case]) -> Case:
    return lambda: [call() for call in calls]
