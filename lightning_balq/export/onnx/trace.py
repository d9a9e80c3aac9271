"""Let torch write the graph of a quantized model, with placeholders for what is quantized.

While the context is open, quantized layers put operators of a domain of ours into the graph: ``Weight`` and
``Activation`` where a layer's forward reads a weight or quantizes its input, ``Linear``, ``Convolution`` and
``Recurrent`` for layers that are written as a whole, and ``Mark`` around all of them (see ``marks``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lightning_balq.export.description import join
from lightning_balq.export.onnx.convolution import padding
from lightning_balq.export.onnx.marks import marked
from lightning_balq.export.onnx.packages import torch_symbols
from lightning_balq.export.onnx.plan import LayerPlan, is_recurrent_layer
from lightning_balq.export.stored import input_quantizer
from lightning_balq.nn.layers import STATE, LayerQuantizer

DOMAIN = "lightning_balq"
KEY = "key"
"""Attribute of a placeholder: the name of the layer, of the weight, or of the layer and its input."""


class NotExportableError(ValueError):
    """What a model does that a file cannot hold."""


@contextmanager
def placeholders(model: nn.Module, plans: Mapping[str, LayerPlan]) -> Iterator[None]:
    """Within the context, a forward of ``model`` in evaluation mode writes placeholders."""
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        for module in model.modules():
            stack.enter_context(_without_rebuilding(module))
        for plan in plans.values():
            if plan.is_whole:
                stack.enter_context(_entry(plan.layer, "forward", _whole(plan)))
            else:
                state: LayerQuantizer = plan.layer.__dict__[STATE]
                stack.enter_context(_entry(plan.layer, STATE, _Tracing(plan, state)))
        stack.enter_context(marked({plan.name: plan.layer for plan in plans.values()}, _mark))
        yield


class _Tracing(LayerQuantizer):
    """Puts placeholders where weights and inputs of a layer are quantized."""

    def __init__(self, plan: LayerPlan, state: LayerQuantizer) -> None:
        inputs = {name: input_quantizer(given) for name, given in plan.described.inputs.items()}
        super().__init__(state.weights, inputs, state.schedule, state.cache)
        self._plan = plan

    def quantize_weight(self, layer: nn.Module, name: str) -> Tensor:
        shape = self._plan.described.weights[name].shape
        return _symbol("Weight", (), join(self._plan.name, name), torch.float32, shape)

    def quantize_input(self, layer: nn.Module, name: str, value: Tensor) -> Tensor:
        given = self._plan.described.inputs.get(name)
        if given is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        _check_input(self._plan, name, value)
        return _symbol("Activation", (value,), f"{self._plan.name}:{name}", value.dtype, value.shape)


def _whole(plan: LayerPlan) -> Callable[..., Any]:
    """Forward of a layer that is written as a whole."""
    layer: Any = plan.layer
    if is_recurrent_layer(layer):
        return lambda input, hx=None: _recurrent(plan, layer, input, hx)
    write = _linear if isinstance(layer, nn.Linear) else _convolution
    return lambda input: write(plan, layer, input)


def _check_input(plan: LayerPlan, name: str, value: Tensor) -> None:
    where = repr(join(plan.name, name))
    if not plan.described.inputs[name].known:
        raise NotExportableError(
            f"no training batch has shown the range of {where}, and a file needs one: run batches that reach it "
            "through the model in training mode, as `trainer.fit` does"
        )
    if value.dtype != torch.float32:
        raise NotExportableError(f"{where} is {value.dtype}; expected float32, as all of the model must be")


def _linear(plan: LayerPlan, layer: Any, input: Tensor) -> Tensor:
    _check_input(plan, "input", input)
    return _symbol("Linear", (input,), plan.name, input.dtype, (*input.shape[:-1], layer.out_features))


def _convolution(plan: LayerPlan, layer: Any, input: Tensor) -> Tensor:
    _check_input(plan, "input", input)
    spatial = len(layer.kernel_size)
    batch = input if input.dim() == spatial + 2 else input.unsqueeze(0)
    begin, end = padding(layer)
    sizes = [
        (size + first + last - dilation * (kernel - 1) - 1) // stride + 1
        for size, first, last, dilation, kernel, stride in zip(
            batch.shape[2:], begin, end, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
    shape = (batch.shape[0], layer.out_channels, *sizes)
    result = _symbol("Convolution", (batch,), plan.name, input.dtype, shape)
    return result if input.dim() == spatial + 2 else result.squeeze(0)


def _recurrent(plan: LayerPlan, layer: Any, input: Any, hx: Any) -> Any:
    if isinstance(input, PackedSequence):
        raise NotExportableError(
            f"the input of {plan.name!r} is a PackedSequence; expected a tensor, as ONNX has nothing like it"
        )
    for name in plan.described.inputs:
        _check_input(plan, name, input)
    has_batch, is_lstm = input.dim() == 3, layer.mode == "LSTM"
    steps = input if has_batch else input.unsqueeze(0 if layer.batch_first else 1)
    steps = steps.transpose(0, 1) if layer.batch_first else steps
    length, batch = steps.shape[:2]
    directions = 2 if layer.bidirectional else 1
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if is_lstm else 1]
    shapes = [(layer.num_layers * directions, batch, size) for size in sizes]
    if hx is None:
        states = [steps.new_zeros(shape) for shape in shapes]
    else:
        states = [state if has_batch else state.unsqueeze(1) for state in (hx if is_lstm else (hx,))]
    outputs, *ends = torch_symbols().symbolic_multi_out(
        f"{DOMAIN}::Recurrent",
        (steps, *states),
        {KEY: plan.name},
        dtypes=[steps.dtype] * (1 + len(shapes)),
        shapes=[(length, batch, directions * sizes[0]), *shapes],
        version=1,
    )
    outputs = outputs.transpose(0, 1) if layer.batch_first else outputs
    if not has_batch:
        outputs, ends = outputs.squeeze(0 if layer.batch_first else 1), [end.squeeze(1) for end in ends]
    return outputs, tuple(ends) if is_lstm else ends[0]


def _mark(value: Tensor, key: str) -> Tensor:
    return _symbol("Mark", (value,), key, value.dtype, value.shape)


def _symbol(kind: str, inputs: tuple[Tensor, ...], key: str, dtype: torch.dtype, shape: Any) -> Tensor:
    value: Tensor = torch_symbols().symbolic(
        f"{DOMAIN}::{kind}", inputs, {KEY: key}, dtype=dtype, shape=tuple(shape), version=1
    )
    return value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context all modules are in evaluation mode, and attention takes no fused path."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


@contextmanager
def _without_rebuilding(module: nn.Module) -> Iterator[None]:
    """Within the context, no hook of pruning or of a legacy norm makes a weight anew, which tracing does not allow."""
    hooks = module._forward_pre_hooks
    before = dict(hooks)
    for key, hook in before.items():
        if isinstance(hook, (prune.BasePruningMethod, WeightNorm, SpectralNorm)):
            del hooks[key]
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(before)


@contextmanager
def _entry(module: nn.Module, key: str, value: Any) -> Iterator[None]:
    """Within the context, the ``__dict__`` of ``module`` holds ``value``; the order of its keys stays."""
    entries = module.__dict__
    before = dict(entries)
    entries[key] = value
    try:
        yield
    finally:
        if key in before:
            entries[key] = before[key]
        else:
            del entries[key]
