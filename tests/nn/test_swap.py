"""Swapping a class changes nothing that a user can see, survives copies and pickles, and is undone exactly."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_balq.nn import quantize_, quantized_layers, unquantize_
from lightning_balq.nn.swap import Swapped, original_class, restore_class, swap_class
from tests.helpers import assert_equal, everything, randn, run_python, snapshot, tiny_model


class Loud(Swapped):
    """A mixin to swap in."""

    def forward(self, x):
        return -super().forward(x)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Custom(nn.Linear):
    """A subclass at module level, so that it can be pickled."""

    def forward(self, x):
        return super().forward(x).relu()


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


# --- The class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [nn.Linear, Custom])
def test_swapped_class_carries_the_names_of_the_original(cls):
    layer = cls(4, 3)
    before = repr(layer)
    swap_class(layer, Loud)
    swapped = type(layer)
    assert swapped is not cls
    assert issubclass(swapped, Loud)
    assert isinstance(layer, cls)
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    assert [getattr(swapped, name) for name in names] == [getattr(cls, name) for name in names]
    assert repr(layer) == before


def test_modules_of_one_class_share_one_swapped_class():
    first, second, other = nn.Linear(1, 1), nn.Linear(2, 2), Custom(1, 1)
    for module in (first, second, other):
        swap_class(module, Loud)
    assert type(first) is type(second)
    assert type(first) is not type(other)


def test_swapping_twice_is_swapping_once():
    layer = linear()
    swap_class(layer, Loud)
    once = snapshot(layer)
    swap_class(layer, Loud)
    assert snapshot(layer) == once


def test_mixin_runs_in_front_of_the_forward():
    layer, reference = linear(), linear()
    swap_class(layer, Loud)
    assert_equal(layer(randn(2, 4)), -reference(randn(2, 4)))


def test_original_class_is_that_without_the_mixin():
    layer = linear()
    assert original_class(layer) is nn.Linear
    swap_class(layer, Loud)
    assert original_class(layer) is nn.Linear


def test_restoring_a_class_undoes_a_swap_and_nothing_else():
    layer = linear()
    before = snapshot(layer)
    restore_class(layer)
    assert snapshot(layer) == before
    swap_class(layer, Loud)
    restore_class(layer)
    assert snapshot(layer) == before


# --- Parametrized modules --------------------------------------------------------------------------------------------


def test_mixin_sits_below_the_class_that_parametrize_made():
    layer = linear()
    parametrize.register_parametrization(layer, "weight", Halved())
    made = type(layer)
    swap_class(layer, Loud)
    assert type(layer).__name__ == "ParametrizedLinear"
    assert type(layer).__mro__[1].__mro__[1] is Loud
    restore_class(layer)
    assert type(layer) is made


def test_parametrization_made_before_is_removed_while_swapped():
    layer, value = linear(), linear().weight.detach() / 2
    parametrize.register_parametrization(layer, "weight", Halved())
    swap_class(layer, Loud)
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer, Loud)
    restore_class(layer)
    assert type(layer) is nn.Linear
    assert_equal(layer.weight.detach(), value)


def test_parametrization_made_while_swapped_remains_when_restored():
    layer, reference = linear(), linear()
    swap_class(layer, Loud)
    for module in (layer, reference):
        parametrize.register_parametrization(module, "weight", Halved())
    restore_class(layer)
    assert not isinstance(layer, Swapped)
    assert parametrize.is_parametrized(layer, "weight")
    assert_equal(layer(randn(2, 4)), reference(randn(2, 4)))
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear


def test_second_parametrized_tensor_made_while_swapped_remains_when_restored():
    layer, reference = linear(), linear()
    for module in (layer, reference):
        parametrize.register_parametrization(module, "weight", Halved())
    made = type(layer)
    swap_class(layer, Loud)
    for module in (layer, reference):
        parametrize.register_parametrization(module, "bias", Halved())
        parametrize.register_parametrization(module, "weight", Halved())
    restore_class(layer)
    assert type(layer) is made
    assert_equal(layer(randn(2, 4)), reference(randn(2, 4)))
    for name in ("weight", "bias"):
        parametrize.remove_parametrizations(layer, name)
    assert type(layer) is nn.Linear


def test_one_of_two_parametrized_tensors_removed_while_swapped_is_gone_when_restored():
    layer, reference = linear(), linear()
    for module in (layer, reference):
        parametrize.register_parametrization(module, "weight", Halved())
        parametrize.register_parametrization(module, "bias", Halved())
    swap_class(layer, Loud)
    for module in (layer, reference):
        parametrize.remove_parametrizations(module, "weight")
    restore_class(layer)
    assert isinstance(layer.weight, nn.Parameter)
    assert not isinstance(layer.bias, nn.Parameter)
    assert_equal(layer(randn(2, 4)), reference(randn(2, 4)))


# --- Copies and pickles ----------------------------------------------------------------------------------------------


def through_pickle(model, protocol=pickle.HIGHEST_PROTOCOL):
    return pickle.loads(pickle.dumps(model, protocol))


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "pickle, protocol 0": lambda model: through_pickle(model, 0),
    "torch.save": through_torch,
}


def models():
    torch.manual_seed(0)
    yield "plain", tiny_model(), randn(2, 1, 8, 8)
    yield "subclass", nn.Sequential(Custom(4, 4), Custom(4, 3)), randn(2, 4)
    yield "layer", nn.Linear(4, 3), randn(2, 4)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    yield "encoder", encoder, randn(2, 3, 8)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["plain", "subclass", "layer", "encoder"])
def test_copy_is_quantized_independent_and_can_be_unquantized(kind, how):
    model, x = next((model, x) for name, model, x in models() if name == kind)
    keys = [list(module.__dict__) for module in model.modules()]
    types = [type(module) for module in model.modules()]
    quantize_(model, everything(activation_bits=3))
    model.eval()
    expected = model(x)
    copied = COPIES[how](model)
    assert_equal(copied(x), expected)
    assert len(list(quantized_layers(copied))) == len(list(quantized_layers(model)))

    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_equal(model(x), expected)

    unquantize_(copied)
    assert [type(module) for module in copied.modules()] == types
    assert [list(module.__dict__) for module in copied.modules()] == keys
    assert_equal(model(x), expected)
    assert any(quantized_layers(model))


@pytest.mark.parametrize("how", COPIES)
def test_copy_has_one_schedule_of_its_own_and_its_own_ranges(how):
    model = tiny_model()
    quantize_(model, everything(activation_bits=3))
    copied = COPIES[how](model)
    states = [state for _, _, state in quantized_layers(model)]
    copies = [state for _, _, state in quantized_layers(copied)]
    assert len({id(state.schedule) for state in states}) == 1
    assert len({id(state.schedule) for state in copies}) == 1
    assert copies[0].schedule is not states[0].schedule
    before = [state.inputs["input"].pending.clone() for state in states]
    copied(randn(2, 1, 8, 8))
    copies[0].schedule.set_blend(0.0)
    assert states[0].schedule.phase == "quantized"
    assert_equal([state.inputs["input"].pending for state in states], before)


def test_deepcopy_of_a_parametrized_layer_can_be_unquantized_alone():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(linear()))
    made = type(model[0])
    quantize_(model, everything())
    copied = copy.deepcopy(model)
    expected = model(randn(2, 4))
    assert_equal(copied(randn(2, 4)), expected)
    unquantize_(copied)
    assert type(copied[0]) is made
    assert_equal(model(randn(2, 4)), expected)
    assert_equal(copied(randn(2, 4)), nn.utils.parametrizations.weight_norm(linear())(randn(2, 4)))


def test_pickle_of_a_parametrized_layer_is_refused_as_torch_refuses_it():
    layer = nn.utils.parametrizations.weight_norm(linear())
    quantize_(layer, everything())
    with pytest.raises(
        RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"
    ):
        pickle.dumps(layer)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("materialised", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copy_of_a_lazy_layer_is_quantized(how, materialised):
    layer = nn.LazyLinear(3)
    quantize_(layer, everything())
    if materialised:
        layer(randn(2, 4))
    copied = COPIES[how](layer)
    assert type(copied) is type(layer)
    torch.manual_seed(0)
    copied(randn(2, 4))
    unquantize_(copied)
    assert type(copied) is nn.Linear


def test_saved_quantized_model_runs_in_a_fresh_process(tmp_path):
    model = tiny_model()
    quantize_(model, everything(activation_bits=3))
    model.eval()
    torch.save({"model": model, "x": randn(2, 1, 8, 8), "y": model(randn(2, 1, 8, 8)).detach()}, tmp_path / "model.pt")
    script = """
import sys, torch
saved = torch.load(sys.argv[1], weights_only=False)
same = torch.equal(saved["model"](saved["x"]), saved["y"])
from lightning_balq import unquantize_
unquantize_(saved["model"])
print(same, type(saved["model"][0]) is torch.nn.Conv2d)
"""
    assert run_python(script, tmp_path / "model.pt") == "True True"
