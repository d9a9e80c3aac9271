"""Scales and ranges that are trained with the layers."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from lightning_balq import functional, quantize_, unquantize_
from lightning_balq.nn import (
    BalancedQuantizer,
    CodeMonitor,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    activation_quantizers,
    learned_parameters,
    quantized_layers,
    restart_learning,
    settle_ranges_,
    update_ranges_,
)
from lightning_balq.nn.learned import untrained_parameters
from tests import reference
from tests.helpers import assert_equal, everything, randn, snapshot, tiny_model

QUANTIZERS = {
    "balanced": LearnedBalancedQuantizer(2),
    "balanced median by channel": LearnedBalancedQuantizer(3, "per_channel", "median"),
    "lsq": LSQQuantizer(3),
    "lsq symmetric by channel": LSQQuantizer(1, "per_channel", "symmetric"),
}
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)


def images(count=4, seed=0):
    return randn(count, 1, 8, 8, seed=seed)


def names(model):
    return [name for name, _, _ in learned_parameters(model)]


# ---- the parameters --------------------------------------------------------------------------------------------------


@each_quantizer
def test_layers_get_parameters_and_undoing_takes_them_away(quantizer):
    model = tiny_model()
    model(images())
    before, keys = snapshot(model), list(model.state_dict())
    quantize_(model, everything(quantizer, activation_bits=2, activation_range="lsq"))
    assert names(model) == [
        f"{layer}.{name}"
        for layer in ("stem", "conv", "hidden", "head")
        for name in ("balq_log_scale_weight", "balq_log_scale_input")
    ]
    assert [key for key in model.state_dict() if "balq" not in key] == keys
    parameters = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in parameters and parameter.dim() == 1 for _, parameter, _ in learned_parameters(model))
    unquantize_(model)
    assert snapshot(model) == before


@each_quantizer
def test_scale_begins_where_the_method_says(quantizer):
    model = tiny_model()
    quantize_(model, everything(quantizer))
    weight, scale = model.conv.weight.detach(), model.conv.balq_log_scale_weight.detach().exp()
    per_channel = quantizer.granularity == "per_channel"
    rows = list(weight) if per_channel else [weight]
    assert scale.shape == (len(rows),)
    for row, found in zip(rows, scale, strict=True):
        if isinstance(quantizer, LSQQuantizer):
            highest = (2**quantizer.bits - 1) / 2 if quantizer.grid == "symmetric" else 2 ** (quantizer.bits - 1) - 1
            expected = 2 * row.abs().mean() / highest**0.5
        else:
            codes, _ = reference.balanced_partition(row.flatten().numpy(), quantizer.bits, quantizer.center)
            expected = 2 * reference.least_squares_scale(row.numpy(), codes, quantizer.bits)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


@each_quantizer
def test_zero_weights_and_zero_inputs_begin_at_a_scale_that_can_be_trained(quantizer):
    layer = nn.Linear(16, 4)
    nn.init.zeros_(layer.weight)
    quantize_(layer, everything(quantizer, activation_bits=2, activation_range="lsq"))
    layer(torch.zeros(3, 16)).sum().backward()
    update_ranges_(activation_quantizers(layer))
    settle_ranges_(activation_quantizers(layer))
    assert_close(layer.balq_log_scale_weight.detach().exp(), torch.full_like(layer.balq_log_scale_weight, 0.25))
    (activation,) = activation_quantizers(layer)
    assert float(activation.range_at(layer.balq_log_scale_input.detach(), activation.signed)) == pytest.approx(1)
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_lazy_layers_are_refused_and_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"layer '1' has no weights yet.*run a batch through the model first"):
        quantize_(model, everything(LSQQuantizer(2)))
    assert snapshot(model) == before


# ---- forward and gradient --------------------------------------------------------------------------------------------


@each_quantizer
def test_output_and_gradients_are_those_of_functions_applied_by_hand(quantizer):
    model, by_hand = tiny_model(), tiny_model()
    quantize_(model, everything(quantizer))
    model.conv.balq_log_scale_weight.data.add_(0.3)  # not where it began
    model(images())
    model.conv.balq_log_scale_weight.data.add_(0.3)
    scales = {name: getattr(model, name).balq_log_scale_weight.detach().clone().requires_grad_() for name in LAYERS}
    quantized = {
        name: functional_form(quantizer, getattr(by_hand, name).weight, functional.lsq_scale(scale))
        for name, scale in scales.items()
    }
    expected = torch.func.functional_call(
        by_hand, {f"{name}.weight": value for name, value in quantized.items()}, images()
    )
    actual = model(images())
    assert_equal(actual, expected)
    for output in (actual, expected):
        output.square().sum().backward()
    for name, scale in scales.items():
        assert_equal(getattr(model, name).weight.grad, getattr(by_hand, name).weight.grad)
        assert_equal(getattr(model, name).balq_log_scale_weight.grad, scale.grad)
        assert scale.grad.abs().max() > 0


LAYERS = ("stem", "conv", "hidden", "head")


def functional_form(quantizer, weight, scale):
    if isinstance(quantizer, LSQQuantizer):
        return functional.lsq_fake_quantize(weight, scale, quantizer.bits, grid=quantizer.grid)
    codes = functional.balanced_codes(
        weight, quantizer.bits, center=quantizer.center, granularity=quantizer.granularity
    )
    return functional.scaled_fake_quantize(weight, 2.0 * codes - (2**quantizer.bits - 1), scale, quantizer.bits)


def test_channels_of_transposed_convolutions_and_padding_of_embeddings():
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    quantize_(conv, everything(LearnedBalancedQuantizer(2, "per_channel")))
    assert conv.balq_log_scale_weight.shape == (6,)
    conv(randn(1, 4, 5, 5)).sum().backward()
    conv.balq_log_scale_weight.data.copy_(torch.arange(1.0, 7).log())
    state = conv.__dict__["_balq"]
    levels = state.quantize_weight(conv, "weight").detach()
    by_channel = levels.reshape(2, 2, 3, 3, 3).transpose(1, 2).reshape(6, -1)
    assert by_channel.abs().amax(dim=1).tolist() == [1.5, 3, 4.5, 6, 7.5, 9]
    embedding = nn.Embedding(5, 4, padding_idx=0)
    quantize_(embedding, everything(LSQQuantizer(2), include=["type:Embedding"]))
    rows = embedding(torch.tensor([0, 1]))
    assert_equal(rows[0], torch.zeros(4))
    rows.sum().backward()
    assert embedding.balq_log_scale_weight.grad.abs() > 0


@pytest.mark.parametrize(
    "layer", [nn.LSTM(4, 5), nn.GRU(4, 5, bidirectional=True), nn.LSTMCell(4, 5)], ids=lambda x: type(x).__name__
)
def test_every_weight_of_a_recurrent_layer_learns_its_scale(layer):
    layer = copy.deepcopy(layer)
    quantize_(layer, everything(LearnedBalancedQuantizer(2), activation_bits=2, activation_range="lsq"))
    if isinstance(layer, nn.LSTMCell):
        result = layer(randn(3, 4), layer(randn(3, 4, seed=1)))[0]  # the first step has no state to multiply
    else:
        result = layer(randn(6, 3, 4))[0]
    result.square().sum().backward()
    weights = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
    learned = {name for name, _, _ in learned_parameters(layer)}
    assert learned == {f"balq_log_scale_{name}" for name in weights} | {"balq_log_scale_input"}
    assert all(getattr(layer, name).grad.abs().max() > 0 for name in learned)


def test_every_weight_of_attention_learns_its_scale():
    layer = nn.MultiheadAttention(8, 2)
    quantize_(layer, everything(LSQQuantizer(3), activation_bits=3, activation_range="pact"))
    x = randn(5, 2, 8)
    layer(x, x, x)[0].square().sum().backward()
    gradients = {name: getattr(layer, name).grad for name, _, _ in learned_parameters(layer)}
    assert set(gradients) == {
        "balq_log_scale_in_proj_weight", "balq_log_scale_out_proj_weight",
        "balq_range_query", "balq_range_key", "balq_range_value",
    }  # fmt: skip
    used = {name for name, gradient in gradients.items() if gradient is not None}
    assert used == set(gradients) - {"balq_range_key", "balq_range_value"}  # one tensor, quantized once


def test_a_weight_is_partitioned_once_while_it_stays(monkeypatch):
    calls = []
    prepare = LearnedBalancedQuantizer.prepare
    monkeypatch.setattr(
        LearnedBalancedQuantizer, "prepare", lambda self, weight: calls.append(1) or prepare(self, weight)
    )
    layer = nn.Linear(8, 8)
    quantize_(layer, everything(LearnedBalancedQuantizer(2)))
    state = layer.__dict__["_balq"]
    state.cache.open(forget=True)
    first = layer(randn(2, 8))
    layer.balq_log_scale_weight.data.add_(math.log(2))
    second = layer(randn(2, 8))
    assert len(calls) == 1
    assert_close((second - layer.bias), 2 * (first - layer.bias))


@each_quantizer
def test_compiled_layer_equals_the_eager_one(quantizer):
    torch._dynamo.reset()
    model = tiny_model()
    quantize_(model, everything(quantizer, activation_bits=2, activation_range="lsq", activation_sign="signed"))
    train_once(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs, gradients = [], []
    for run in (model, compiled):
        model.zero_grad()
        result = run(images())
        result.square().sum().backward()
        outputs.append(result.detach())
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_close(*outputs, rtol=1e-5, atol=1e-6)  # the compiler fuses products and sums
    assert_close(*gradients, rtol=1e-4, atol=1e-5)


def train_once(model, seed=0):
    """What a training step does before the optimizer's."""
    model.zero_grad()
    model(images(seed=seed)).square().sum().backward()
    update_ranges_(activation_quantizers(model))
    settle_ranges_(activation_quantizers(model))


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pact", "lsq"])
def test_range_of_an_input_begins_with_the_first_batch_before_the_optimizer_steps(mode):
    layer = nn.Linear(8, 3)
    quantize_(layer, everything(activation_bits=2, activation_range=mode, activation_sign="unsigned"))
    x = randn(16, 8).abs()
    first = layer(x)
    first.square().sum().backward()
    expected = min(float(x.max()), 2 * 3**0.5 * float(x.mean()))
    (quantizer,) = activation_quantizers(layer)
    update_ranges_([quantizer])
    ((_, parameter, _),) = learned_parameters(layer)
    assert float(quantizer.range_at(parameter.detach(), quantizer.signed)) == pytest.approx(expected, rel=1e-6)
    settle_ranges_([quantizer])
    assert_close(layer(x), first)  # its own range before, the learned one now
    step = parameter.grad.clone()
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert_close(parameter.grad, step)
    assert step.abs() > 0


