"""A deploy model computes, in integers, what the fake-quantized network computes."""

import copy
import pickle
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from lightning_balq import BalancedQuantizer, LSQQuantizer, quantize_
from lightning_balq.export import deploy_report, load_packed, pack, to_deploy
from lightning_balq.export.deploy_layers import IntegerConv, IntegerLayer, IntegerLinear
from lightning_balq.nn import QuantizationConfig
from recipes.digits import network
from recipes.models.cifar_resnet import resnet20
from tests.export.test_describe import QUANTIZERS
from tests.export.zoo import MODELS, assert_same_bits, observe, quantized, run
from tests.helpers import assert_equal, everything, randn, run_python, snapshot

CLOSE = 1e-6
"""Of the largest output: sums of the same products in another order, and scales that are multiplied first."""

SIGNED = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])


def image(*shape, seed=0, signed=True):
    """Values of which some are exactly zero."""
    x = randn(*shape, seed=seed)
    x = torch.where(randn(*shape, seed=seed + 1) > 1, 0.0, x)
    return x if signed else x.abs()


def ready(model, x, quantizer=None, **options):
    """Quantized model that has seen a training batch, in evaluation mode."""
    quantize_(model, everything(quantizer, **{"activation_bits": 4, **options}))
    observe(model, [x])
    return model.eval()


@torch.no_grad()
def assert_close(actual, expected, x):
    for one, other in zip(run(actual, [x]), run(expected, [x]), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert float((one - other).abs().max()) <= CLOSE * float(other.abs().max())


def kinds(model):
    """Whether each layer is in int8, by name."""
    return {layer.name: layer.int8 for layer in deploy_report(model).layers}


def reasons(model):
    return {layer.name: layer.reason for layer in deploy_report(model).layers}


def is_exact(weight_bits, activation_bits, signed):
    """Two products of the largest integers fit into 16 bits, and each integer into 8."""
    weight, activation = 2**weight_bits - 1, (2**activation_bits - 1) * (2 if signed else 1)
    return weight <= 127 and activation <= 255 and 2 * weight * activation <= 32767


# ---- one layer ------------------------------------------------------------------------------------------------------


@SIGNED
@pytest.mark.parametrize("activation_bits", range(1, 9))
@pytest.mark.parametrize("weight_bits", range(1, 9))
def test_layer_is_in_int8_where_that_is_exact_and_computes_the_same(weight_bits, activation_bits, signed):
    torch.manual_seed(weight_bits)
    x = image(2, 5, 7, 9, signed=signed)
    model = ready(nn.Conv2d(5, 7, 3, padding=1), x, BalancedQuantizer(weight_bits), activation_bits=activation_bits)
    deployed = to_deploy(model)
    assert isinstance(deployed, IntegerConv) == kinds(deployed)[""] == is_exact(weight_bits, activation_bits, signed)
    assert_close(deployed, model, x)


@SIGNED
@pytest.mark.parametrize("method", QUANTIZERS)
def test_layer_computes_the_same_for_every_method(method, signed):
    torch.manual_seed(0)
    x = image(3, 13, signed=signed)
    model = ready(nn.Linear(13, 11), x, QUANTIZERS[method](3))
    deployed = to_deploy(model)
    assert isinstance(deployed, IntegerLinear)
    assert_close(deployed, model, x)


@pytest.mark.parametrize("range_mode", ["unit", "observed", "pact", "lsq"])
def test_layer_computes_the_same_for_every_range(range_mode):
    torch.manual_seed(0)
    x = image(3, 13, signed=False)
    model = ready(nn.Linear(13, 11), x, activation_range=range_mode)
    deployed = to_deploy(model)
    assert isinstance(deployed, IntegerLinear)
    assert_close(deployed, model, x)


LAYERS = {
    "strided": (lambda: nn.Conv2d(6, 9, 3, stride=(2, 1), padding=(1, 0), bias=False), (2, 6, 9, 7)),
    "dilated": (lambda: nn.Conv2d(6, 5, 3, dilation=2, padding=2), (1, 6, 9, 7)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3, padding=1), (2, 6, 5, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 5, groups=6, padding=2), (2, 6, 5, 7)),
    "depthwise with a multiplier": (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 7)),
    "pointwise": (lambda: nn.Conv2d(6, 9, 1), (2, 6, 5, 7)),
    "same": (lambda: nn.Conv2d(6, 5, 3, padding="same", dilation=2), (2, 6, 7, 5)),
    "same, uneven": (lambda: nn.Conv2d(6, 5, (2, 4), padding="same"), (2, 6, 7, 5)),
    "valid": (lambda: nn.Conv2d(6, 5, 3, padding="valid"), (2, 6, 7, 5)),
    "reflected": (lambda: nn.Conv2d(6, 5, 3, padding=(2, 1), padding_mode="reflect"), (2, 6, 7, 5)),
    "replicated": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="replicate"), (2, 6, 7, 5)),
    "circular": (lambda: nn.Conv2d(6, 5, 3, padding=(0, 2), padding_mode="circular"), (2, 6, 7, 5)),
    "one image": (lambda: nn.Conv2d(6, 5, 3, padding=1), (6, 7, 5)),
    "empty batch": (lambda: nn.Conv2d(6, 5, 3, padding=1), (2, 6, 7, 5)),
    "row": (lambda: nn.Conv1d(6, 8, 3, padding=2, stride=2, groups=2), (2, 6, 7)),
    "row, same, uneven": (lambda: nn.Conv1d(6, 5, 4, padding="same"), (2, 6, 7)),
    "linear of a vector": (lambda: nn.Linear(13, 7), (13,)),
    "linear of a sequence": (lambda: nn.Linear(13, 7, bias=False), (2, 3, 13)),
}


