"""A float model that loads a packed file is the fake-quantized network, bit for bit."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_balq import BalancedQuantizer, DoReFaQuantizer, LSQQuantizer, UniformQuantizer, quantize_, unquantize_
from lightning_balq.export import describe, load_packed, pack, unpack
from tests.export.test_describe import QUANTIZERS
from tests.export.zoo import MODELS, assert_same_bits, build, observe, quantized, run
from tests.helpers import everything, randn

RANGES = ["unit", "observed", "pact", "lsq"]


def loaded(model, name, tmp_path, dtype=torch.float32):
    pack(model, tmp_path / "m.safetensors")
    return load_packed(tmp_path / "m.safetensors", build(name, seed=1, dtype=dtype)[0])


def assert_same_outputs(actual, expected, arguments):
    for one, other in zip(run(actual, arguments), run(expected, arguments), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("activation_bits", [None, 3])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_quantized_model(name, granularity, activation_bits, tmp_path):
    quantizer = BalancedQuantizer(2, scale="mean", granularity=granularity)
    model, arguments = quantized(name, quantizer, activation_bits=activation_bits)
    assert_same_outputs(loaded(model, name, tmp_path), model, arguments)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("make", [BalancedQuantizer, UniformQuantizer, DoReFaQuantizer, LSQQuantizer])
def test_outputs_are_those_of_the_quantized_model_at_every_width(make, bits, tmp_path):
    quantizer = LSQQuantizer(1, grid="symmetric") if make is LSQQuantizer and bits == 1 else make(bits)
    model, arguments = quantized("norms between", quantizer, activation_bits=bits)
    assert_same_outputs(loaded(model, "norms between", tmp_path), model, arguments)


@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("range_mode", RANGES)
@pytest.mark.parametrize("name", ["norms between", "lstm", "attention"])
def test_outputs_are_those_of_the_quantized_model_for_every_method_and_range(name, range_mode, method, tmp_path):
    model, arguments = quantized(name, QUANTIZERS[method](3), activation_bits=3, activation_range=range_mode)
    assert_same_outputs(loaded(model, name, tmp_path), model, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["norms between", "linear", "attention"])
def test_outputs_are_those_of_the_quantized_model_in_every_type(name, dtype, tmp_path):
    model, arguments = quantized(name, BalancedQuantizer(3), dtype=dtype, activation_bits=3)
    assert_same_outputs(loaded(model, name, tmp_path, dtype), model, arguments)


def test_outputs_are_those_of_the_quantized_model_in_another_memory_format(tmp_path):
    model, (x,) = quantized("norms between", BalancedQuantizer(3), activation_bits=3)
    pack(model, tmp_path / "m.safetensors")
    model, other = (each.to(memory_format=torch.channels_last) for each in (model, build("norms between", 1)[0]))
    load_packed(tmp_path / "m.safetensors", other)
    assert other[0].weight.stride() == model[0].weight.stride()
    assert_same_outputs(other, model, [x.to(memory_format=torch.channels_last)])


def test_inputs_that_were_never_seen_are_quantized_by_their_batch(tmp_path):
    model, (x,) = quantized("self-attention", activation_bits=3)
    other, key = loaded(model, "self-attention", tmp_path), randn(2, 3, 8, seed=9)
    assert_same_outputs(other.attention, model.attention, [x, key, key])


def test_weights_of_the_file_beside_a_float_model_with_its_layers_replaced(tmp_path):
    model, (x,) = quantized("norms between", BalancedQuantizer(2))
    pack(model, tmp_path / "m.safetensors")
    plain = build("norms between", seed=1)[0].eval()
    plain.load_state_dict(unpack(tmp_path / "m.safetensors"))
    other = load_packed(tmp_path / "m.safetensors", build("norms between", seed=2)[0])
    assert_same_outputs(other, plain, [x])


def test_loaded_model_is_for_inference(tmp_path):
    other = loaded(quantized("norms between", activation_bits=3)[0], "norms between", tmp_path)
    assert not any(module.training for module in other.modules())
    assert {name for name, parameter in other.named_parameters() if not parameter.requires_grad} == {
        "0.weight",
        "2.weight",
    }


def test_training_mode_changes_neither_weights_nor_ranges(tmp_path):
    model, (x,) = quantized("linear", activation_bits=3)
    other = loaded(model, "linear", tmp_path)
    observe(other, [100 * x])
    assert_same_outputs(other, model, [x])


def test_loaded_model_packs_into_the_same_file(tmp_path):
    for name in ("lstm", "pruned", "pruned for good", "tied", "transposed 2d", "embedding with padding"):
        model, _ = quantized(name, BalancedQuantizer(2), activation_bits=3)
        other = loaded(model, name, tmp_path)
        first = (tmp_path / "m.safetensors").read_bytes()
        described = describe(other)
        assert described.weights().keys() == describe(model).weights().keys()
        pack(other, tmp_path / "again.safetensors")
        if not name.startswith("pruned"):
            assert len(first) == (tmp_path / "again.safetensors").stat().st_size
        third = load_packed(tmp_path / "again.safetensors", build(name, seed=2)[0])
        assert_same_outputs(third, model, MODELS[name][1])


def test_weight_that_was_edited_after_loading_is_not_packed_as_what_it_was(tmp_path):
    other = loaded(quantized("linear")[0], "linear", tmp_path)
    with torch.no_grad():
        other.weight.mul_(2)
    with pytest.raises(ValueError, match=r"'weight', quantized by StoredWeight.* is not what its codes stand for"):
        describe(other)


def test_tied_weights_are_one_parameter_again(tmp_path):
    other = loaded(quantized("tied", BalancedQuantizer(2))[0], "tied", tmp_path)
    assert other.head.weight is other.embedding.weight


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_loaded_model_can_be_copied(how, tmp_path):
    model, arguments = quantized("lstm", activation_bits=3)
    assert_same_outputs(how(loaded(model, "lstm", tmp_path)), model, arguments)


def test_unquantize_leaves_a_plain_model_with_the_levels(tmp_path):
    model, _ = quantized("norms between", BalancedQuantizer(2), activation_bits=3)
    other = loaded(model, "norms between", tmp_path)
    unquantize_(other)
    assert type(other[0]) is nn.Conv2d
    state = unpack(tmp_path / "m.safetensors")
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize(
    "name", ["weight norm", "spectral norm", "pruned", "legacy weight norm", "legacy spectral norm"]
)
def test_file_of_a_reparametrized_model_loads_into_a_plain_one(name, tmp_path):
    model, arguments = quantized(name, BalancedQuantizer(2), activation_bits=3)
    pack(model, tmp_path / "m.safetensors")
    plain = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    assert_same_outputs(load_packed(tmp_path / "m.safetensors", plain), model, arguments)


def test_quantized_model_is_refused(tmp_path):
    model, _ = quantized("linear")
    pack(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="it is quantized already; expected a float model, as its class makes it"):
        load_packed(tmp_path / "m.safetensors", model)


def test_loaded_model_is_not_quantized_in_another_way(tmp_path):
    other = loaded(quantized("linear")[0], "linear", tmp_path)
    with pytest.raises(ValueError, match="layer '' is quantized already, as StoredWeight"):
        quantize_(other, everything())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.Linear(6, 4), r"its 'weight' is torch.float32 of shape \(4, 6\), in the file .* \(5, 6\)"),
        (lambda: nn.Linear(6, 5).to(torch.bfloat16), r"its 'weight' is torch.bfloat16 .*, in the file torch.float32"),
        (lambda: nn.Linear(6, 5, bias=False), "the file has 'bias' that it has not"),
        (lambda: nn.Conv1d(6, 5, 1), "its layer '' is a Conv1d, in the file a Linear"),
        (lambda: nn.LazyLinear(5), "its parameter 'weight' has no values yet; run a batch through it"),
        (lambda: nn.Linear(6, 5, device="meta"), "its parameter 'weight' has no values"),
    ],
)
def test_model_of_another_architecture_is_refused(make, match, tmp_path):
    pack(quantized("linear")[0], tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=match):
        load_packed(tmp_path / "m.safetensors", make())


@pytest.mark.parametrize(
    ("name", "make", "match"),
    [
        ("transposed 2d", lambda: nn.ConvTranspose2d(4, 3, 3, groups=1), "has 1 groups, in the file 2"),
        ("embedding with padding", lambda: nn.Embedding(11, 6), "the `padding_idx` of '' is None, in the file 2"),
        ("lstm", lambda: nn.LSTM(5, 6, num_layers=1), "it has no weight 'weight_ih_l0_reverse'"),
    ],
)
def test_layer_that_would_compute_something_else_is_refused(name, make, match, tmp_path):
    pack(quantized(name)[0], tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=match):
        load_packed(tmp_path / "m.safetensors", make())


def test_what_is_no_module_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got dict"):
        load_packed(tmp_path / "m.safetensors", {})
