"""NaN and infinity are found in all that a quantized layer is made of, and in checkpoints of it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_balq.nn import LSQQuantizer, NonFiniteError, quantize_, quantized_layers
from lightning_balq.nn.finite import check_checkpoint, check_layers, non_finite
from tests.helpers import everything, randn, tiny_model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "largest", 1.0], ids=str)
def test_what_is_found_is_what_numpy_finds(dtype, value):
    largest = torch.finfo(dtype).max
    for index in (0, 17, 1000):
        tensor = randn(1001, dtype=dtype)
        tensor[index] = largest if value == "largest" else value
        if value == "largest":
            tensor[(index + 1) % 1001] = largest  # their sum overflows, they do not
        expected = not np.isfinite(tensor.double().numpy()).all()
        assert bool(non_finite({("layer", "part"): tensor})) == expected


def test_nothing_is_found_where_nothing_can_be():
    tensors = {("a", "empty"): torch.ones(0), ("a", "codes"): torch.ones(3, dtype=torch.int64)}
    assert non_finite(tensors | {("a", "meta"): torch.ones(3, device="meta")}) == []
    assert non_finite({}) == []


def parts(model):
    """Everything that must be finite, by how an error calls it."""
    quantizer = {name: state for name, _, state in quantized_layers(model)}["hidden"]
    parts = {"`weight`": model.hidden.weight.data}
    for name in quantizer.learned():
        parts[f"`{name}`"] = model.hidden._parameters[name].data
    for name, activation in quantizer.inputs.items():
        if activation.observing:
            parts[f"range of `{name}`"] = activation.range
    return parts


OBSERVED = everything(activation_bits=2)
LEARNED = everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq")
PACT = everything(activation_bits=2, activation_range="pact")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (OBSERVED, {"`weight`", "range of `input`"}),
        (LEARNED, {"`weight`", "`balq_log_scale_weight`", "`balq_log_scale_input`", "range of `input`"}),
        (PACT, {"`weight`", "`balq_range_input`", "range of `input`"}),
    ],
    ids=["observed", "lsq", "pact"],
)
def test_every_part_of_a_layer_is_named_when_it_breaks(config, names):
    model = tiny_model()
    quantize_(model, config)
    check_layers(quantized_layers(model))
    assert set(parts(model)) == names
    for name in names:
        broken = copy.deepcopy(model)
        parts(broken)[name].view(-1)[0] = float("nan")
        with pytest.raises(NonFiniteError, match=rf"^{name} of layer 'hidden' holds NaN or infinite values, which"):
            check_layers(quantized_layers(broken))


def test_several_layers_are_counted():
    model = tiny_model()
    quantize_(model, OBSERVED)
    for layer in (model.conv, model.hidden, model.head):
        layer.weight.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"`weight` of layer 'conv' holds .* \(one of 3 layers\); expected"):
        check_layers(quantized_layers(model))


def test_lazy_layers_are_left_out():
    model = nn.Sequential(nn.LazyLinear(3))
    quantize_(model, everything())
    check_layers(quantized_layers(model))


@pytest.mark.parametrize("section", ["state_dict", "current_model_state"])
def test_checkpoint_is_refused_for_what_it_holds_and_not_for_the_model(section):
    model = tiny_model()
    quantize_(model, OBSERVED)
    model.head.weight.data[0, 0] = float("nan")
    sound = {"state_dict": tiny_model().state_dict(), "current_model_state": tiny_model().state_dict()}
    check_checkpoint(model, sound | {"global_step": 7})
    broken = tiny_model().state_dict()
    broken["conv.bias"][1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"`bias`.* of layer 'conv' .*, at step 7: no checkpoint was written;"):
        check_checkpoint(model, sound | {section: broken, "global_step": 7})


def test_checkpoint_is_refused_for_ranges_that_go_with_it():
    model = tiny_model()
    quantize_(model, OBSERVED)
    parts(model)["range of `input`"].fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"range of `input` of layer 'hidden' .*: no checkpoint was written"):
        check_checkpoint(model, {"state_dict": tiny_model().state_dict()})


def test_shards_and_layers_that_are_not_quantized_are_not_looked_at():
    model = tiny_model()
    quantize_(model, everything(include=["conv"]))
    weights = tiny_model().state_dict()
    weights["hidden.weight"][0, 0] = float("nan")
    weights["conv.weight"] = torch.full((5,), float("nan"))  # a rank's part of it, in one piece
    check_checkpoint(model, {"state_dict": weights})