@SIGNED
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_of_any_geometry_computes_the_same(name, granularity, signed):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    x = image(*shape, signed=signed)
    model = ready(make(), x, BalancedQuantizer(3, scale="mean", granularity=granularity))
    deployed = to_deploy(model)
    assert isinstance(deployed, IntegerLayer)
    assert_close(deployed, model, x)


def test_empty_batch_gives_an_empty_output():
    model = ready(nn.Conv2d(6, 5, 3, padding=1), image(2, 6, 7, 5))
    assert to_deploy(model)(torch.empty(0, 6, 7, 5)).shape == (0, 5, 7, 5)


@SIGNED
def test_output_is_a_sum_of_integers(signed):
    torch.manual_seed(0)
    x = image(4, 13, signed=signed)
    deployed = to_deploy(ready(nn.Linear(13, 7), x, BalancedQuantizer(4, scale="mean", granularity="per_channel")))
    given = deployed.given.integers(x).numpy().astype(np.int64) - deployed.given.zero_point
    sums = (given @ deployed.codes.numpy().astype(np.int64).T).astype(np.float32)
    assert_equal(deployed(x), torch.from_numpy(sums * deployed.scale.numpy() + deployed.bias.numpy()))


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(6, 8), (7, 7), (4, 4), (1, 8)])
def test_no_pair_of_products_exceeds_16_bits(weight_bits, activation_bits):
    torch.manual_seed(0)
    x = image(2, 64, signed=False)
    model = ready(nn.Linear(64, 32), x, BalancedQuantizer(weight_bits), activation_bits=activation_bits)
    deployed = to_deploy(model)
    codes = deployed.codes.numpy().astype(np.int64)
    assert np.abs(codes).max() == 2**weight_bits - 1
    for sign in (1, -1):  # each activation as large as it can be where it adds, zero elsewhere
        pairs = np.maximum(sign * codes, 0) * (2**activation_bits - 1)
        assert (pairs[:, ::2] + pairs[:, 1::2]).max() <= 32767


