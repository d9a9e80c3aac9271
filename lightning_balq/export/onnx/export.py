"""Write a quantized model to an ONNX file."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_balq import __version__
from lightning_balq.export.describe import describe
from lightning_balq.export.description import Description
from lightning_balq.export.onnx.expand import expand
from lightning_balq.export.onnx.graph import OPSET
from lightning_balq.export.onnx.marks import ENTRY, to_entry
from lightning_balq.export.onnx.packages import onnx_library, torch_symbols
from lightning_balq.export.onnx.plan import MODES, LayerPlan, Mode, plan_layers
from lightning_balq.export.onnx.report import OnnxReport
from lightning_balq.export.onnx.trace import NotExportableError, placeholders
from lightning_balq.export.replacing import replacing
from lightning_balq.functional._checks import check_choice
from lightning_balq.nn.layers import clean_name


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    mode: Mode = "portable",
    integer_convolutions: bool = False,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> OnnxReport:
    """Write a quantized model to an ONNX file of standard operators, with weights of as many bits as they have codes.

    Weights are stored as packed codes, which the runtime decodes when it loads the file; they are then those of the
    model, bit for bit. Activations are the quotients and roundings of
    :func:`lightning_balq.functional.activation_fake_quantize`, so that values on a border between two levels fall on
    the same side, and an exact zero stays zero.

    In ``"portable"`` mode products are those of floats. In ``"integer"`` mode, linear and recurrent layers whose inputs
    are quantized multiply 8-bit integers (MatMulInteger), exactly: sums are whole numbers, scaled once. What cannot
    be computed so is as in portable mode, and the report says why.

    Args:
        model: quantized by a callback, by :func:`lightning_balq.quantize_` or by
            :func:`lightning_balq.export.load_packed`; float32, on the CPU. It is left as it is, and exported as it
            computes in evaluation mode.
        path: file to write, by convention ``*.onnx``; an existing one is replaced only by a whole one.
        example_inputs: arguments of the forward, a tensor, a sequence of arguments, or a mapping of keywords; their
            shapes are those of the file but for what is dynamic.
        mode: ``"portable"`` or ``"integer"``.
        integer_convolutions: in integer mode, also multiply integers in convolutions that have one group and pad by
            zeros. Their windows are gathered first, which takes memory.
        dynamic_shapes: which dimensions of the inputs are free, as :func:`torch.export.export` takes it, such as
            ``({0: torch.export.Dim("batch")},)``.
        input_names: names of the inputs in the file.
        output_names: names of the outputs in the file.

    Returns:
        What was written, weight by weight.

    Raises:
        ImportError: if onnx or onnxscript is not installed: they come with ``pip install lightning-balq[onnx]``; or if
            torch is older than 2.8.
        TypeError: if ``model`` is not a module.
        ValueError: if ``mode`` is unknown, the model cannot be described
            (see :func:`lightning_balq.export.describe`), or holds weights that are not float32 or not on the CPU, or
            uses an input whose range no training batch has shown.
        OSError: if the file cannot be written.
    """
    check_choice(mode, "mode", MODES)
    onnx = onnx_library()
    torch_symbols()
    description = describe(model)
    _check_float32(model, description)
    modules = {clean_name(name): module for name, module in model.named_modules()}
    plans = plan_layers(description, modules, mode, integer_convolutions=integer_convolutions)
    proto = _traced(model, plans, example_inputs, dynamic_shapes, input_names, output_names)
    marks = expand(proto, plans, description.weights())
    metadata = {"lightning_balq": __version__, "mode": mode, ENTRY: to_entry(marks)}
    onnx_library("helper").set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    path = Path(path)
    with replacing(path) as draft:
        onnx.save(proto, str(draft), format="protobuf")
    weights = list({id(weight): weight for weight in description.weights().values()}.values())
    return OnnxReport(
        path,
        path.stat().st_size,
        mode,
        tuple(report for plan in plans.values() for report in plan.reports()),
        float_bytes=sum(4 * weight.codes.numel() for weight in weights),
        code_bytes=sum(weight.code_bytes for weight in weights),
    )


def _check_float32(model: nn.Module, description: Description) -> None:
    for key, weight in description.weights().items():
        if weight.dtype != torch.float32:
            raise ValueError(f"the weight {key!r} is {weight.dtype}; expected float32: call `model.float()` first")
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.device.type != "cpu":
            raise ValueError(f"{name!r} is on {value.device}; expected a model on the CPU: call `model.cpu()` first")


def _traced(
    model: nn.Module,
    plans: Mapping[str, LayerPlan],
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    dynamic_shapes: Any,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> Any:
    """ONNX model with placeholders."""
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] | None = None
    if isinstance(example_inputs, Tensor):
        arguments = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        keywords = dict(example_inputs)
    else:
        arguments = tuple(example_inputs)
    with placeholders(model, plans), _quiet():
        try:
            program = torch.onnx.export(
                model,
                arguments,
                kwargs=keywords,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
        except Exception as error:
            ours = _ours(error)
            if ours is None:
                raise
            raise ours from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the context, torch says nothing of its own trees, nor that torchvision has no operators to register."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        logger.setLevel(level)


def _ours(error: BaseException | None) -> NotExportableError | None:
    """What a layer refused, which torch wraps into errors of its own."""
    while error is not None:
        if isinstance(error, NotExportableError):
            return NotExportableError(str(error))
        error = error.__cause__ or error.__context__
    return None
