"""Random networks: a description that can be printed and shrunk, and the module that it stands for.

A network is drawn part by part, each fitting the shape that the parts before it leave behind. Descriptions are plain
values, so that a failing example is readable, and building one twice gives the same network twice.
"""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

BATCH = 3
"""Examples in a batch."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
KINDS = ("vector", "signal", "image", "volume", "tokens", "sequence")
DIMENSIONS = {"signal": 1, "image": 2, "volume": 3}


# --- Modules that layers are used in ---------------------------------------------------------------------------------


class Plus(nn.Module):
    """A residual connection."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Twice(nn.Module):
    """A module that is called twice in a forward, and reachable by two names."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.again = inner, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.inner(x).tanh())


class Branches(nn.Module):
    """Parts in a dictionary, and one in a list that no module owns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"one": inner, "other": copy.deepcopy(inner)})
        self.order = [self.parts["other"], self.parts["one"]]

    def forward(self, x: Tensor) -> Tensor:
        return self.order[0](x) + self.order[1](x)


class Own(nn.Linear):
    """A user's layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 2, self.bias)


class Standardized(nn.Conv2d):
    """A user's convolution that changes its weight before it uses it."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class First(nn.Module):
    """The output of a recurrent layer, without its states."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Packed(First):
    """The same, of sequences of different lengths."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = [max(x.shape[1] - index % 2, 1) for index in range(len(x))]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.inner(packed)[0], batch_first=True)[0]


class Steps(First):
    """A recurrent cell, called once a step with the state that it left."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.inner(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


class SelfAttention(First):
    """Attention whose three inputs are one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class CrossAttention(First):
    """Attention of a sequence to what has been seen of it elsewhere, by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1)[..., : self.inner.kdim]
        return self.inner(x, key=other, value=other)[0]


class Tied(nn.Module):
    """A table of tokens that is also the weight of the last layer."""

    def __init__(self, inner: nn.Module, tokens: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.inner = inner
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.table(x)))


class Mean(nn.Module):
    """The mean over everything but examples and channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.dim, 1).flatten(2).mean(2)


OWN = {cls.__name__: cls for cls in (Plus, Twice, Branches, Own, Standardized, First, Packed, Steps)}
OWN |= {cls.__name__: cls for cls in (SelfAttention, CrossAttention, Tied, Mean)}


# --- Descriptions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A module by the name of its class, in ``torch.nn`` or above, with modules inside.

    Attributes:
        type: name of the class.
        options: keyword arguments of its constructor.
        inside: modules inside; one that stands alone is given as it is, several as a sequence.
        weights: what the weights of quantizable layers are, beside ``"random"``.
        change: what was done to the layer: ``"weight_norm"``, ``"spectral_norm"``, ``"pruned"`` or ``"frozen"``.
    """

    type: str
    options: dict[str, Any] = field(default_factory=dict)
    inside: tuple["Part", ...] = ()
    weights: str = "random"
    change: str = ""

    def build(self) -> nn.Module:
        inside = [part.build() for part in self.inside]
        if self.type == "Sequential":
            return nn.Sequential(*inside)
        if self.inside:
            inside = [inside[0] if len(inside) == 1 else nn.Sequential(*inside)]
        cls = OWN[self.type] if self.type in OWN else getattr(nn, self.type)
        module: nn.Module = cls(*inside, **self.options)
        if self.weights != "random":
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    if "weight" in name:
                        parameter.copy_(_FILLED[self.weights](parameter))
        return _CHANGED[self.change](module) if self.change else module


@dataclass(frozen=True)
class Network:
    """Description of a network.

    Attributes:
        kind: what its input is, one of :data:`KINDS`.
        shape: shape of one example.
        parts: the modules it runs through.
        dtype: name of the type of its parameters.
        seed: of its parameters and of its data.
    """

    kind: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    dtype: str = "float32"
    seed: int = 0

    def build(self) -> "Root":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Root(nn.Sequential(*[part.build() for part in self.parts])).to(DTYPES[self.dtype])

    def batch(self, index: int) -> Tensor:
        """Batch of the number ``index``."""
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        if self.kind == "tokens":
            return torch.randint(TOKENS, (BATCH, *self.shape), generator=generator)
        return torch.randn((BATCH, *self.shape), generator=generator).to(DTYPES[self.dtype])


class Root(nn.Module):
    """The network as a root module, with the hooks that the checkpoints of a LightningModule go through."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["own"]


_FILLED = {
    "zero": torch.zeros_like,
    "equal": lambda weight: torch.full_like(weight, 0.25),
    "tiny": lambda weight: weight * 1e-12,
    "ties": lambda weight: (4 * weight).round() / 4,
}


def _pruned(layer: nn.Module) -> nn.Module:
    mask = torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % 2
    return prune.custom_from_mask(layer, "weight", mask)


