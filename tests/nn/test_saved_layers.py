"""How layers are quantized goes into plain values and comes back."""

import pytest
import torch
from torch import nn

from lightning_balq import (
    BalancedQuantizer,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    UniformQuantizer,
    quantize_,
)
from lightning_balq.nn import WeightQuantizer, quantized_layers
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.saved_layers import METHODS, build_layer, build_quantizer, layer_states, quantizer_state
from lightning_balq.nn.schedule import Schedule
from tests.helpers import everything

QUANTIZERS = [
    BalancedQuantizer(3, "median", "mean", "per_channel"),
    UniformQuantizer(1, "least_squares"),
    DoReFaQuantizer(8, "per_channel"),
    LearnedBalancedQuantizer(2, "per_channel", "median"),
    LSQQuantizer(4, "per_tensor", "symmetric"),
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda quantizer: type(quantizer).__name__)
def test_quantizer_comes_back_equal(quantizer):
    assert build_quantizer(quantizer_state(quantizer)) == quantizer


def test_every_quantizer_of_the_package_is_known():
    def concrete(cls):
        return [each for sub in cls.__subclasses__() for each in [sub, *concrete(sub)]]

    here = {cls for cls in concrete(WeightQuantizer) if cls.__module__ == WeightQuantizer.__module__}
    assert {cls for cls in here if not cls.__abstractmethods__} == set(METHODS.values())


def test_layer_comes_back_with_all_its_parts():
    layer = nn.LSTM(4, 4)
    options = {"activation_bits": 3, "activation_range": "lsq", "recurrent": UniformQuantizer(4)}
    quantize_(layer, everything(BalancedQuantizer(2), **options))
    ((_, _, state),) = quantized_layers(layer)
    built = build_layer("", nn.LSTM(4, 4), layer_states(layer)[""], Schedule(), LevelCache())
    assert built.settings() == state.settings()
    assert {key: type(value) for key, value in built.inputs.items()} == {
        key: type(value) for key, value in state.inputs.items()
    }


def test_state_loads_with_weights_only(tmp_path):
    layer = nn.Linear(3, 3)
    quantize_(layer, everything(activation_bits=3))
    torch.save(layer_states(layer), tmp_path / "s.pt")
    assert torch.load(tmp_path / "s.pt", weights_only=True) == layer_states(layer)


SOUND = {"weights": {"weight": {"method": "UniformQuantizer", "bits": 2}}, "inputs": {}}


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (None, "what the checkpoint says of layer 'a' cannot be understood: the layer must be a mapping"),
        ({"weights": [], "inputs": {}}, "`weights` must be a mapping with string keys, got list"),
        ({"weights": {}, "inputs": {}}, "layer 'a' is a Linear without quantized weights"),
        ({"weights": {"weight": {"method": "eval", "bits": 2}}, "inputs": {}}, "expected a method of .* got 'eval'"),
        ({"weights": {"weight": {"method": ["x"]}}, "inputs": {}}, r"expected a method of .* got \['x'\]"),
        ({"weights": {"weight": {"method": "UniformQuantizer", "bits": 9}}, "inputs": {}}, "must be from 1 to 8"),
        ({"weights": {"weight": {"method": "UniformQuantizer", "b": 2}}, "inputs": {}}, "cannot be built from"),
        ({"weights": {"weight": {"method": "UniformQuantizer", "bits": "2"}}, "inputs": {}}, "cannot be built from"),
        ({"weights": {"other": SOUND["weights"]["weight"]}, "inputs": {}}, r"a Linear without \['other'\]"),
        (SOUND | {"inputs": {"input": {"bits": 2}}}, "an input quantizer cannot be built"),
        (SOUND | {"inputs": {"input": {"bits": 2, "range_mode": "x", "sign": "auto"}}}, "`activation_range` must be"),
        (SOUND | {"inputs": {"key": {"bits": 2, "range_mode": "unit", "sign": "auto"}}}, r"a Linear without \['key'\]"),
    ],
)
def test_state_that_lies_is_refused(state, match):
    with pytest.raises(ValueError, match=match):
        build_layer("a", nn.Linear(3, 3), state, Schedule(), LevelCache())