@pytest.mark.parametrize(("activation_bits", "int8"), [(7, True), (8, False)])
def test_integer_grid_of_8_bits_fits_into_int8(activation_bits, int8):
    torch.manual_seed(0)
    x = image(3, 13, signed=False)
    model = ready(nn.Linear(13, 11), x, LSQQuantizer(8), activation_bits=activation_bits)
    deployed = to_deploy(model)
    assert kinds(deployed)[""] == int8
    assert_close(deployed, model, x)


# ---- zero stays zero ------------------------------------------------------------------------------------------------


@SIGNED
@pytest.mark.parametrize("name", ["strided", "same, uneven", "circular", "row", "depthwise"])
def test_input_of_zeros_gives_the_bias_exactly(name, signed):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().clone()
    output = to_deploy(ready(layer, image(*shape, signed=signed)))(torch.zeros(shape))
    assert_equal(output, bias.reshape(-1, *[1] * (len(shape) - 2)).expand_as(output).contiguous())


@SIGNED
def test_padding_with_zeros_is_a_larger_image_with_zeros_around_it(signed):
    torch.manual_seed(0)
    x = image(2, 4, 5, 5, signed=signed)
    padded = ready(nn.Conv2d(4, 6, 3, padding=1), x)
    deployed = to_deploy(padded)
    other = copy.deepcopy(deployed)
    other.padding = (0, 0)
    torch.testing.assert_close(deployed(x), other(F.pad(x, (1, 1, 1, 1))), rtol=0, atol=1e-6)
    assert_close(deployed, padded, x)


def test_minus_zero_is_zero():
    deployed = to_deploy(ready(nn.Linear(3, 2), image(4, 3)))
    assert_equal(deployed(torch.full((1, 3), -0.0)), deployed(torch.zeros(1, 3)))


# ---- batch norm -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Calls its parts as it is told."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.call(self, x)


def norm(channels, **options):
    """Batch norm of odd statistics whose factors are of both signs, one of them zero."""
    made = nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        for value, seed in ((made.running_mean, 3), (made.weight, 4), (made.bias, 5)):
            if value is not None:
                value.copy_(randn(channels, seed=seed))
        if made.running_var is not None:
            made.running_var.copy_(randn(channels, seed=6).abs() + 0.1)
        if made.weight is not None:
            made.weight[1] = 0.0
            assert bool((made.weight < 0).any())
    return made


def normed(part, bits=3, quantizer=BalancedQuantizer, bias=True, **options):
    """A convolution and a batch norm, quantized; the statistics of the norm are set afterwards."""
    torch.manual_seed(0)
    x = image(2, 5, 7, 7, signed=False)
    model = ready(nn.Sequential(nn.Conv2d(5, 6, 3, padding=1, bias=bias), part), x, quantizer(bits), **options)
    if isinstance(part, nn.BatchNorm2d) and part.track_running_stats:
        model[1] = norm(6, affine=part.affine).eval()
    return model, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_either_sign_goes_into_scales_and_bias(affine, bias):
    model, x = normed(nn.BatchNorm2d(6, affine=affine), bias=bias)
    deployed = to_deploy(model)
    assert isinstance(deployed[1], nn.Identity)
    assert deploy_report(deployed).layers[0].norm == "1"
    assert_close(deployed, model, x)