_CHANGED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "pruned": _pruned,
    "frozen": lambda layer: layer.requires_grad_(False),
}

# --- Strategies ------------------------------------------------------------------------------------------------------

TOKENS = 7
_widths = st.sampled_from([2, 4, 6])
_flags = st.booleans()
_activations = st.sampled_from(["ReLU", "Tanh", "Sigmoid", "GELU", "Identity", "LeakyReLU"])
_weights = st.sampled_from(["random"] * 6 + list(_FILLED))
_changes = st.sampled_from([""] * 6 + list(_CHANGED))


@st.composite
def networks(draw: Any, kind: str) -> Network:
    """Networks whose input is of a kind."""
    dtype = draw(st.sampled_from(["float32"] * 6 + ["float64", "bfloat16"]))
    if kind == "vector":
        shape: tuple[int, ...] = (draw(_widths),)
        parts, width = _run(draw, _vector_part, shape, 3)
    elif kind in DIMENSIONS:
        shape = (draw(_widths), *[draw(st.integers(3, 5)) for _ in range(DIMENSIONS[kind])])
        parts, width = _run(draw, _image_part, shape, 3)
        parts.append(Part("Mean", {"dim": 1}))
    else:
        shape, parts, width = _sequences(draw, kind)
    if parts[0].type != "Tied":
        head = _layer(draw, "Linear", in_features=width, out_features=draw(_widths))
        parts += [Part(draw(_activations)), replace(head, change="") if head.change == "frozen" else head]
    if dtype == "bfloat16" and any(_has_no_bfloat16(part) for part in parts):
        dtype = "float32"
    return Network(kind, shape, tuple(parts), dtype, draw(st.integers(0, 99)))


def _run(draw: Any, part_of: Any, shape: tuple[int, ...], most: int) -> tuple[list[Part], int]:
    """Parts one after the other, and the width that they leave behind."""
    parts = []
    for _ in range(draw(st.integers(1, most))):
        part, shape = part_of(draw, shape)
        parts.append(part)
    return parts, shape[0]


def _sequences(draw: Any, kind: str) -> tuple[tuple[int, ...], list[Part], int]:
    length, width = draw(st.integers(2, 4)), draw(_widths)
    tied = kind == "tokens" and draw(_flags)
    parts, inside = [], width
    for _ in range(draw(st.integers(1, 2))):
        part, inside = _sequence_part(draw, inside, keep=tied)
        parts.append(part)
    if kind == "sequence":
        return (length, width), [*parts, Part("Mean", {"dim": 2})], inside
    if tied:
        return (length,), [Part("Tied", {"tokens": TOKENS, "width": width}, tuple(parts))], inside
    options = {"padding_idx": draw(st.integers(0, TOKENS - 1))} if draw(_flags) else {}
    table = Part("Embedding", {"num_embeddings": TOKENS, "embedding_dim": width, **options}, weights=draw(_weights))
    return (length,), [table, *parts, Part("Mean", {"dim": 2})], inside


def _layer(draw: Any, type_: str, **options: Any) -> Part:
    """A layer with a weight of its own, in one of the states in which weights are met."""
    weights, change = draw(_weights), draw(_changes)
    # What divides by the norm of a weight has no value where that is zero.
    if change in ("weight_norm", "spectral_norm") and weights in ("zero", "tiny", "ties"):
        weights = "random"
    return Part(type_, {"bias": draw(_flags), **options}, weights=weights, change=change)


def _around(draw: Any, part: Part) -> Part:
    """A part that keeps the shape, alone or in one of the ways in which such parts are used."""
    how = draw(st.sampled_from(["", "", "Plus", "Twice", "Branches", "Sequential"]))
    # torch cannot copy a weight that was computed from a parameter before.
    if how == "Branches" and part.change == "pruned":
        how = "Plus"
    if how == "Sequential":
        return Part("Sequential", {}, (part, Part(draw(_activations))))
    return Part(how, {}, (part,)) if how else part


def _vector_part(draw: Any, shape: tuple[int, ...]) -> tuple[Part, tuple[int, ...]]:
    (width,) = shape
    what = draw(st.sampled_from(["Linear", "Linear", "Own", "same", "same", "BatchNorm1d", "LayerNorm", "Dropout"]))
    if what == "BatchNorm1d":
        return Part(what, {"num_features": width}), shape
    if what == "LayerNorm":
        return Part(what, {"normalized_shape": width}), shape
    if what == "Dropout":
        return Part(what, {"p": 0.3}), shape
    if what == "same":
        type_ = draw(st.sampled_from(["Linear", "Own"]))
        return _around(draw, _layer(draw, type_, in_features=width, out_features=width)), shape
    new = draw(_widths)
    return _layer(draw, what, in_features=width, out_features=new), (new,)


