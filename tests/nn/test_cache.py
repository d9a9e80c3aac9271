"""Levels are computed once while a weight stays as it is, and anew whenever that is not certain."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from lightning_balq.nn import BalancedQuantizer, QuantizationConfig, layers, quantize_
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.layers import quantized_layers
from tests.helpers import assert_equal, everything, randn, tiny_model


class Counted:
    """Counts how often levels are computed."""

    def __init__(self, weight):
        self.weight = weight
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.weight.detach() * 2


@pytest.fixture
def parameter():
    return nn.Parameter(randn(6))


@pytest.fixture
def cache():
    cache = LevelCache()
    cache.open(forget=True)
    return cache


def asked_twice(cache, weight, change=lambda: None):
    """How often levels are computed for two requests with a change between them."""
    compute = Counted(weight)
    cache.get(weight, "double", compute)
    change()
    assert_equal(cache.get(weight, "double", compute), weight.detach() * 2)
    return compute.calls


def test_levels_of_an_unchanged_parameter_are_computed_once(cache, parameter):
    assert asked_twice(cache, parameter) == 1


def fused_step(weight):
    weight.grad = torch.ones_like(weight)
    version = weight._version
    torch.optim.Adam([weight], fused=True).step()
    assert weight._version == version  # what makes the version alone useless


def in_place(weight):
    with torch.no_grad():
        weight.mul_(3)


def other_memory(weight):
    weight.data = weight.data * 3


@pytest.mark.parametrize("change", [fused_step, in_place, other_memory], ids=lambda change: change.__name__)
def test_changed_parameter_is_computed_anew(cache, parameter, change):
    assert asked_twice(cache, parameter, lambda: change(parameter)) == 2


@pytest.mark.parametrize("assign", [True, False])
def test_loaded_parameter_is_computed_anew(cache, assign):
    layer = nn.Linear(3, 2)
    first = cache.get(layer.weight, "double", lambda: layer.weight.detach() * 2)
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()}, assign=assign)
    second = cache.get(layer.weight, "double", lambda: layer.weight.detach() * 2)
    assert_equal(second, layer.weight.detach() * 2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("notice", [LevelCache.doubt, lambda cache: cache.open(forget=True)], ids=["doubt", "open"])
def test_silent_edit_is_seen_after_doubt_and_after_opening_anew(cache, parameter, notice):
    assert asked_twice(cache, parameter, lambda: (parameter.data.mul_(3), notice(cache))) == 2


def test_doubt_ends_with_the_batch(cache, parameter):
    assert asked_twice(cache, parameter, lambda: (cache.doubt(), cache.open(forget=False))) == 1


def test_closed_cache_computes_every_time_and_keeps_what_it_has(cache, parameter):
    assert asked_twice(cache, parameter, cache.close) == 2
    assert asked_twice(cache, parameter) == 2
    cache.open(forget=False)
    assert asked_twice(cache, parameter) == 0


def test_tensor_that_is_no_parameter_is_computed_every_time(cache):
    assert asked_twice(cache, randn(4)) == 2


def test_kinds_of_levels_of_one_weight_are_kept_apart(cache, parameter):
    one = cache.get(parameter, "one", lambda: parameter.detach() + 1)
    two = cache.get(parameter, "two", lambda: parameter.detach() + 2)
    assert_equal(one + 1, two)


def test_parameter_at_the_place_of_a_dead_one_is_computed_anew(cache):
    for value in range(20):
        weight = nn.Parameter(torch.full((5,), float(value)))
        assert_equal(cache.get(weight, "same", lambda weight=weight: weight.detach().clone()), weight.detach())
        del weight
        gc.collect()


def test_levels_made_in_inference_mode_can_be_trained_with(cache, parameter):
    with torch.inference_mode():
        levels = cache.get(parameter, "double", Counted(parameter))
    assert not levels.is_inference()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copy_is_empty_and_closed(cache, parameter, copied):
    cache.get(parameter, "double", Counted(parameter))
    twin = copied(cache)
    assert not twin.can_hold(parameter) and twin.find(parameter, "double") is None


def open_cache(model):
    cache = next(state.cache for _, _, state in quantized_layers(model))
    cache.open(forget=True)
    return cache


@pytest.fixture
def computed(monkeypatch):
    """Number of weights of each call of the quantizer."""
    calls = []
    one, many = BalancedQuantizer.levels, BalancedQuantizer.levels_of_all

    def levels(self, weight):
        calls.append(1)
        return one(self, weight)

    def levels_of_all(self, weights):
        calls.append(len(weights))
        return many(self, weights)

    monkeypatch.setattr(BalancedQuantizer, "levels", levels)
    monkeypatch.setattr(BalancedQuantizer, "levels_of_all", levels_of_all)
    return calls


def test_parts_quantized_apart_share_one_cache():
    model = tiny_model()
    quantize_(model.conv, everything())
    quantize_(model, everything())
    assert len({id(state.cache) for _, _, state in quantized_layers(model)}) == 1


def test_layer_called_twice_in_a_step_is_quantized_once_with_an_exact_gradient(computed):
    layer = nn.Linear(4, 4)
    quantize_(layer, everything())
    open_cache(layer)
    x = randn(3, 4)
    layer(layer(x)).sum().backward()
    once, gradient = list(computed), layer.weight.grad.clone()
    layer.weight.grad = None
    next(state.cache for _, _, state in quantized_layers(layer)).close()
    layer(layer(x)).sum().backward()
    assert once == [1] and computed == [1, 1, 1]
    assert_equal(gradient, layer.weight.grad)


def test_recomputed_forward_of_activation_checkpointing_reuses_levels(computed):
    layer = nn.Linear(4, 4)
    quantize_(layer, everything())
    open_cache(layer)
    torch.utils.checkpoint.checkpoint(layer, randn(3, 4).requires_grad_(), use_reentrant=False).sum().backward()
    assert computed == [1]


def test_tied_weight_is_quantized_once(computed):
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "decoder": nn.Linear(4, 7, bias=False)})
    model["decoder"].weight = model["embedding"].weight
    quantize_(model, everything(include=["embedding", "decoder"]))
    open_cache(model)
    model["decoder"](model["embedding"](torch.tensor([1, 2])))
    assert len(computed) == 1


def test_on_a_gpu_all_weights_of_a_kind_are_quantized_together(computed, monkeypatch):
    monkeypatch.setattr(layers, "LAUNCH_BOUND", {"cpu"})
    model = tiny_model()
    quantize_(model, everything(weight_bits_by_layer={"hidden": 2}))
    expected = model(randn(2, 1, 8, 8))
    computed.clear()
    open_cache(model)
    assert_equal(model(randn(2, 1, 8, 8)), expected)
    assert computed == [3, 1]
    with torch.no_grad():
        model.head.weight.mul_(2)
        model.conv.weight.mul_(2)
    computed.clear()
    result = model(randn(2, 1, 8, 8))
    assert computed == [2]
    open_cache(model).close()
    assert_equal(model(randn(2, 1, 8, 8)), result)


def test_parts_of_a_recurrent_layer_are_quantized_together_each_by_its_own_quantizer(computed, monkeypatch):
    monkeypatch.setattr(layers, "LAUNCH_BOUND", {"cpu"})
    model = nn.ModuleList([nn.LSTM(4, 3, num_layers=2), nn.GRU(3, 3)])
    quantize_(model, everything(BalancedQuantizer(2), recurrent=BalancedQuantizer(4)))
    expected = model[1](model[0](randn(5, 2, 4))[0])
    computed.clear()
    open_cache(model)
    assert_equal(model[1](model[0](randn(5, 2, 4))[0]), expected)
    assert computed == [3, 3]


def test_transposed_convolutions_and_padding_are_put_back_after_quantizing_together(monkeypatch):
    monkeypatch.setattr(layers, "LAUNCH_BOUND", {"cpu"})
    model = nn.ModuleList(
        [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3), nn.Embedding(5, 3, padding_idx=1)]
    )
    config = QuantizationConfig(
        BalancedQuantizer(2, granularity="per_channel"), include=["*", "2"], quantize_first_last=True
    )
    quantize_(model, config)
    inputs = [randn(1, 4, 5, 5), randn(1, 4, 5, 5), torch.arange(5)]
    expected = [layer(x) for layer, x in zip(model, inputs, strict=True)]
    open_cache(model)
    assert_equal([layer(x) for layer, x in zip(model, inputs, strict=True)], expected)
