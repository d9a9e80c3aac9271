"""Run exported files in their engines, and tell what went into their layers and came out of them."""

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_balq.cli.runs import Exported, tensors_of
from lightning_balq.export import deploy_report, to_deploy
from lightning_balq.export.deploy_layers import register_operators
from lightning_balq.export.onnx.marks import ENTRY, LayerCall, from_entry
from lightning_balq.export.onnx.packages import onnx_library
from lightning_balq.nn.layers import clean_name


def run_onnx(path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Exported:
    """Run an ONNX file in ONNX Runtime, on the CPU and with the options that this has by default.

    Outputs are those of the file as it is; the values of layers are those of a second run, in which they are outputs
    too, so that the engine fuses nothing across them.

    Raises:
        ImportError: if onnx or onnxruntime is not installed, naming what to install.
        ValueError: if it is not an ONNX file, or does not run on these inputs.
        OSError: if it cannot be read.
    """
    onnx, runtime = onnx_library(), _onnx_runtime()
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # of protobuf and onnx
        raise ValueError(f"{str(path)!r} is not a whole ONNX file: {_first_line(error)}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        calls = from_entry(metadata.get(ENTRY, "[]"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    feed = _feed(path, [value.name for value in model.graph.input], args, kwargs)
    outputs = [value.name for value in model.graph.output]
    values = _run_session(runtime, path, data, outputs, feed)
    found = [torch.from_numpy(values[name]) for name in outputs]
    known = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer} | feed
    wanted = {name for call in calls for name in (*call.inputs.values(), *call.outputs.values())}
    made = {name for node in model.graph.node for name in node.output}
    missing = wanted - made - known.keys()
    if missing:
        raise ValueError(f"{str(path)!r} holds no value {min(missing)!r}, which its metadata name")
    more = sorted(wanted - known.keys())
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in more if name not in outputs)
    if more:
        known |= _run_session(runtime, path, model.SerializeToString(), more, feed)
    tensors = {name: torch.from_numpy(known[name].copy()) for name in wanted}
    return Exported(
        tensors_of(found),
        [LayerCall(call.layer, _named(call.inputs, tensors), _named(call.outputs, tensors)) for call in calls],
        note="the file does not name the values of all of their calls",
    )


def run_program(path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any], model: nn.Module) -> Exported:
    """Run a file of ``torch.export``, made from a deploy model of ``model``, as it is: in float, uncompiled.

    Raises:
        ImportError: if torch lacks the operators and torchao is not installed.
        ValueError: if it is not such a file, or does not run on these inputs.
        OSError: if it cannot be read.
    """
    register_operators()
    with path.open("rb"):  # what is missing or a folder is an OSError that names it
        pass
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # of torch about its own trees
            program = torch.export.load(str(path))
            separate = torch.export.unflatten(program)
            outputs = tensors_of(program.module()(*args, **kwargs))
    except Exception as error:  # of zip, json, torch and what the file holds
        raise ValueError(f"{str(path)!r} does not run on the inputs, or is not whole: {_first_line(error)}") from error
    names: dict[nn.Module, str] = {}
    layers = {}  # by all of their names
    for name, module in model.named_modules(remove_duplicate=False):
        layers[clean_name(name)] = names.setdefault(module, clean_name(name))
    report = deploy_report(to_deploy(model))
    integer = {layer.name for layer in report.int8}
    calls: list[LayerCall] = []

    def note(name: str) -> Any:
        def hook(module: Any, given: tuple[Any, ...], output: Any) -> None:
            inputs, outputs = _flat(given), _flat(output)  # outputs: its own, after those that residuals take from it
            if len(inputs) == 1 and outputs:
                calls.append(LayerCall(name, {0: inputs[0].clone()}, {0: outputs[-1].clone()}))

        return hook

    for place, module in separate.named_modules():
        name = layers.get(place.partition("@")[0])  # later calls of a layer have names of their own
        if name in integer:
            module.register_forward_hook(note(name))
    separate(*args, **kwargs)
    return Exported(
        outputs,
        calls,
        {layer.name: layer.norm for layer in report.int8 if layer.norm},
        note="of a file of torch.export, only layers in int8 are compared",
    )


def _flat(value: Any) -> list[Tensor]:
    """All tensors of tuples, lists and dicts, in their order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _flat(item)]


def _feed(path: Path, names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by the names of inputs; those of keywords by their names, if the file has kept these."""
    if set(names) == kwargs.keys() and not args:
        values = [kwargs[name] for name in names]
    else:
        values = [*_flat(args), *_flat(kwargs)]
    if len(values) != len(names) or not all(isinstance(value, Tensor) for value in values):
        raise ValueError(f"{str(path)!r} takes {len(names)} tensors, {names}, and the inputs hold {len(values)}")
    return {name: value.detach().cpu().numpy() for name, value in zip(names, values, strict=True)}


def _run_session(runtime: Any, path: Path, model: bytes, outputs: list[str], feed: Mapping[str, Any]) -> dict[str, Any]:
    try:
        session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return dict(zip(outputs, session.run(outputs, dict(feed)), strict=True))
    except Exception as error:  # its errors have no common type but this
        raise ValueError(f"{str(path)!r} does not run on the inputs: {_first_line(error)}") from error


def _named(names: Mapping[int, str], tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    return {place: tensors[name] for place, name in names.items()}


def _onnx_runtime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            "running ONNX files needs the package onnxruntime, for Python 3.11 and newer: "
            "pip install lightning-balq[onnx]",
            name="onnxruntime",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).partition("\n")[0]