def test_batch_norm_of_a_negative_factor_goes_with_the_smallest_int8():
    model, x = normed(nn.BatchNorm2d(6), bits=8, quantizer=LSQQuantizer, activation_bits=6)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = -1e9  # -128, which has no counterpart
        model[1].weight[0] = -1.0
    deployed = to_deploy(model)
    assert int(deployed[0].codes.min()) == -128 and float(deployed[0].scale[0]) < 0
    assert isinstance(deployed[1], nn.Identity)
    assert_close(deployed, model, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: net.norm(net.conv(x)) + net.norm(x[:, :6]),
        lambda net, x: net.norm(net.conv(x)) + net.conv(x[..., 1:, 1:])[..., :1, :1],
        lambda net, x: (lambda y: net.norm(y) + y)(net.conv(x)),
        lambda net, x: net.norm(net.conv(x).relu()),
        lambda net, x: net.norm(input=net.conv(x)),
    ],
    ids=["norm used twice", "conv used twice", "output used twice", "something between", "by keyword"],
)
def test_batch_norm_stays_unless_it_alone_follows(call):
    torch.manual_seed(0)
    x = image(2, 6, 7, 7, signed=False)
    model = ready(Net(call, conv=nn.Conv2d(6, 6, 3, padding=1), norm=norm(6)), x)
    deployed = to_deploy(model)
    assert isinstance(deployed.norm, nn.BatchNorm2d) and isinstance(deployed.conv, IntegerConv)
    assert_close(deployed, model, x)


@pytest.mark.parametrize("part", [nn.BatchNorm2d(6, track_running_stats=False), nn.GroupNorm(2, 6)], ids=str)
def test_norms_of_the_batch_itself_stay(part):
    model, x = normed(part)
    deployed = to_deploy(model)
    assert type(deployed[1]) is type(part)
    assert_close(deployed, model, x)


def test_batch_norm_with_a_hook_stays_and_the_hook_runs():
    model, x = normed(nn.BatchNorm2d(6))
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    assert_close(to_deploy(model), model, x)


def test_batch_norm_after_a_linear_layer_stays():
    torch.manual_seed(0)
    x = image(8, 5)
    model = ready(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), x)
    deployed = to_deploy(model)
    assert isinstance(deployed[0], IntegerLinear) and isinstance(deployed[1], nn.BatchNorm1d)
    assert_close(deployed, model, x)


def test_norms_stay_in_a_model_that_cannot_be_traced_and_the_report_says_so():
    torch.manual_seed(0)
    x = image(2, 5, 7, 7, signed=False)
    net = Net(lambda net, x: net.norm(net.conv(x)) if x.sum() > 0 else x, conv=nn.Conv2d(5, 6, 3), norm=norm(6))
    model = ready(net, x)
    deployed = to_deploy(model)
    assert isinstance(deployed.norm, nn.BatchNorm2d) and isinstance(deployed.conv, IntegerConv)
    assert "batch norms stay as they are: torch.fx cannot trace" in str(deploy_report(deployed)).splitlines()[-1]
    assert_close(deployed, model, x)


# ---- layers that stay float -----------------------------------------------------------------------------------------


class OwnForward(nn.Linear):
    def forward(self, x):
        return F.linear(x, 2 * self.weight, self.bias)


def hooked():
    layer = nn.Linear(6, 5)
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    return layer


@pytest.mark.parametrize(
    ("make", "shape", "reason"),
    [
        (lambda: nn.Conv3d(4, 6, 2), (2, 4, 4, 4, 4), "no int8 kernel for 3-dimensional convolutions"),
        (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5), "no int8 kernel for transposed convolutions"),
        (lambda: nn.GRU(6, 5), (3, 2, 6), "no int8 kernel for recurrent layers"),
        (lambda: OwnForward(6, 5), (2, 6), "its forward is not that of torch.nn"),
        (hooked, (2, 6), "it has forward hooks"),
    ],
    ids=["conv3d", "transposed", "recurrent", "own forward", "hooks"],
)
def test_layer_that_stays_float_computes_the_same_bits_and_the_report_says_why(make, shape, reason):
    torch.manual_seed(0)
    x = image(*shape)
    model = ready(make(), x)
    deployed = to_deploy(model)
    assert reasons(deployed) == {"": reason}
    for one, other in zip(run(deployed, [x]), run(model, [x]), strict=True):
        assert_same_bits(one, other)


