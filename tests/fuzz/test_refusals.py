"""What does not fit is refused with a message that names it, and nothing is changed by that."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized

from lightning_balq import (
    BalancedQuantization,
    BalancedQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    QuantizationConfig,
    UniformQuantizer,
    quantize_,
)
from lightning_balq.nn import plan
from tests.fuzz.configurations import CALLBACKS, callbacks, configurations
from tests.fuzz.networks import KINDS, Network, networks
from tests.helpers import snapshot

# --- Bad arguments ---------------------------------------------------------------------------------------------------

NOTHING = (None, [], {}, (), "", b"", float("nan"), object(), torch.tensor(2), torch.ones(2), np.int64(2), np.ones(2))
no_ints = st.sampled_from([*NOTHING, True, False, "4", 2.0, [4], 1j]) | st.floats() | st.text(max_size=3)
no_bits = st.integers(max_value=0) | st.integers(min_value=9) | no_ints
no_bits_or_none = no_bits.filter(lambda value: value is not None)
no_bools = st.sampled_from([*NOTHING, 0, 1, "True", np.True_]) | st.integers() | st.text(max_size=3)
no_texts = st.sampled_from([*NOTHING[1:4], *NOTHING[5:]]) | st.integers()
no_factors = st.sampled_from([*NOTHING[:9], True, "1", 0, 0.0, -1, -0.5, float("inf"), 10**400, np.ones(2), 1j])
no_patterns = st.sampled_from(
    [None, 3, "*", "net.0", b"net", {"net"}, {"net": 4}, [3], ["net", None], [b"net"], torch.ones(2), object(), [["*"]]]
)
no_includes = no_patterns | st.just([]) | st.just(())
no_tables = st.sampled_from([None, 4, "net", ["net"], {"net"}, {1: 4}, {None: 4}, {b"net": 4}, torch.ones(2)]) | (
    st.dictionaries(st.text(max_size=3), no_bits, min_size=1, max_size=1)
)
no_quantizers = st.sampled_from([*NOTHING[1:], 4, "balanced", BalancedQuantizer, nn.Linear(1, 1)])


def no_choices(*good: str) -> Any:
    return (st.sampled_from([*NOTHING, *[word.upper() for word in good], [good[0]]]) | st.text(max_size=8)).filter(
        lambda value: not any(value is word or (isinstance(value, str) and value == word) for word in good)
    )


BAD = {
    "weight_bits": no_bits,
    "activation_bits": no_bits_or_none,
    "recurrent": no_quantizers,
    "activation_range": no_choices("unit", "observed", "pact", "lsq"),
    "activation_sign": no_choices("auto", "signed", "unsigned"),
    "include": no_includes,
    "exclude": no_patterns,
    "weight_bits_by_layer": no_tables,
    "activation_bits_by_layer": no_tables,
    "quantize_first_last": no_bools,
    "learned_lr_factor": no_factors,
    "start_step": no_ints | st.integers(max_value=-1),
    "blend_steps": no_ints | st.integers(max_value=-1),
    "best_when_quantized": no_bools,
    "reuse_quantized": no_bools,
    "non_finite": no_choices("error", "warn"),
    "record_every_n_steps": no_ints | st.integers(max_value=-1),
    "verbose": no_ints | st.integers(max_value=-1),
    "name": no_texts,
    "center": no_choices("mean", "median"),
    "scale": no_choices("max", "mean", "least_squares", "learned"),
    "granularity": no_choices("per_tensor", "per_channel"),
    "grid": no_choices("integer", "symmetric"),
}


def fields_of(callback: Any) -> set[str]:
    return set(callback.__dataclass_fields__) - {"_"}


def refuses(argument: str, count: int) -> int:
    """How many different sets of arguments with one bad value were refused."""
    net, seen = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))}), set()

    @settings(max_examples=count, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(called=callbacks(net), data=st.data())
    def run(called: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
        name, arguments = called
        if argument not in fields_of(CALLBACKS[name]):
            name, arguments = OWNER[argument], {key: arguments[key] for key in COMMON}
        value = data.draw(BAD[argument], label="value")
        with pytest.raises((TypeError, ValueError), match=rf"`{argument}\b.*must"):
            CALLBACKS[name](**{**arguments, argument: value})
        options = {key: item for key, item in arguments.items() if key in QuantizationConfig.__dataclass_fields__}
        if argument in options:
            with pytest.raises((TypeError, ValueError), match=rf"`{argument}\b.*must"):
                QuantizationConfig(BalancedQuantizer(2), **{**options, argument: value})
        seen.add(f"{name} {sorted(arguments.items())} {value!r:.60}")

    run()
    return len(seen)


OWNER = {"center": "BalancedQuantization", "scale": "UniformQuantization", "granularity": "LSQQuantization"}
OWNER["grid"] = "LSQQuantization"
COMMON = ("activation_bits", "start_step", "include", "verbose")


def test_every_argument_of_every_callback_has_bad_values_to_try() -> None:
    assert set().union(*map(fields_of, CALLBACKS.values())) == set(BAD)


@pytest.mark.parametrize("argument", BAD)
def test_random_bad_arguments_are_refused_by_name(argument: str) -> None:
    assert refuses(argument, 12) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("argument", BAD)
def test_many_random_bad_arguments_are_refused_by_name(argument: str) -> None:
    assert refuses(argument, 300) >= 100


# --- Models and patterns that do not fit -----------------------------------------------------------------------------

Fault = tuple[Any, Any, str]
"""A model, a configuration that does not fit it, and what the message says."""


def quantizable(model: nn.Module) -> list[str]:
    everything = QuantizationConfig(include=["*", "type:Embedding"], quantize_first_last=True)
    try:
        return [layer.name for layer in plan(model, everything).quantized]
    except ValueError:  # no embedding
        return [layer.name for layer in plan(model, replace(everything, include=["*"])).quantized]


def pattern_without_a_match(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    argument = draw(st.sampled_from(["include", "exclude", "weight_bits_by_layer", "activation_bits_by_layer"]))
    strange = st.text("abnet.*?[]!0123_:", max_size=6).map(lambda text: f"{text}~")
    pattern = draw(strange | st.sampled_from(["NET", "net.99", "net.0.weight", "type:", "type:linear", "type:Conv9d"]))
    given = [pattern] if argument in ("include", "exclude") else {pattern: draw(st.integers(1, 8))}
    return model, replace(config, **{argument: given}), rf"`{argument}` holds the pattern {re.escape(repr(pattern))}"


def two_widths(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    argument = draw(st.sampled_from(["weight_bits_by_layer", "activation_bits_by_layer"]))
    name = draw(st.sampled_from(quantizable(model)))
    widths = {name: draw(st.integers(2, 4)), "*": draw(st.integers(5, 8))}
    options = {"include": ["*", name], "exclude": [], "weight_bits_by_layer": {}, "activation_bits_by_layer": {}}
    fitting = replace(config, **{**options, argument: widths, "quantize_first_last": True})
    return model, fitting, rf"`{argument}` gives layer '.*' several widths"


def nothing_left(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    exclude = draw(st.sampled_from([["*"], ["net"], ["net.*"], ["type:Sequential"], quantizable(model)]))
    options = {"weight_bits_by_layer": {}, "activation_bits_by_layer": {}, "exclude": exclude}
    return model, replace(config, **options), "no layer of the model would be quantized"


def asked_for_and_excluded(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    names = quantizable(model)
    name = draw(st.sampled_from(names))
    options = {"weight_bits_by_layer": {}, "activation_bits_by_layer": {}, "quantize_first_last": True}
    fault = draw(st.sampled_from(["include", "weight_bits_by_layer", "activation_bits_by_layer"]))
    options[fault] = ["*", name] if fault == "include" else {name: 3}
    options |= {"exclude": [name], "include": options.get("include", ["*"])}
    left = "no layer of the model would be quantized"
    return model, replace(config, **options), rf"`{fault}` (asks for|sets the bits of) {name!r}|{left}"


def weight_that_is_not_finite(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    assume(not prune.is_pruned(model))  # torch computes what it reads as its weight in the next forward
    names = [layer.name for layer in plan(model, config).quantized]
    layer = model.get_submodule(draw(st.sampled_from(names)))
    value = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    parameters = [p for name, p in layer.named_parameters() if "weight" in name]
    with torch.no_grad():
        for parameter in parameters:  # of a recurrent layer some may stay float
            parameter.view(-1)[draw(st.integers(1, parameter.numel()), label="place") - 1] = value
    return model, config, "holds NaN or infinite values, which have no code"


def weight_of_another_type(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    assume(not prune.is_pruned(model) and not any(map(is_parametrized, model.modules())))
    dtype = draw(st.sampled_from([torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if "weight" in name:
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    return (
        model,
        config,
        rf"no layer of the model would be quantized.* is {str(dtype).removeprefix('torch.')}|stays float",
    )


def quantized_in_another_way(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    quantize_(model, config)
    width = config.weight.bits % 8 + 1 if config.weight.bits < 8 else 2
    options = {"weight": UniformQuantizer(width, "mean"), "recurrent": UniformQuantizer(width, "mean")}
    return (
        model,
        replace(config, **options, weight_bits_by_layer={}, quantize_first_last=True),
        "is quantized already, as",
    )


def lazy_layer_that_would_learn(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    lazy = draw(st.sampled_from([nn.LazyLinear, lambda width: nn.LazyConv2d(width, 1)]))(2)
    model.net.append(lazy)
    weight = draw(st.sampled_from([LSQQuantizer(2), LearnedBalancedQuantizer(1)]))
    name = f"net.{len(model.net) - 1}"
    options = {"include": [name], "exclude": [], "weight_bits_by_layer": {}, "activation_bits_by_layer": {}}
    return model, replace(config, weight=weight, **options), f"layer {name!r} has no weights yet"


def no_model(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    others = [None, 3, "net", type(model), model.state_dict(), list(model.modules()), model.forward, torch.ones(2)]
    return draw(st.sampled_from(others)), config, r"`model` must be a torch\.nn\.Module, got "


def no_configuration(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    others = [4, "balanced", {}, {"weight_bits": 2}, config.weight, QuantizationConfig, BalancedQuantization(2), model]
    return model, draw(st.sampled_from(others)), "`config` must be a QuantizationConfig or None, got "


def no_layers(draw: Any, model: nn.Module, config: QuantizationConfig) -> Fault:
    empty = [
        nn.ReLU(),
        nn.Sequential(),
        nn.BatchNorm1d(3),
        nn.ModuleList([nn.Tanh()]),
        torch.jit.script(nn.Linear(2, 2)),
    ]
    return draw(st.sampled_from(empty)), replace(config, **NO_PATTERNS), "the model has no layer that can be quantized"


NO_PATTERNS = {"include": ["*"], "exclude": [], "weight_bits_by_layer": {}, "activation_bits_by_layer": {}}
FAULTS: list[Callable[..., Fault]] = [
    pattern_without_a_match, two_widths, nothing_left, asked_for_and_excluded, weight_that_is_not_finite,
    weight_of_another_type, quantized_in_another_way, lazy_layer_that_would_learn, no_model, no_configuration,
    no_layers,
]  # fmt: skip


quiet = pytest.mark.filterwarnings("ignore:Lazy modules are a new:UserWarning", "ignore:.*torch.jit:DeprecationWarning")


def refuses_fault(fault: Callable[..., Fault], count: int) -> int:
    """How many different models and configurations were refused, and left as they were."""
    seen = set()

    @settings(max_examples=count, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(network=st.sampled_from(KINDS).flatmap(networks), data=st.data())
    def run(network: Network, data: st.DataObject) -> None:
        model = network.build()
        config = data.draw(configurations(model), label="config")
        given, bad, message = fault(data.draw, model, config)
        before = snapshot(given) if isinstance(given, nn.Module) else None
        with pytest.raises((TypeError, ValueError), match=message):
            quantize_(given, bad)
        if before is not None:
            assert snapshot(given) == before
        seen.add(f"{network} {bad}")

    run()
    return len(seen)


@quiet
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_random_faults_are_refused_and_change_nothing(fault: Callable[..., Fault]) -> None:
    assert refuses_fault(fault, 14) >= 8


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_many_random_faults_are_refused_and_change_nothing(fault: Callable[..., Fault]) -> None:
    assert refuses_fault(fault, 300) >= 100
