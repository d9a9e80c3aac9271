"""Every layer computes what the float layer computes on weights, and inputs, that were quantized by hand."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_balq.functional import (
    activation_fake_quantize,
    balanced_fake_quantize,
    dorefa_fake_quantize,
    uniform_fake_quantize,
)
from lightning_balq.nn import (
    BalancedQuantizer,
    DoReFaQuantizer,
    QuantizationConfig,
    UniformQuantizer,
    activation_quantizers,
    quantize_,
    quantized_layers,
    unquantize_,
)
from tests.helpers import assert_equal, everything, hand_quantized, randn


def balanced(weight, bits=4):
    """What the default configuration does to a weight, by hand."""
    return balanced_fake_quantize(weight, bits, scale="max")


QUANTIZERS = {
    "balanced": (BalancedQuantizer(4), balanced),
    "balanced per channel": (
        BalancedQuantizer(2, center="median", scale="mean", granularity="per_channel"),
        lambda w: balanced_fake_quantize(w, 2, center="median", scale="mean", granularity="per_channel"),
    ),
    "uniform per channel": (
        UniformQuantizer(3, scale="max", granularity="per_channel"),
        lambda w: uniform_fake_quantize(w, 3, scale="max", granularity="per_channel"),
    ),
    "dorefa": (DoReFaQuantizer(3), lambda w: dorefa_fake_quantize(w, 3)),
    "dorefa by channel": (
        DoReFaQuantizer(3, "per_channel"),
        lambda w: dorefa_fake_quantize(w, 3, granularity="per_channel"),
    ),
}

# Name -> layer, shape of its input, further arguments of its forward.
LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6), {}),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (2, 3, 6), {}),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9), {}),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=1, dilation=2, groups=2), (2, 4, 9, 8), {}),
    "conv2d same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 7, 7), {}),
    "conv2d circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7, 7), {}),
    "conv2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect", bias=False), (2, 3, 7, 7), {}),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, padding=1, padding_mode="replicate"), (1, 2, 4, 5, 6), {}),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 5), {}),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        (2, 6, 4, 5),
        {},
    ),
    "transposed 2d with output_size": (
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1),
        (2, 3, 4, 5),
        {"output_size": [8, 9]},
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 3, 3), {}),
}


def build(factory, seed=1):
    torch.manual_seed(seed)
    return factory()


def by_output_channel(layer, quantize, weight):
    """Quantize with output channels in dim 0; those of a transposed convolution lie in dim 1 of each group."""
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return quantize(weight)
    groups = [group.transpose(0, 1) for group in weight.chunk(layer.groups)]
    quantized = quantize(torch.cat(groups))
    return torch.cat([group.transpose(0, 1) for group in quantized.chunk(layer.groups)])


def hand_forward(layer, quantize, *args, **kwargs):
    """Forward of a float layer on its hand-quantized weight, differentiable in the float weight."""
    return functional_call(layer, {"weight": by_output_channel(layer, quantize, layer.weight)}, args, kwargs)


def gradients(output, *tensors):
    upstream = randn(*output.shape, seed=9, dtype=output.dtype)
    return torch.autograd.grad(output, [tensor for tensor in tensors if tensor is not None], upstream)


# --- Layers of torch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_equal_float_layer_on_hand_quantized_weight(kind, method):
    factory, shape, options = LAYERS[kind]
    quantizer, quantize = QUANTIZERS[method]
    layer, reference = build(factory), build(factory)
    quantize_(layer, everything(quantizer))
    x, x_reference = randn(*shape).requires_grad_(), randn(*shape).requires_grad_()
    output, expected = layer(x, **options), hand_forward(reference, quantize, x_reference, **options)
    assert_equal(output, expected)
    torch.testing.assert_close(
        gradients(output, x, layer.weight, layer.bias),
        gradients(expected, x_reference, reference.weight, reference.bias),
        # The maximum in the formula of DoReFa gathers the gradients of all weights, in the order they lie in memory.
        rtol=1e-6 if method.startswith("dorefa") else 0,
        atol=0,
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_equal_float_layer_on_hand_quantized_weight_and_input(kind):
    factory, shape, options = LAYERS[kind]
    layer, reference = build(factory), build(factory)
    quantize_(layer, everything(activation_bits=3, activation_range="unit", activation_sign="signed"))
    x, x_reference = randn(*shape).requires_grad_(), randn(*shape).requires_grad_()
    quantized = activation_fake_quantize(x_reference, 3, range=torch.tensor(1.0), signed=torch.tensor(True))
    output, expected = layer(x, **options), hand_forward(reference, balanced, quantized, **options)
    assert_equal(output, expected)
    assert_equal(
        gradients(output, x, layer.weight, layer.bias),
        gradients(expected, x_reference, reference.weight, reference.bias),
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_keyword_call_equals_positional_call(kind):
    factory, shape, options = LAYERS[kind]
    layer = build(factory)
    quantize_(layer, everything(activation_bits=3, activation_range="unit", activation_sign="signed"))
    assert_equal(layer(input=randn(*shape), **options), layer(randn(*shape), **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_weight_has_two_to_the_bits_levels_in_every_floating_type(bits, dtype):
    layer = build(lambda: nn.Linear(64, 64, bias=False)).to(dtype)
    quantize_(layer, everything(BalancedQuantizer(bits)))
    weight = layer(torch.eye(64, dtype=dtype))  # a product with the identity is the weight
    assert weight.dtype == dtype
    assert weight.unique().numel() == 2**bits


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_weight_has_two_to_the_bits_levels_under_bfloat16_autocast(bits):
    layer = build(lambda: nn.Linear(64, 64, bias=False))
    quantize_(layer, everything(BalancedQuantizer(bits)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = layer(torch.eye(64))
    assert weight.dtype == torch.bfloat16
    assert weight.unique().numel() == 2**bits


def test_training_under_autocast_gives_the_gradient_of_the_hand_quantized_layer():
    layer, reference = build(lambda: nn.Linear(6, 4)), build(lambda: nn.Linear(6, 4))
    quantize_(layer, everything())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = layer(randn(5, 6)), hand_forward(reference, balanced, randn(5, 6))
    assert_equal(output, expected)
    assert_equal(gradients(output, layer.weight), gradients(expected, reference.weight))


# --- Embedding -------------------------------------------------------------------------------------------------------

EMBEDDINGS = QuantizationConfig(include=["type:Embedding"], quantize_first_last=True)
TOKENS = torch.tensor([[1, 0, 3], [3, 3, 7]])


def test_embedding_equals_lookup_in_hand_quantized_table():
    layer, reference = build(lambda: nn.Embedding(10, 4)), build(lambda: nn.Embedding(10, 4))
    quantize_(layer, EMBEDDINGS)
    output, expected = layer(TOKENS), F.embedding(TOKENS, balanced(reference.weight))
    assert_equal(output, expected)
    assert_equal(gradients(output, layer.weight), gradients(expected, reference.weight))


@pytest.mark.parametrize("padding_idx", [0, -1])
def test_padding_row_stays_float_and_other_rows_lie_on_levels(padding_idx):
    layer = build(lambda: nn.Embedding(40, 8, padding_idx=padding_idx))
    with torch.no_grad():
        layer.weight[padding_idx] = randn(8, seed=3)  # a row that a user has set
    table = balanced(layer.weight.detach(), 2)
    table[padding_idx] = layer.weight[padding_idx].detach()
    quantize_(layer, QuantizationConfig(BalancedQuantizer(2), include=["type:Embedding"], quantize_first_last=True))
    assert_equal(layer(torch.arange(40)).detach(), table)
    others = torch.arange(40) != padding_idx % 40
    assert table[others].unique().numel() == 4


def test_padding_row_receives_no_gradient():
    layer = build(lambda: nn.Embedding(10, 4, padding_idx=0))
    quantize_(layer, EMBEDDINGS)
    layer(TOKENS).sum().backward()
    assert_equal(layer.weight.grad.sum(dim=1), 4.0 * torch.tensor([0, 1, 0, 3, 0, 0, 0, 1, 0, 0]))


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_sparse_embedding_keeps_its_sparse_gradient(padding_idx):
    layer = build(lambda: nn.Embedding(10, 4, sparse=True, padding_idx=padding_idx))
    reference = copy.deepcopy(layer)
    quantize_(layer, EMBEDDINGS)
    layer(TOKENS).sum().backward()
    reference(TOKENS).sum().backward()
    assert layer.weight.grad.is_sparse
    assert_equal(layer.weight.grad.to_dense(), reference.weight.grad.to_dense())


# --- MultiheadAttention ----------------------------------------------------------------------------------------------

ATTENTIONS = {
    "joint": {},
    "batch first": {"batch_first": True},
    "separate": {"kdim": 6, "vdim": 10},
    "separate, batch first": {"kdim": 6, "vdim": 10, "batch_first": True},
    "without bias": {"bias": False},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")


def attention(options):
    return build(lambda: nn.MultiheadAttention(8, 2, **options))


def hand_attention(layer, quantize=balanced):
    names = dict(layer.named_parameters())
    return hand_quantized(layer, {name: quantize for name in PROJECTIONS if name in names})


def attention_inputs(options, self_attention=False):
    query = randn(3, 3, 8, seed=1)
    if self_attention and "kdim" not in options:
        return query, query, query
    return query, randn(3, 3, options.get("kdim", 8), seed=2), randn(3, 3, options.get("vdim", 8), seed=3)


@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradients"])
@pytest.mark.parametrize("self_attention", [True, False], ids=["self", "cross"])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_equals_float_attention_with_hand_quantized_projections(kind, self_attention, mode):
    options = ATTENTIONS[kind]
    layer = attention(options)
    expected_layer = hand_attention(layer)
    quantize_(layer, everything())
    inputs = attention_inputs(options, self_attention)
    for need_weights in (True, False):
        layer.train(mode == "train")
        expected_layer.train(mode == "train")
        with torch.set_grad_enabled(mode != "eval without gradients"):
            output, weights = layer(*inputs, need_weights=need_weights)
            expected, expected_weights = expected_layer(*inputs, need_weights=need_weights)
        # Without gradients torch may take another matrix product for a weight that is no parameter: float32 rounding.
        atol = 1e-6 if mode == "eval without gradients" else 0
        torch.testing.assert_close(output, expected, rtol=0, atol=atol)
        assert (weights is None) == (not need_weights)
        if need_weights:
            torch.testing.assert_close(weights, expected_weights, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_gradients_of_attention_equal_those_of_hand_quantized_attention(kind):
    layer = attention(ATTENTIONS[kind])
    expected = hand_attention(layer)
    quantize_(layer, everything())
    inputs = attention_inputs(ATTENTIONS[kind])
    for module in (layer, expected):
        (module(*inputs)[0] * randn(3, 3, 8, seed=4)).sum().backward()
    for (name, parameter), reference in zip(layer.named_parameters(), expected.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert_equal(parameter.grad, reference.grad)


@pytest.mark.parametrize("mask", ["attn_mask", "key_padding_mask"])
def test_masks_reach_the_float_attention_unchanged(mask):
    layer = attention({"batch_first": True})
    expected = hand_attention(layer)
    quantize_(layer, everything())
    given = {mask: torch.tensor([[False, True, False], [False, False, True], [True, False, False]])}
    inputs = attention_inputs({})
    assert_equal(layer(*inputs, **given), expected(*inputs, **given))
    query, key, value = inputs
    assert_equal(layer(query=query, key=key, value=value, **given), expected(*inputs, **given))


def test_inputs_of_cross_attention_are_quantized_each():
    layer = attention({})
    expected = hand_attention(layer)
    quantize_(layer, everything(activation_bits=3, activation_range="unit", activation_sign="signed"))
    inputs = attention_inputs({})
    quantized = [activation_fake_quantize(x, 3, range=torch.tensor(1.0), signed=torch.tensor(True)) for x in inputs]
    assert_equal(layer(*inputs), expected(*quantized))


def test_input_of_self_attention_is_quantized_once():
    layer = attention({})
    expected = hand_attention(layer)
    quantize_(layer, everything(activation_bits=3, activation_range="unit", activation_sign="signed"))
    x = randn(3, 3, 8)
    quantized = activation_fake_quantize(x, 3, range=torch.tensor(1.0), signed=torch.tensor(True))
    # One object three times: torch projects it in one product, whose rounding separate objects would change.
    assert_equal(layer(x, x, x), expected(quantized, quantized, quantized))


@pytest.mark.parametrize(("same", "observed"), [("qkv", [1, 0, 0]), ("kv", [1, 1, 0]), ("", [1, 1, 1])])
def test_attention_observes_each_distinct_input_once(same, observed):
    layer = attention({})
    quantize_(layer, everything(activation_bits=3))
    query, key, value = attention_inputs({})
    layer(query, query if same == "qkv" else key, {"qkv": query, "kv": key, "": value}[same])
    assert [int(quantizer.pending[1]) for quantizer in activation_quantizers(layer)] == observed


def test_subclass_of_attention_may_have_a_forward_of_its_own_signature():
    class SelfAttention(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x, need_weights=False)[0]

    layer = build(lambda: SelfAttention(8, 2))
    expected = hand_attention(layer)
    quantize_(layer, everything())
    assert_equal(layer(randn(3, 2, 8)), expected(randn(3, 2, 8)))


def test_subclass_of_attention_may_call_its_out_proj_as_a_module():
    class Own(nn.MultiheadAttention):
        def forward(self, query, key, value):
            return self.out_proj(F.linear(query, self.in_proj_weight)[..., :8])

    layer = build(lambda: Own(8, 2))
    expected = hand_attention(layer)
    quantize_(layer, everything())
    inputs = attention_inputs({})
    assert_equal(layer(*inputs), expected(*inputs))


# --- Transformer encoders, whose evaluation takes a fused path that reads weights without calling layers --------------

ENCODERS = {
    "layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
    "norm first": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True),
    "gelu": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu"),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=True
    ),
}


def encoder_weights(model):
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 2]
    assert any(name.endswith("out_proj.weight") for name in names)
    return names


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_evaluated_encoder_runs_on_quantized_weights(kind, masked, context):
    float_model = build(ENCODERS[kind]).eval()
    x = randn(2, 4, 8)
    options = {}
    if masked:
        options["src_key_padding_mask"] = torch.tensor([[False, False, False, True], [False, False, True, True]])
    outputs = []
    for bits in (2, 4):
        model = copy.deepcopy(float_model)
        quantize_(model, everything(BalancedQuantizer(bits)))
        hand = hand_quantized(
            float_model, {name: lambda w, bits=bits: balanced(w, bits) for name in encoder_weights(float_model)}
        )
        enabled = torch.backends.mha.get_fastpath_enabled()
        with context():
            outputs.append(model(x, **options))
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                expected = hand(x, **options)
            finally:
                torch.backends.mha.set_fastpath_enabled(enabled)
        valid = ~options["src_key_padding_mask"] if masked else torch.ones(2, 4, dtype=torch.bool)
        # The attention itself still takes torch's fused kernel, which the reference does not: float32 rounding.
        torch.testing.assert_close(outputs[-1][valid], expected[valid], rtol=1e-5, atol=1e-5)
    assert (outputs[0] - outputs[1])[valid].abs().max() > 0.01


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_encoder_with_quantized_linear_layers_only_leaves_the_fused_path(kind):
    float_model = build(ENCODERS[kind]).eval()
    model = copy.deepcopy(float_model)
    quantize_(model, everything(include=["*linear1"]))
    names = [name for name in dict(model.named_parameters()) if name.endswith("linear1.weight")]
    hand = hand_quantized(float_model, dict.fromkeys(names, balanced))
    with torch.no_grad():
        # The reference may take the fused path: float32 rounding.
        torch.testing.assert_close(model(randn(2, 4, 8)), hand(randn(2, 4, 8)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation_bits", [None, 3])
def test_encoder_of_which_only_the_second_layer_is_quantized_evaluates_a_padded_batch(activation_bits):
    # Torch decides by the first layer alone whether to pass nested tensors, which cannot be quantized.
    model = build(ENCODERS["encoder"]).eval()
    quantize_(model, everything(include=["layers.1"], activation_bits=activation_bits, activation_range="unit"))
    mask = torch.tensor([[False, False, False, True], [False, False, True, True]])
    expected = model(randn(2, 4, 8), src_key_padding_mask=mask).detach()  # gradients keep torch off its fused path
    with torch.no_grad():
        output = model(randn(2, 4, 8), src_key_padding_mask=mask)
    # The float layer takes the fused path here: float32 rounding, which moves no activation to another level.
    torch.testing.assert_close(output[~mask], expected[~mask], rtol=1e-5, atol=1e-5)


# --- Lazy layers -----------------------------------------------------------------------------------------------------

LAZY = {
    "linear": (lambda: nn.LazyLinear(4), (5, 6)),
    "conv2d": (lambda: nn.LazyConv2d(4, 3), (2, 3, 7, 7)),
    "transposed": (lambda: nn.LazyConvTranspose2d(4, 3), (2, 3, 7, 7)),
}


@pytest.mark.parametrize("kind", LAZY)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_layer_quantized_before_materialisation_is_quantized_after(kind):
    factory, shape = LAZY[kind]
    layer, reference = factory(), factory()
    quantize_(layer, everything())
    x = randn(*shape)
    torch.manual_seed(3)
    first = layer(x)  # materialises, and is quantized already
    torch.manual_seed(3)
    reference(x)
    expected = hand_forward(reference, balanced, x)
    assert_equal(first, expected)
    assert_equal(layer(x), expected)
    unquantize_(layer)
    assert type(layer) is type(reference)
    assert_equal(layer(x), reference(x))


# --- Subclasses with a forward of their own --------------------------------------------------------------------------


class CallsSuper(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class CallsFunction(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * 2, self.bias)


class OverridesConvForward(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return F.conv2d(input, self.weight, bias)


class TakesMore(nn.Linear):
    def forward(self, x, gate, power=1, *, offset=0.0):
        return (super().forward(x) * gate) ** power + offset


class TakesFlagFirst(nn.Linear):
    def forward(self, flag, x):
        return super().forward(x) if flag else x


class CallsItself(nn.Linear):
    def forward(self, x, depth=1):
        return super().forward(self(x, depth - 1) if depth else x)


class InheritsForward(nn.Linear):
    pass


OWN = {
    "calls super": (lambda: CallsSuper(6, 6), (randn(3, 6),), {}),
    "calls a function": (lambda: CallsFunction(3, 4, 3), (randn(2, 3, 5, 5),), {}),
    "overrides _conv_forward": (lambda: OverridesConvForward(3, 4, 3), (randn(2, 3, 5, 5),), {}),
    "takes more": (lambda: TakesMore(6, 6), (randn(3, 6), randn(3, 6, seed=2), 2), {"offset": 0.5}),
    "takes a flag first": (lambda: TakesFlagFirst(6, 6), (True, randn(3, 6)), {}),
    "calls itself": (lambda: CallsItself(20, 20), (randn(3, 20),), {"depth": 2}),
    "inherits forward": (lambda: InheritsForward(6, 6), (randn(3, 6),), {}),
}


@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("kind", OWN)
def test_subclass_computes_on_hand_quantized_weight(kind, method):
    factory, args, kwargs = OWN[kind]
    quantizer, quantize = QUANTIZERS[method]
    layer = build(factory)
    expected = hand_quantized(layer, {"weight": quantize})(*args, **kwargs)
    quantize_(layer, everything(quantizer))
    assert_equal(layer(*args, **kwargs), expected)


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind != "calls itself"])
def test_first_tensor_of_a_subclass_is_quantized(kind):
    factory, args, kwargs = OWN[kind]
    layer = build(factory)
    hand = hand_quantized(layer, {"weight": balanced})
    quantize_(layer, everything(activation_bits=3, activation_range="unit", activation_sign="signed"))
    first = next(index for index, value in enumerate(args) if isinstance(value, torch.Tensor))
    quantized = activation_fake_quantize(args[first], 3, range=torch.tensor(1.0), signed=torch.tensor(True))
    assert_equal(layer(*args, **kwargs), hand(*args[:first], quantized, *args[first + 1 :], **kwargs))


def test_order_of_keyword_arguments_does_not_matter_to_a_subclass():
    layer = build(lambda: TakesMore(6, 6))
    quantize_(layer, everything(activation_bits=3, activation_range="unit", activation_sign="signed"))
    x, gate = randn(3, 6), randn(3, 6, seed=2)
    assert_equal(layer(gate=gate, x=x), layer(x, gate))


def test_forward_that_is_a_partial_method_is_quantized():
    class Scaled(nn.Linear):
        def scaled(self, x, factor):
            return super().forward(x) * factor

        forward = functools.partialmethod(scaled, factor=2)

    layer = build(lambda: Scaled(6, 6))
    hand = hand_quantized(layer, {"weight": balanced})
    quantize_(layer, everything())
    assert_equal(layer(randn(3, 6)), hand(randn(3, 6)))


def test_exception_inside_a_forward_leaves_the_layer_usable():
    layer = build(lambda: CallsSuper(6, 6))
    hand = hand_quantized(layer, {"weight": balanced})
    parameter = layer.weight
    quantize_(layer, everything())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(randn(3, 5))
    assert layer.weight is parameter
    assert "weight" not in layer.__dict__
    assert_equal(layer(randn(3, 6)), hand(randn(3, 6)))


def test_forward_set_on_the_instance_leaves_the_layer_float_and_says_so():
    model = nn.Sequential(nn.Linear(6, 6), build(lambda: nn.Linear(6, 6)))
    model[1].forward = lambda x: F.linear(x, model[1].weight, model[1].bias)
    decided = quantize_(model, everything())
    assert [layer.reason for layer in decided.layers] == ["", "its forward is replaced on the instance"]
    assert type(model[1]) is nn.Linear


# --- What a layer is given from elsewhere ----------------------------------------------------------------------------


def test_integer_input_passes_activation_quantization():
    class TakesTokens(nn.Linear):
        def forward(self, tokens):
            return super().forward(F.one_hot(tokens, 6).float())

    layer = build(lambda: TakesTokens(6, 4))
    hand = hand_quantized(layer, {"weight": balanced})
    quantize_(layer, everything(activation_bits=2))
    assert_equal(layer(torch.tensor([0, 5])), hand(torch.tensor([0, 5])))


def test_weight_read_outside_a_forward_is_the_float_parameter():
    layer = build(lambda: nn.Linear(6, 4))
    parameter, value = layer.weight, layer.weight.detach().clone()
    quantize_(layer, everything())
    layer(randn(3, 6)).sum().backward()
    assert layer.weight is parameter
    assert_equal(layer.weight.detach(), value)


def test_change_of_the_data_of_a_weight_is_seen_by_the_next_forward():
    layer = build(lambda: nn.Linear(6, 4))
    hand = hand_quantized(layer, {"weight": lambda w: balanced(w * 3)})
    quantize_(layer, everything())
    layer(randn(3, 6))
    layer.weight.data.mul_(3)
    assert_equal(layer(randn(3, 6)), hand(randn(3, 6)))


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_step_changes_weight_and_next_output(fused):
    layer = build(lambda: nn.Linear(6, 4))
    quantize_(layer, everything())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)
    before = layer.weight.detach().clone()
    layer(randn(3, 6)).square().sum().backward()
    optimizer.step()
    assert (layer.weight != before).all()
    assert_equal(layer(randn(3, 6)), F.linear(randn(3, 6), balanced(layer.weight), layer.bias))


def test_layers_and_states_are_listed_in_the_order_of_named_modules():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)), nn.MultiheadAttention(4, 1))
    quantize_(model, everything(activation_bits=2))
    assert [name for name, _, _ in quantized_layers(model)] == ["0", "2.0", "3"]
    assert [len(state.inputs) for _, _, state in quantized_layers(model)] == [1, 1, 3]
    assert len(activation_quantizers(model)) == 5
    assert list(quantized_layers(nn.Linear(2, 2))) == []


# --- Parametrizations and pruning ------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return F.linear(x, 2 * self.weight, self.bias)


NORMS = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cls", [nn.Linear, Doubled])
def test_parametrized_weight_is_quantized_and_its_source_trained(cls, norm, when):
    layer, reference = build(lambda: cls(6, 4)), build(lambda: cls(6, 4))
    if when == "after":
        quantize_(layer, everything())
    for module in (layer, reference):
        torch.manual_seed(5)  # spectral_norm draws its vectors
        NORMS[norm](module)
    if when == "before":
        quantize_(layer, everything())
    factor = 2 if cls is Doubled else 1
    for step in range(3):
        x = randn(5, 6, seed=step)
        output = layer(x)
        expected = F.linear(x, factor * balanced(reference.weight), reference.bias)
        assert_equal(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        for (name, ours), theirs in zip(layer.named_parameters(), reference.parameters(), strict=True):
            assert ours.grad is not None, name
            assert_equal(ours.grad, theirs.grad)
        # One power iteration of spectral_norm per forward, no more.
        assert_equal(dict(layer.named_buffers()), dict(reference.named_buffers()))


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("cls", [nn.Linear, Doubled])
def test_weight_under_a_legacy_norm_is_quantized(cls, norm, when):
    layer, reference = build(lambda: cls(6, 4)), build(lambda: cls(6, 4))
    if when == "after":
        quantize_(layer, everything())
    for module in (layer, reference):
        torch.manual_seed(5)
        norm(module)
    if when == "before":
        quantize_(layer, everything())
    factor = 2 if cls is Doubled else 1
    for step in range(2):
        x = randn(5, 6, seed=step)
        output = layer(x)
        reference(x)  # its hook computes the weight
        expected = F.linear(x, factor * balanced(reference.weight), reference.bias)
        assert_equal(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        for ours, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
            assert_equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("cls", [nn.Linear, Doubled])
def test_pruned_weights_stay_exactly_zero_and_receive_no_gradient(cls, when):
    layer = build(lambda: cls(16, 8))
    original = layer.weight.detach().clone()
    mask = (randn(8, 16, seed=2) > 0).float()
    if when == "after":
        quantize_(layer, everything())
    nn.utils.prune.custom_from_mask(layer, "weight", mask)
    if when == "before":
        quantize_(layer, everything())
    factor = 2 if cls is Doubled else 1
    expected = factor * balanced(original * mask) * mask
    output = layer(torch.eye(16)) - layer.bias
    # Adding and subtracting the bias rounds; the zeros are checked exactly below.
    torch.testing.assert_close(output.T, expected, rtol=0, atol=1e-6)
    assert_equal(layer(torch.eye(16)), F.linear(torch.eye(16), expected, layer.bias))
    assert (expected[mask == 0] == 0).all()
    layer(randn(5, 16)).square().sum().backward()
    assert (layer.weight_orig.grad[mask == 0] == 0).all()
    assert (layer.weight_orig.grad[mask == 1] != 0).all()


def test_pruned_projection_of_attention_stays_zero():
    layer = attention({})
    mask = (randn(24, 8, seed=2) > 0).float()
    weight = layer.in_proj_weight.detach().clone()
    reference = copy.deepcopy(layer)
    nn.utils.prune.custom_from_mask(layer, "in_proj_weight", mask)
    quantize_(layer, everything())
    hand = hand_quantized(reference, {"in_proj_weight": lambda _: balanced(weight * mask) * mask})
    hand = hand_quantized(hand, {"out_proj.weight": balanced})
    inputs = attention_inputs({})
    assert_equal(layer(*inputs), hand(*inputs))


def test_parametrization_removed_while_quantized_leaves_a_quantized_layer():
    layer = build(lambda: nn.Linear(6, 4))
    nn.utils.parametrizations.weight_norm(layer)
    quantize_(layer, everything())
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    assert_equal(layer(randn(5, 6)), F.linear(randn(5, 6), balanced(layer.weight), layer.bias))


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("cls", [nn.Linear, Doubled])
def test_second_parametrization_added_while_quantized_takes_effect(cls):
    layer = build(lambda: cls(6, 4))
    nn.utils.parametrizations.weight_norm(layer)
    quantize_(layer, everything())
    layer(randn(5, 6))
    nn.utils.parametrize.register_parametrization(layer, "weight", Halved())
    nn.utils.parametrize.register_parametrization(layer, "bias", Halved())
    factor = 2 if cls is Doubled else 1
    assert_equal(layer(randn(5, 6)), F.linear(randn(5, 6), factor * balanced(layer.weight), layer.bias))


# --- Blending --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed 2d"])
def test_layer_in_phase_float_equals_float_layer(kind):
    factory, shape, _ = LAYERS[kind]
    layer, reference = build(factory), build(factory)
    quantize_(layer, everything(activation_bits=2))
    next(state for _, _, state in quantized_layers(layer)).schedule.set_blend(0.0)
    output, expected = layer(randn(*shape)), reference(randn(*shape))
    assert_equal(output, expected)
    assert_equal(gradients(output, layer.weight), gradients(expected, reference.weight))


@pytest.mark.parametrize("blend", [0.25, 0.5])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed 2d"])
def test_blended_layer_computes_on_blended_weight_and_input(kind, blend):
    factory, shape, _ = LAYERS[kind]
    layer, reference = build(factory), build(factory)
    quantize_(layer, everything(activation_bits=3, activation_range="unit", activation_sign="signed"))
    next(state for _, _, state in quantized_layers(layer)).schedule.set_blend(blend)
    x = randn(*shape)
    quantized = activation_fake_quantize(x, 3, range=torch.tensor(1.0), signed=torch.tensor(True))
    expected = hand_forward(
        reference, lambda w: w * (1 - blend) + balanced(w) * blend, x * (1 - blend) + quantized * blend
    )
    output = layer(x)
    assert_equal(output, expected)
    # The two paths carry 1 - blend and blend of one gradient, which sum to it exactly for these dyadic shares.
    assert_equal(gradients(output, layer.weight), gradients(expected, reference.weight))


# --- Names under wrappers --------------------------------------------------------------------------------------------


def test_wrapped_layers_are_listed_under_the_names_of_the_plain_model():
    def wrap(module):
        return torch.compile(module, backend="eager")

    model = nn.ModuleDict(
        {"fc": wrap(nn.Linear(4, 4)), "net": wrap(nn.Sequential(nn.Linear(4, 4))), "attn": nn.MultiheadAttention(4, 1)}
    )
    quantize_(model, everything())
    assert [name for name, _, _ in quantized_layers(model)] == ["fc", "net.0", "attn"]