def test_layers_without_activation_codes_become_plain_layers_at_their_levels():
    torch.manual_seed(0)
    x = image(3, 6)
    model = ready(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5)), x, activation_bits=None)
    deployed = to_deploy(model)
    assert type(deployed[0]) is nn.Linear and set(reasons(deployed).values()) == {"its input is not quantized"}
    assert_same_bits(run(deployed, [x])[0], run(model, [x])[0])


def test_first_and_last_layer_and_bfloat16_stay_float():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).bfloat16()
    x = image(3, 6).bfloat16()
    quantize_(model, QuantizationConfig(activation_bits=4))
    observe(model, [x])
    deployed = to_deploy(model.eval())
    assert reasons(deployed) == {
        "0": "first layer",
        "2": "its weights are torch.bfloat16, not torch.float32",
        "4": "last layer",
    }
    assert_same_bits(run(deployed, [x])[0], run(model, [x])[0])


def test_layer_that_no_batch_has_reached_stays_float():
    torch.manual_seed(0)
    x = image(3, 6)
    model = ready(Net(lambda net, x: net.used(x), used=nn.Linear(6, 5), spare=nn.Linear(6, 5)), x)
    deployed = to_deploy(model)
    assert reasons(deployed) == {"used": "", "spare": "no training batch has shown the range of its input"}
    assert_same_bits(run(deployed.spare, [x])[0], run(model.spare, [x])[0])


def test_layer_whose_weight_is_read_by_others_stays_float():
    torch.manual_seed(0)
    x = image(3, 6)
    model = ready(Net(lambda net, x: net.layer(x) + net.layer.weight.sum(), layer=nn.Linear(6, 5)), x)
    with torch.no_grad():
        model.layer.weight.copy_(model.layer._balq.quantize_weight(model.layer, "weight"))  # reads as float elsewhere
    deployed = to_deploy(model)
    assert reasons(deployed) == {"layer": "another module reads its weight"}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_computes_the_same(name):
    model, arguments = quantized(name, BalancedQuantizer(2), activation_bits=3)
    deployed = to_deploy(model)
    exact = not any(kinds(deployed).values())
    for one, other in zip(run(deployed, arguments), run(model, arguments), strict=True):
        if exact:
            assert_same_bits(one, other)
        else:
            assert float((one - other).abs().max()) <= CLOSE * float(other.abs().max())


def test_plain_layers_run_the_quantized_encoder():
    model, _ = quantized("encoder", BalancedQuantizer(2), activation_bits=3)
    assert kinds(to_deploy(model)) == {"self_attn": False, "linear1": True, "linear2": True}


# ---- whole models ---------------------------------------------------------------------------------------------------


def test_residual_network_agrees_in_the_median_and_in_every_class():
    torch.manual_seed(0)
    x = randn(8, 3, 32, 32)
    model = resnet20(10)
    quantize_(model, QuantizationConfig(BalancedQuantizer(2), activation_bits=2))
    for _ in range(3):
        observe(model, [x])
    model.eval()
    deployed = to_deploy(model)
    assert sum(kinds(deployed).values()) == 18 and not any(
        isinstance(m, nn.BatchNorm2d) for m in deployed.layer1.modules()
    )
    actual, expected = run(deployed, [x])[0], run(model, [x])[0]
    # The median: one activation that is moved over a threshold moves what follows by a level.
    assert float((actual - expected).abs().median()) <= 1e-5 * float(expected.abs().max())
    assert_equal(actual.argmax(dim=1), expected.argmax(dim=1))


def test_model_is_left_as_it_was():
    model, x = normed(nn.BatchNorm2d(6))
    model(x)
    before, output = snapshot(model), run(model, [x])[0]
    to_deploy(model)
    assert snapshot(model) == before
    assert_same_bits(run(model, [x])[0], output)


def test_model_in_training_mode_is_deployed_for_evaluation():
    model, x = normed(nn.BatchNorm2d(6))
    deployed = to_deploy(model.train())
    assert not any(module.training for module in deployed.modules())
    assert_close(deployed, model.eval(), x)


