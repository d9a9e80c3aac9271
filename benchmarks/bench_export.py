"""Time of exported networks in ONNX Runtime, integer and portable, against the same network in float.

Question: how much faster are integer products of 4-bit weights and activations than float ones, how large are the
files, and how far are their results from PyTorch's?
Not measured: other runtimes, convolutions, whole networks.
Run: python -m benchmarks.bench_export

``float``: the float layer as torch exports it. ``portable`` and ``integer``: the modes of ``export_onnx``; weights are
packed in both. ``integer, products alone``: the graph of ``integer`` without what quantizes inputs and scales outputs;
in a recurrent layer, without all that a step does beside its product. No form around the same products can be faster.
Threads are those of the runtime, which spin no longer than a call. ``--quick``: smaller layers.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import measure
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record
from lightning_balq import BalancedQuantizer, QuantizationConfig, quantize_
from lightning_balq.export.onnx import export_onnx
from lightning_balq.export.onnx.graph import OPSET
from lightning_balq.nn import activation_quantizers, settle_ranges_, update_ranges_

REFERENCE, PORTABLE, INTEGER = "float", "portable", "integer"
PRODUCTS = "integer, products alone"
BITS = 4


class Recurrent(nn.Module):
    """States of an LSTM."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(units, units)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.rnn(x)[0]
        return states


LINEAR, SOFTMAX = "linear 4096x4096, batch 1", "softmax layer 300x10000, batch 1"
LSTM, LSTM_BATCH = "LSTM of 300 units, 35 steps, batch 1", "LSTM of 300 units, 35 steps, batch 20"

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    LINEAR: (lambda: nn.Linear(4096, 4096), (1, 4096)),
    SOFTMAX: (lambda: nn.Linear(300, 10_000), (1, 300)),
    LSTM: (lambda: Recurrent(300), (35, 1, 300)),
    LSTM_BATCH: (lambda: Recurrent(300), (35, 20, 300)),
}
QUICK: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear 512x512, batch 1": (lambda: nn.Linear(512, 512), (1, 512)),
    "LSTM of 64 units, 10 steps, batch 1": (lambda: Recurrent(64), (10, 1, 64)),
}


def run(options: Options) -> Iterator[list[Record]]:
    """Measure every layer; without ONNX Runtime say so and measure none."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not measured, because these packages are not installed: {', '.join(missing)}")
        return
    for name, (make, shape) in (QUICK if options.quick else LAYERS).items():
        torch.manual_seed(0)
        layer, x = make().eval(), torch.randn(shape)
        with tempfile.TemporaryDirectory() as folder:
            files = write(layer, x, Path(folder))
            sizes = {case: path.stat().st_size for case, path in files.items()}
            sessions = {case: open_session(path) for case, path in files.items()}
        feeds = {case: feed(session, x) for case, session in sessions.items()}
        cases = {case: (lambda s=session, f=feeds[case]: s.run(None, f)) for case, session in sessions.items()}
        with torch.no_grad():
            right = layer(x)  # quantized by now
        found = {case: torch.from_numpy(run_case()[0]) for case, run_case in cases.items() if case != PRODUCTS}
        parameters = {"layer": name, "threads": torch.get_num_threads(), "bits": BITS}
        group = records(measure(cases, options.device, options.repeats).items(), parameters, REFERENCE)
        for record in group:
            if record["case"] == PRODUCTS:
                continue
            record["file_bytes"] = sizes[record["case"]]
            difference = (found[record["case"]] - right).abs() / right.abs().max()
            if record["case"] != REFERENCE:
                record["error"] = {"median": float(difference.median()), "largest": float(difference.max())}
        yield group


def write(layer: nn.Module, x: Tensor, folder: Path) -> dict[str, Path]:
    """Files of a float layer, which is then quantized, and of that in both modes."""
    files = {case: folder / f"{case}.onnx" for case in (REFERENCE, PORTABLE, INTEGER, PRODUCTS)}
    torch.onnx.export(
        layer, (x,), str(files[REFERENCE]), dynamo=True, opset_version=OPSET, external_data=False, verbose=False
    )
    quantizer = BalancedQuantizer(BITS, scale="mean")
    quantize_(layer, QuantizationConfig(quantizer, activation_bits=BITS, quantize_first_last=True))
    layer.train()
    layer(x)
    update_ranges_(activation_quantizers(layer))
    settle_ranges_(activation_quantizers(layer))
    layer.eval()
    export_onnx(layer, files[PORTABLE], x)
    export_onnx(layer, files[INTEGER], x, mode="integer")
    keep_products(files[INTEGER], files[PRODUCTS])
    return files


def keep_products(source: Path, target: Path) -> None:
    """Write the graph of a layer in integers without all that is no product."""
    import onnx  # an optional package

    model = onnx.load(source)
    scans = [node for node in model.graph.node if node.op_type == "Scan"]
    for loop in (part.g for node in scans for part in node.attribute if part.name == "body"):
        *states, _ = loop.input
        handed_out = next(state for state in states if state.type == loop.output[-1].type)
        pairs = zip([*states, handed_out], loop.output, strict=True)  # states as they are, and one of them
        identities = [onnx.helper.make_node("Identity", [one.name], [other.name]) for one, other in pairs]
        nodes = [*_products(loop), *identities]
        loop.ClearField("node")
        loop.node.extend(nodes)
    if not scans:
        _keep_product(onnx, model.graph)
    onnx.save(model, target)


def _products(graph: Any) -> list[Any]:
    return [node for node in graph.node if node.op_type == "MatMulInteger"]


def _keep_product(onnx: Any, graph: Any) -> None:
    """Keep the one product of a graph, with the constants that it multiplies."""
    (product,) = _products(graph)
    known, nodes = {value.name for value in graph.initializer}, []
    for node in graph.node:
        if known.issuperset(node.input):
            known.update(node.output)
            nodes.append(node)
    shape = [axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim]
    ends = (product.input[0], onnx.TensorProto.UINT8, shape), (product.output[0], onnx.TensorProto.INT32, None)
    given, result = (onnx.helper.make_tensor_value_info(*end) for end in ends)
    for field, values in (("node", [*nodes, product]), ("input", [given]), ("output", [result]), ("value_info", [])):
        graph.ClearField(field)
        getattr(graph, field).extend(values)


def feed(session: Any, x: Tensor) -> dict[str, Any]:
    """Inputs of a session: values, or integers in their place."""
    (given,) = session.get_inputs()
    return {given.name: x.numpy() if given.type == "tensor(float)" else x.abs().to(torch.uint8).numpy()}


def open_session(path: Path) -> Any:
    """Session of a file, with as many threads as torch has."""
    import onnxruntime  # an optional package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else one session delays the next
    return onnxruntime.InferenceSession(str(path), options)


BENCHMARK = Benchmark("bench_export", __doc__, run, repeats=30, quick_repeats=5, threads=(1, 2))

if __name__ == "__main__":
    BENCHMARK.main()