def _image_part(draw: Any, shape: tuple[int, ...]) -> tuple[Part, tuple[int, ...]]:
    channels, *sizes = shape
    dimensions = len(sizes)
    what = draw(st.sampled_from(["conv", "conv", "transposed", "same", "BatchNorm", "GroupNorm", "Dropout", "relu"]))
    if what == "BatchNorm":
        return Part(f"BatchNorm{dimensions}d", {"num_features": channels}), shape
    if what == "GroupNorm":
        return Part(what, {"num_groups": 2, "num_channels": channels}), shape
    if what == "Dropout":
        return Part(f"Dropout{dimensions}d", {"p": 0.3}), shape
    if what == "relu":
        return Part(draw(_activations)), shape
    new = channels if what == "same" else draw(_widths)
    groups = draw(st.sampled_from([g for g in (1, 2, math.gcd(channels, new)) if channels % g == 0 == new % g]))
    common = {"in_channels": channels, "out_channels": new, "groups": groups}
    if what == "transposed":
        stride = draw(st.integers(1, 2)) if max(sizes) <= 4 else 1
        kernel = draw(st.integers(1, 2))
        extra = draw(st.integers(0, stride - 1))
        options = {"kernel_size": kernel, "stride": stride, "output_padding": extra}
        grown = [(size - 1) * stride + kernel + extra for size in sizes]
        return _layer(draw, f"ConvTranspose{dimensions}d", **common, **options), (new, *grown)
    padding_mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    if what == "same":
        type_ = "Standardized" if dimensions == 2 and draw(_flags) else f"Conv{dimensions}d"
        kernel = draw(st.sampled_from([1, 3])) if min(sizes) > 1 else 1
        options = {"kernel_size": kernel, "padding": kernel // 2, "padding_mode": padding_mode}
        return _around(draw, _layer(draw, type_, **common, **options)), shape
    kernel = draw(st.integers(1, min(3, *sizes)))
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1)) if min(sizes) > 1 else 0
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "padding_mode": padding_mode}
    shrunk = [(size + 2 * padding - kernel) // stride + 1 for size in sizes]
    return _layer(draw, f"Conv{dimensions}d", **common, **options), (new, *shrunk)


def _sequence_part(draw: Any, width: int, *, keep: bool) -> tuple[Part, int]:
    """A part of a network of sequences of shape (N, T, F), and the F that it leaves behind."""
    choices = ["SelfAttention", "CrossAttention", "encoder", "linear", "norm"]
    if not keep:
        choices += ["recurrent"] * 4 + ["cell"] * 2
    what = draw(st.sampled_from(choices))
    if what == "norm":
        return Part("LayerNorm", {"normalized_shape": width}), width
    if what == "linear":
        return _around(draw, _layer(draw, "Linear", in_features=width, out_features=width)), width
    if what == "encoder":
        options = {"d_model": width, "nhead": 2, "dim_feedforward": 4, "batch_first": True, "dropout": 0.1}
        return Part("TransformerEncoderLayer", {**options, "norm_first": draw(_flags)}), width
    if what in ("SelfAttention", "CrossAttention"):
        options = {"embed_dim": width, "num_heads": 2, "batch_first": True, "bias": draw(_flags)}
        if what == "CrossAttention":
            options["kdim"] = options["vdim"] = draw(st.sampled_from([width, 2]))
        return Part(what, {}, (Part("MultiheadAttention", options, weights=draw(_weights)),)), width
    new = draw(_widths)
    options = {"input_size": width, "hidden_size": new, "bias": draw(_flags)}
    type_ = draw(st.sampled_from(["RNN", "LSTM", "GRU"]))
    if type_ == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if what == "cell":
        return Part("Steps", {}, (Part(f"{type_}Cell", options, weights=draw(_weights)),)), new
    options |= {"num_layers": draw(st.integers(1, 2)), "bidirectional": draw(_flags), "batch_first": True}
    if options["num_layers"] == 2:
        options["dropout"] = draw(st.sampled_from([0.0, 0.3]))
    if type_ == "LSTM" and new > 2 and draw(_flags):
        options["proj_size"] = 2
    left = options.get("proj_size", new) * (2 if options["bidirectional"] else 1)
    return Part(draw(st.sampled_from(["First", "Packed"])), {}, (Part(type_, options, weights=draw(_weights)),)), left


def _has_no_bfloat16(part: Part) -> bool:
    """Whether torch itself may not run a part in bfloat16 on every processor."""
    names = ("RNN", "LSTM", "GRU", "Attention", "Transformer", "Tied")
    changed = part.change in ("weight_norm", "spectral_norm")
    return changed or any(name in part.type for name in names) or any(map(_has_no_bfloat16, part.inside))