def test_later_batches_do_not_move_a_learned_range():
    layer = nn.Linear(8, 3)
    quantize_(layer, everything(activation_bits=2, activation_range="pact"))
    train = lambda x: (layer(x).sum().backward(), update_ranges_(activation_quantizers(layer)))  # noqa: E731  # two uses
    train(randn(4, 8))
    settle_ranges_(activation_quantizers(layer))
    before = layer.balq_range_input.detach().clone()
    train(100 * randn(4, 8))
    assert_equal(layer.balq_range_input.detach(), before)


def test_sign_of_an_input_is_found_out():
    layer = nn.Linear(8, 3)
    quantize_(layer, everything(activation_bits=2, activation_range="lsq"))
    (quantizer,) = activation_quantizers(layer)
    layer(randn(4, 8).abs()).sum().backward()
    update_ranges_([quantizer])
    settle_ranges_([quantizer])
    assert not quantizer.signed
    layer(randn(4, 8)).sum().backward()
    update_ranges_([quantizer])
    assert quantizer.signed


@pytest.mark.parametrize("mode", ["pact", "lsq"])
def test_sign_of_the_first_batch_counts_at_once(mode):
    layer = nn.Linear(8, 8)
    quantize_(layer, everything(activation_bits=2, activation_range=mode))
    quantize = lambda: layer.__dict__["_balq"].quantize_input(layer, "input", randn(64, 8))  # noqa: E731  # used twice
    first = quantize()
    assert len(first.unique()) == 4 and first.min() == -first.max()
    first.sum().backward()
    update_ranges_(activation_quantizers(layer))
    settle_ranges_(activation_quantizers(layer))
    assert_close(quantize(), first)


