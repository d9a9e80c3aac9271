"""Forward of quantized recurrent layers.

As long as the hidden state stays float, torch's own kernels run on quantized weights. With a quantized hidden state,
every layer and direction is a loop over steps (see :mod:`lightning_balq.kernels.recurrent`).
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from lightning_balq import functional
from lightning_balq.functional.recurrent import Mode, Recurrence, StateGrid, initial_state
from lightning_balq.kernels.plain import is_plain
from lightning_balq.kernels.recurrent import recurrent_fake_quantize
from lightning_balq.nn.inputs import map_first_tensor
from lightning_balq.nn.layers import RUNNING, STATE, LayerQuantizer, quantized_weights
from lightning_balq.nn.learned import Learning
from lightning_balq.nn.states import state_grid
from lightning_balq.nn.swap import module_of


class QuantizedRecurrent(Learning):
    """Mixin of :class:`torch.nn.RNN`, :class:`torch.nn.LSTM` and :class:`torch.nn.GRU`, and of users' subclasses."""

    def _update_flat_weights(self) -> None:
        # Called by every forward, to collect the parameters anew.
        if RUNNING not in self.__dict__:
            super()._update_flat_weights()  # type: ignore[misc]  # "_update_flat_weights" undefined in superclass

    # A compiled model runs recurrent layers as they are, torch's own too.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Quantize the input and every weight; the hidden states too, or call the original forward."""
        layer = module_of(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        original = super().forward  # type: ignore[misc]  # "forward" undefined in superclass
        args, kwargs = map_first_tensor(lambda x: quantizer.quantize_input(layer, "input", x), original, args, kwargs)
        if RUNNING in layer.__dict__:  # a forward that calls itself
            return original(*args, **kwargs)
        with quantized_weights(layer, quantizer), _flat_weights(layer):
            if "state_l0" in quantizer.inputs and quantizer.schedule.phase != "float":
                return _forward(layer, quantizer, *args, **kwargs)
            if _runs_in_cudnn(layer._flat_weights):
                layer.__dict__["_flat_weights"] = list(_OneChunk.apply(layer, *layer._flat_weights))  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return original(*args, **kwargs)


@contextmanager
def _flat_weights(layer: Any) -> Iterator[None]:
    """Within the context, torch's kernels get the weights as they read now."""
    entries = layer.__dict__
    earlier = entries["_flat_weights"]
    entries["_flat_weights"] = [getattr(layer, name) for name in layer._flat_weights_names]
    try:
        yield
    finally:
        entries["_flat_weights"] = earlier


def _runs_in_cudnn(weights: list[Tensor]) -> bool:
    """Whether cuDNN gets these weights as they are; under autocast, torch makes copies of another type itself."""
    return (
        all(is_plain(weight, "cuda") for weight in weights)
        and torch.backends.cudnn.is_acceptable(weights[0])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        and not torch.is_autocast_enabled("cuda")
    )


class _OneChunk(torch.autograd.Function):
    """Copies of weights in one chunk of memory, as cuDNN wants them; it would copy them itself, and warn of that."""

    @staticmethod
    def forward(ctx: Any, layer: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        copies = [weight.clone(memory_format=torch.contiguous_format) for weight in weights]
        layer.__dict__["_flat_weights"] = copies
        torch.nn.RNNBase.flatten_parameters(layer)  # moves them, as it moves parameters
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradients


class _Sequences(NamedTuple):
    """Input of a recurrent layer, whatever form it came in, as a packed sequence with initial states.

    Attributes:
        data: rows of all steps, shape ``(N, F)``.
        sizes: number of sequences that reach each step.
        hidden: initial hidden states, shape ``(layers * directions, B, H)``.
        cell: initial cell states, likewise; used by an LSTM alone.
    """

    data: Tensor
    sizes: tuple[int, ...]
    hidden: Tensor
    cell: Tensor


def _forward(layer: Any, quantizer: LayerQuantizer, input: Any, hx: Any = None) -> Any:
    """What the layer's own forward does, with hidden states quantized at every step."""
    sequences = _unpack(layer, input, hx)
    # Steps run in the type of the weights: sums over a whole sequence are no matter for half precision.
    with torch.autocast(sequences.data.device.type, enabled=False):
        outputs, hidden, cell = _run_layers(layer, quantizer, sequences)
    state: Any = (hidden, cell) if layer.mode == "LSTM" else hidden
    if isinstance(input, PackedSequence):
        packed = PackedSequence(outputs, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        return packed, layer.permute_hidden(state, input.unsorted_indices)
    if input.dim() == 2:
        return outputs, (hidden[:, 0], cell[:, 0]) if layer.mode == "LSTM" else hidden[:, 0]
    outputs = torch.unflatten(outputs, 0, (len(sequences.sizes), -1))
    return outputs.transpose(0, 1) if layer.batch_first else outputs, state


def _unpack(layer: Any, input: Any, hx: Any) -> _Sequences:
    """Bring the arguments of a forward into one form, with torch's own checks."""
    order = None
    if isinstance(input, PackedSequence):
        data, sizes, order = input.data, input.batch_sizes, input.sorted_indices
        steps = tuple(sizes.tolist())
    else:
        if input.dim() not in (2, 3):
            raise ValueError(f"{layer.mode}: expected input to be 2D or 3D, got {input.dim()}D instead")
        data, sizes = input if input.dim() == 3 else input.unsqueeze(0 if layer.batch_first else 1), None
        length, batch = data.shape[:2][:: -1 if layer.batch_first else 1]
        if length == 0:
            raise ValueError(f"{layer.mode}: expected a sequence of at least one step, got shape {tuple(input.shape)}")
        steps = (batch,) * length
    states: list[Tensor] = [] if hx is None else list(hx) if layer.mode == "LSTM" else [hx]
    if sizes is None and input.dim() == 2:
        states = [state.unsqueeze(1) for state in states]
    weight = layer._flat_weights[0]
    if data.dtype != weight.dtype and torch.is_autocast_enabled(data.device.type):
        data = data.to(weight.dtype)
    if order is not None:
        states = [state.index_select(1, order) for state in states]
    states = [state.to(weight.dtype) for state in states]
    hidden, cell = states + _zeros(layer, data, steps[0])[len(states) :]
    layer.check_forward_args(data, (hidden, cell) if layer.mode == "LSTM" else hidden, sizes)
    if sizes is None:
        data = (data.transpose(0, 1) if layer.batch_first else data).flatten(0, 1)
    return _Sequences(data, steps, hidden, cell)


def _zeros(layer: Any, data: Tensor, batch: int) -> list[Tensor]:
    directions = layer.num_layers * (2 if layer.bidirectional else 1)
    return [
        data.new_zeros(directions, batch, size) for size in (layer.proj_size or layer.hidden_size, layer.hidden_size)
    ]


def _run_layers(layer: Any, quantizer: LayerQuantizer, sequences: _Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """States of the last layer, and hidden and cell states at the end of all layers and directions."""
    data, ends = sequences.data, []
    for index in range(layer.num_layers):
        runs = [
            _Direction(layer, f"_l{index}{suffix}", sequences.sizes, bool(suffix))
            for suffix in (("", "_reverse") if layer.bidirectional else ("",))
        ]
        places = range(index * len(runs), (index + 1) * len(runs))
        jobs = [
            (run, data, sequences.hidden[place], sequences.cell[place]) for run, place in zip(runs, places, strict=True)
        ]
        state = quantizer.inputs[f"state_l{index}"]
        grid = state_grid(quantizer, state, functools.partial(_sample, jobs), data.device)
        results = [run(rows, initial_state(h, grid), c, grid) for run, rows, h, c in jobs]
        if layer.training and torch.is_grad_enabled():
            state.observe(_joined([result.raw for result in results]))
        data = _joined([result.states for result in results])
        if index < layer.num_layers - 1:
            data = F.dropout(data, layer.dropout, layer.training)
        ends += results
    return data, torch.stack([end.hidden for end in ends]), torch.stack([end.cell for end in ends])


class _Direction(NamedTuple):
    """One direction of one layer of a recurrent module.

    Attributes:
        layer: the module.
        suffix: ends the names of its weights.
        sizes: number of sequences that reach each step.
        reverse: whether it starts at the last step.
    """

    layer: Any
    suffix: str
    sizes: tuple[int, ...]
    reverse: bool

    def __call__(self, data: Tensor, hidden: Tensor, cell: Tensor, grid: StateGrid | None) -> Recurrence:
        """Run all steps; without a grid nothing is quantized."""
        mode: Mode = self.layer.mode
        kernel, recurrent = self._read("weight_ih"), self._read("weight_hh")
        kernel_bias, recurrent_bias = self._read("bias_ih"), self._read("bias_hh")
        assert kernel is not None and recurrent is not None
        if mode != "GRU" and kernel_bias is not None and recurrent_bias is not None:
            kernel_bias, recurrent_bias = kernel_bias + recurrent_bias, None
        run = functional.recurrent_fake_quantize if grid is None else recurrent_fake_quantize
        return run(
            mode,
            F.linear(data, kernel, kernel_bias),
            hidden,
            cell,
            recurrent,
            recurrent_bias,
            cast(StateGrid, grid),
            sizes=self.sizes,
            reverse=self.reverse,
            projection=self._read("weight_hr"),
        )

    def _read(self, name: str) -> Tensor | None:
        weight: Tensor | None = getattr(self.layer, name + self.suffix, None)
        return weight


@torch.no_grad()
def _sample(jobs: list[tuple[_Direction, Tensor, Tensor, Tensor]]) -> Tensor:
    """Hidden states of a layer as they are while none is quantized."""
    return _joined([run(data, hidden, cell, None).states for run, data, hidden, cell in jobs])


def _joined(directions: list[Tensor]) -> Tensor:
    return directions[0] if len(directions) == 1 else torch.cat(directions, dim=1)