def test_packed_file_gives_the_same_deploy_model(tmp_path):
    model, _ = normed(nn.BatchNorm2d(6))
    pack(model, tmp_path / "m.safetensors")
    loaded = load_packed(tmp_path / "m.safetensors", nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)))
    one, other = to_deploy(loaded).state_dict(), to_deploy(model).state_dict()
    assert one.keys() == other.keys() == {"0.codes", "0.scale", "0.units", "0.zero_points", "0.bias"}
    for key, value in one.items():
        assert_equal(value, other[key])


def test_layer_under_two_names_is_one_again():
    model, _ = quantized("twice", BalancedQuantizer(2), activation_bits=3)
    deployed = to_deploy(model)
    assert deployed.first is deployed.second and isinstance(deployed.first, IntegerLinear)


def test_pruned_weights_are_zero_codes():
    torch.manual_seed(0)
    x = image(3, 6, signed=False)
    model = nn.Sequential(nn.Linear(6, 7))
    prune.random_unstructured(model[0], "weight", 0.4)
    mask = model[0].weight_mask.clone()
    deployed = to_deploy(ready(model, x))
    assert_equal(deployed[0].codes == 0, mask == 0)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_deploy_model_can_be_copied(how):
    model, x = normed(nn.BatchNorm2d(6))
    deployed = to_deploy(model)
    other = how(deployed)
    assert_same_bits(other(x), deployed(x))
    assert str(deploy_report(other)) == str(deploy_report(deployed))


def test_pickled_deploy_model_runs_in_a_fresh_process(tmp_path):
    model, x = normed(nn.BatchNorm2d(6))
    deployed = to_deploy(model)
    torch.save(deployed, tmp_path / "m.pt")
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "print(float(model(torch.load(sys.argv[2])).double().sum()))"
    )
    assert float(run_python(script, tmp_path / "m.pt", tmp_path / "x.pt")) == float(deployed(x).double().sum())


def test_compiled_wrapper_is_deployed_as_what_it_wraps():
    model, x = normed(nn.BatchNorm2d(6))
    assert_same_bits(to_deploy(torch.compile(model))(x), to_deploy(model)(x))


def test_report_is_a_table_of_every_layer():
    model = network("cnn_bn")
    x = image(4, 1, 8, 8, signed=False)
    quantize_(model, QuantizationConfig(BalancedQuantizer(4), activation_bits=4, weight_bits_by_layer={"7": 8}))
    observe(model, [x])
    lines = str(deploy_report(to_deploy(model.eval()))).splitlines()
    assert lines[0] == "1 of 4 layers in int8"
    cells = {line.split()[0]: line.split() for line in lines[4:]}
    assert cells["0"] == ["0", "Conv2d", "float", "float", "first", "layer"]
    assert cells["3"] == ["3", "Conv2d", "4/4", "int8", "4"]
    assert cells["7"][:4] == ["7", "Conv2d", "8/4", "float"]
    assert "its weights are integers up to 255, more than int8 holds" in lines[6]


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got dict"):
        to_deploy({})


def test_float_model_is_refused():
    with pytest.raises(ValueError, match="the model has no quantized layer"):
        to_deploy(nn.Linear(2, 2))


def test_report_of_another_model_is_refused():
    with pytest.raises(ValueError, match="`model` must be what `to_deploy` returned, got another Linear"):
        deploy_report(nn.Linear(2, 2))


def test_torch_without_the_operators_is_an_error_that_says_what_to_install(monkeypatch):
    layers = import_module("lightning_balq.export.deploy_layers")
    monkeypatch.setattr(layers, "_REGISTERING", ("no_such_module_of_torch",))
    monkeypatch.setattr(layers, "_operators", lambda: None)
    with pytest.raises(ImportError, match=r"has no operators `quantized_decomposed`.*: install torchao"):
        to_deploy(ready(nn.Linear(3, 2), image(4, 3)))