def test_evaluation_before_training_decides_nothing():
    layer = nn.Linear(8, 3)
    quantize_(layer, everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq"))
    with torch.no_grad():
        layer.eval()(randn(4, 8))
    (quantizer,) = activation_quantizers(layer)
    update_ranges_([quantizer])
    assert not quantizer.ready and quantizer.batches == 0 and layer.balq_log_scale_input == 1


def test_recomputed_forward_sees_the_same_range():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    quantize_(layer, everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq"))
    twin = copy.deepcopy(layer)
    layer(randn(4, 8)).square().sum().backward()
    checkpoint(twin, randn(4, 8), use_reentrant=False).square().sum().backward()
    assert_equal([p.grad for p in twin.parameters()], [p.grad for p in layer.parameters()])


# ---- float phase -----------------------------------------------------------------------------------------------------


def test_while_float_nothing_is_quantized_and_nothing_learned():
    model, float_model = tiny_model(), tiny_model()
    quantize_(model, everything(LSQQuantizer(2), activation_bits=2, activation_range="pact"))
    schedule = next(state.schedule for _, _, state in quantized_layers(model))
    schedule.set_blend(0)
    assert_equal(model(images()), float_model(images()))
    model(images()).sum().backward()
    # Zero and not absent: a data-parallel run takes what gets no gradient for a mistake.
    assert all(bool((parameter.grad == 0).all()) for _, parameter, _ in learned_parameters(model))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    schedule.set_blend(1)
    restart_learning(model)
    train_once(model)
    weight = model.conv.weight.detach()
    assert_equal(model.conv.balq_log_scale_weight.detach(), LSQQuantizer(2).initial_scale(weight).log())


# ---- state -----------------------------------------------------------------------------------------------------------


def test_float_weights_load_strictly_and_scales_begin_anew():
    model, other = tiny_model(), tiny_model(seed=1)
    quantize_(model, everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq"))
    train_once(model)
    model.load_state_dict(other.state_dict(), strict=True)
    train_once(model)
    assert_equal(
        model.conv.balq_log_scale_weight.detach(), LSQQuantizer(2).initial_scale(other.conv.weight.detach()).log()
    )
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"conv.weight\""):
        model.load_state_dict({k: v for k, v in other.state_dict().items() if k != "conv.weight"}, strict=True)


def test_learned_values_load_and_stay():
    model, other = tiny_model(), tiny_model(seed=1)
    for each in (model, other):
        quantize_(each, everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq"))
    train_once(other)
    with torch.no_grad():
        for _, parameter, _ in learned_parameters(other):
            parameter.mul_(1.7)
    model.load_state_dict(other.state_dict(), strict=True)
    train_once(model)
    assert_equal(
        [p.detach() for _, p, _ in learned_parameters(model)], [p.detach() for _, p, _ in learned_parameters(other)]
    )


def test_copies_and_pickles_learn_on_their_own():
    model = tiny_model()
    quantize_(model, everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq"))
    train_once(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert_equal(twin(images()), model(images()))
        twin.conv.balq_log_scale_weight.data.add_(1)
        assert not torch.equal(twin(images()), model(images()))


def test_records_are_those_of_the_codes_at_the_learned_scale():
    layer = nn.Linear(64, 64)
    quantize_(layer, everything(LSQQuantizer(2)))
    layer(randn(1, 64))
    layer.balq_log_scale_weight.data.fill_(math.log(100.0))
    _, overall = CodeMonitor().record(layer)
    assert overall.effective_bitwidth == 0 and overall.bin_utilization == 0.25


def test_fixed_quantizers_have_no_parameters():
    model = tiny_model()
    quantize_(model, everything(BalancedQuantizer(2), activation_bits=2))
    assert names(model) == []


def test_pruned_weights_stay_zero():
    from torch.nn.utils import prune

    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    quantize_(layer, everything(LearnedBalancedQuantizer(2)))
    layer(randn(2, 8))
    quantized = layer.__dict__["_balq"].quantize_weight(layer, "weight")
    assert_equal(quantized == 0, layer.weight_mask == 0)


def test_precision_of_weights_is_kept():
    layer = nn.Linear(8, 8).double()
    quantize_(layer, everything(LearnedBalancedQuantizer(2), activation_bits=2, activation_range="lsq"))
    result = layer(randn(2, 8).double())
    assert result.dtype == torch.float64
    F.mse_loss(result, torch.zeros_like(result)).backward()
    assert layer.weight.grad.dtype == torch.float64


def test_conversion_to_lower_precision_keeps_what_is_learned_in_float32():
    layer = nn.Linear(8, 8)
    quantize_(layer, everything(LearnedBalancedQuantizer(2), activation_bits=2, activation_range="lsq"))
    layer(randn(2, 8)).sum().backward()
    learned = [layer.balq_log_scale_weight, layer.balq_log_scale_input]
    with torch.no_grad():
        learned[0].fill_(1 / 3)
    for convert in (nn.Module.bfloat16, nn.Module.half, lambda module: module.to("cpu", torch.bfloat16)):
        convert(layer)
        assert layer.weight.dtype.itemsize == layer.weight.grad.dtype.itemsize == 2
        assert [(value.dtype, value.grad.dtype) for value in learned] == [(torch.float32, torch.float32)] * 2
        assert learned[0].item() == torch.tensor(1 / 3).item()
    assert learned[0] is layer.balq_log_scale_weight and learned[1] is layer.balq_log_scale_input
    assert {parameter.dtype for parameter in layer.double().parameters()} == {torch.float64}
    assert layer.half().balq_log_scale_weight.dtype == torch.float32
    assert {parameter.device.type for parameter in layer.to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_quantized_under_another_default_type_learns_and_observes_in_float32(dtype):
    torch.set_default_dtype(dtype)
    try:
        layer = nn.Linear(8, 8)
        quantize_(layer, everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq"))
        layer(randn(2, 8, dtype=dtype)).sum().backward()
        update_ranges_(activation_quantizers(layer))
    finally:
        torch.set_default_dtype(torch.float32)
    assert layer.balq_log_scale_weight.dtype == layer.balq_log_scale_input.dtype == torch.float32
    (quantizer,) = activation_quantizers(layer)
    assert quantizer.range.dtype == quantizer.pending.dtype == quantizer.batches.dtype == torch.float32


def test_what_belongs_to_a_frozen_layer_is_frozen_and_freed_with_it():
    model = tiny_model()
    model.conv.requires_grad_(False)
    model.hidden.weight.requires_grad_(False)
    quantize_(model, everything(LSQQuantizer(2), activation_bits=2, activation_range="lsq"))
    trains = {name: parameter.requires_grad for name, parameter, _ in learned_parameters(model)}
    assert trains == {
        f"{name}.balq_log_scale_{source}": name in ("stem", "head") for name in LAYERS for source in ("weight", "input")
    }
    model.conv.requires_grad_(True)
    assert all(parameter.requires_grad for name, parameter, _ in learned_parameters(model) if name.startswith("conv"))


def test_parametrized_weight_that_trains_has_a_scale_that_trains():
    model = tiny_model()
    torch.nn.utils.parametrizations.weight_norm(model.conv)
    torch.nn.utils.parametrizations.weight_norm(model.hidden)
    model.hidden.parametrizations.requires_grad_(False)
    quantize_(model, everything(LSQQuantizer(2)))
    assert model.conv.balq_log_scale_weight.requires_grad
    assert not model.hidden.balq_log_scale_weight.requires_grad


def test_parameters_that_no_optimizer_trains_are_named():
    model = tiny_model()
    quantize_(model, everything(LSQQuantizer(2)))
    own = {id(parameter) for _, parameter, _ in learned_parameters(model)}
    weights = torch.optim.SGD([p for p in model.parameters() if id(p) not in own], 0.1)
    assert untrained_parameters(model, [weights]) == [f"{name}.balq_log_scale_weight" for name in LAYERS]
    assert untrained_parameters(model, [torch.optim.SGD(model.parameters(), 0.1)]) == []
    model.conv.balq_log_scale_weight.requires_grad_(False)
    assert untrained_parameters(model, [torch.optim.SGD(model.parameters(), 0.1)]) == ["conv.balq_log_scale_weight"]
    model.conv.requires_grad_(False)
    assert untrained_parameters(model, [torch.optim.SGD(model.parameters(), 0.1)]) == []


@each_quantizer
def test_zeros_stay_zero_and_can_be_trained(quantizer):
    model = tiny_model()
    with torch.no_grad():
        model.hidden.weight[:, ::2] = 0
    quantize_(model, everything(quantizer))
    state = next(state for name, _, state in quantized_layers(model) if name == "hidden")
    levels = state.quantize_weight(model.hidden, "weight")
    assert (levels[:, ::2] == 0).all()
    levels.sum().backward()
    assert_equal(model.hidden.weight.grad[:, ::2], torch.ones(16, 16))


def test_zeros_are_looked_for_when_weights_are_loaded():
    model, other = tiny_model(), tiny_model()
    quantize_(model, everything(LearnedBalancedQuantizer(2)))
    weights = other.state_dict()
    weights["hidden.weight"][0] = 0
    model.load_state_dict(weights)
    states = {name: state for name, _, state in quantized_layers(model)}
    assert {name: state.pruned for name, state in states.items()} == {
        name: ("weight",) if name == "hidden" else () for name in LAYERS
    }
    assert (states["hidden"].quantize_weight(model.hidden, "weight")[0] == 0).all()
