"""Random configurations that fit a network: every argument of the callbacks and of ``QuantizationConfig``."""

from typing import Any

from hypothesis import strategies as st
from torch import nn

from lightning_balq import (
    BalancedQuantization,
    BalancedQuantizer,
    DoReFaQuantization,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantization,
    LSQQuantizer,
    QuantizationConfig,
    UniformQuantization,
    UniformQuantizer,
)

bits = st.integers(1, 8)
centers = st.sampled_from(["mean", "median"])
scales = st.sampled_from(["max", "mean", "least_squares"])
granularities = st.sampled_from(["per_tensor", "per_channel"])
grids = st.sampled_from(["integer", "symmetric"])


@st.composite
def weight_quantizers(draw: Any) -> Any:
    """Weight quantizers of all kinds; the widths are such that a layer may be given any other by name."""
    kind = draw(st.sampled_from(["balanced", "balanced", "uniform", "dorefa", "learned", "lsq"]))
    if kind == "balanced":
        return BalancedQuantizer(draw(bits), draw(centers), draw(scales), draw(granularities))
    if kind == "uniform":
        return UniformQuantizer(draw(bits), draw(scales), draw(granularities))
    if kind == "dorefa":
        return DoReFaQuantizer(draw(bits), draw(granularities))
    if kind == "learned":
        return LearnedBalancedQuantizer(draw(bits), draw(granularities), draw(centers))
    grid = draw(grids)
    return LSQQuantizer(draw(st.integers(2 if grid == "integer" else 1, 8)), draw(granularities), grid)


@st.composite
def options_for(draw: Any, model: nn.Module) -> dict[str, Any]:
    """Arguments that callbacks and ``QuantizationConfig`` have in common, such that something is quantized."""
    layers = _Layers(model)
    options: dict[str, Any] = {
        "activation_bits": draw(st.none() | bits),
        "activation_range": draw(st.sampled_from(["observed", "observed", "unit", "pact", "lsq"])),
        "activation_sign": draw(st.sampled_from(["auto", "unsigned", "signed"])),
        "recurrent": draw(st.none() | weight_quantizers()) if layers.recurrent else None,
    }
    named = draw(st.integers(0, 3)) == 0
    if named:
        chosen = draw(_some(layers.all, min_size=1))
        options |= {"include": chosen, "exclude": []}
    else:
        tables = layers.tables if draw(st.booleans()) else []
        excluded = draw(_some(layers.others, max_size=min(2, len(layers.others) - 1)))
        chosen = [name for name in layers.all if name not in excluded and (name in tables or name in layers.others)]
        everything = draw(st.sampled_from([["*"], ["net"], ["net.*"], ["type:Sequential"]]))
        options |= {"include": [*everything, *["type:Embedding"] * bool(tables)], "exclude": excluded}
    # A layer with a width of its own is quantized wherever it stands; on the integer grid of LSQ it has 2 bits or more.
    by_weight = draw(_some(chosen))
    options["weight_bits_by_layer"] = {name: draw(st.integers(2, 8)) for name in by_weight}
    sure = [*by_weight, *[name for name in chosen if name in layers.recurrent]]
    sure += [name for name in chosen if name in layers.plain][1:-1]
    options["quantize_first_last"] = draw(st.booleans()) or not (sure or named)
    quantized = chosen if named or options["quantize_first_last"] else sure
    by_input = draw(_some([name for name in quantized if name in layers.others]))
    options["activation_bits_by_layer"] = {name: draw(bits) for name in by_input}
    for name in chosen:
        if name in layers.recurrent:
            _draw_parts(draw, options, name)
    return options


class _Layers:
    """Names of the layers of a model that can be quantized.

    Attributes:
        all: in the order of ``named_modules()``.
        tables: embeddings.
        others: all but these.
        recurrent: recurrent layers and cells.
        plain: neither tables nor recurrent.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        inside = {f"{name}.out_proj" for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)}

        def named(*types: type[nn.Module]) -> list[str]:
            return [name for name, module in modules.items() if isinstance(module, types) and name not in inside]

        self.tables = named(nn.Embedding)
        self.recurrent = named(nn.RNNBase, nn.RNNCellBase)
        self.plain = named(nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
        self.all = [name for name in modules if name in {*self.tables, *self.recurrent, *self.plain}]
        self.others = [name for name in self.all if name not in self.tables]


def _some(names: list[str], *, min_size: int = 0, max_size: int = 2) -> Any:
    if not names:
        return st.just([])
    return st.lists(st.sampled_from(names), min_size=min_size, max_size=max_size, unique=True)


def _draw_parts(draw: Any, options: dict[str, Any], name: str) -> None:
    """Options of the parts of a recurrent layer."""
    if draw(st.integers(0, 2)) == 0 and name not in options["weight_bits_by_layer"]:
        options["weight_bits_by_layer"][f"{name}.{draw(_weight_parts)}"] = draw(st.integers(2, 8))
    elif draw(st.integers(0, 2)) == 0:
        part = draw(st.sampled_from(["kernel", "recurrent", "input", "state"]))
        options["exclude"] = [*options["exclude"], f"{name}.{part}"]


_weight_parts = st.sampled_from(["kernel", "recurrent"])


@st.composite
def configurations(draw: Any, model: nn.Module) -> QuantizationConfig:
    """Configurations that fit a model."""
    return QuantizationConfig(draw(weight_quantizers()), **draw(options_for(model)))


@st.composite
def callbacks(draw: Any, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and arguments of callbacks that fit a model and change it within the first steps."""
    name = draw(st.sampled_from(sorted(CALLBACKS)))
    arguments = draw(options_for(model))
    if name == "LSQQuantization":
        arguments["grid"] = draw(grids)
    arguments["weight_bits"] = draw(st.integers(2 if arguments.get("grid") == "integer" else 1, 8))
    if name == "BalancedQuantization":
        arguments |= {"center": draw(centers), "scale": draw(scales | st.just("learned"))}
    if name == "UniformQuantization":
        arguments["scale"] = draw(scales)
    arguments |= {
        "granularity": draw(granularities),
        "best_when_quantized": draw(st.booleans()),
        "non_finite": draw(st.sampled_from(["error", "warn"])),
        "start_step": draw(st.integers(0, 2)),
        "blend_steps": draw(st.integers(0, 2)),
        "learned_lr_factor": draw(st.sampled_from([1, 0.1, 10.0])),
        "reuse_quantized": draw(st.booleans()),
        "record_every_n_steps": draw(st.integers(0, 3)),
        "verbose": draw(st.integers(0, 1)),
        "name": draw(st.none() | st.text(max_size=5)),
    }
    return name, arguments


CALLBACKS = {
    cls.__name__: cls for cls in (BalancedQuantization, DoReFaQuantization, LSQQuantization, UniformQuantization)
}
