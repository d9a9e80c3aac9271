"""Quantizing in place leaves what a user holds on to as it is, works under tools of torch, and is undone exactly."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize, prune

from lightning_balq.functional import balanced_fake_quantize
from lightning_balq.nn import (
    BalancedQuantizer,
    QuantizationConfig,
    UniformQuantizer,
    activation_quantizers,
    plan,
    quantize_,
    quantized_layers,
    unquantize_,
    update_ranges_,
)
from tests.helpers import assert_equal, everything, hand_quantized, randn, run_python, snapshot, tiny_model


def balanced(weight):
    """What the default configuration does to a weight, by hand."""
    return balanced_fake_quantize(weight, 4, scale="max")


TINY_WEIGHTS = dict.fromkeys(["stem.weight", "conv.weight", "hidden.weight", "head.weight"], balanced)
IMAGES = (2, 1, 8, 8)


class Own(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight * 2, self.bias)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Tied(nn.Module):
    """A decoder that shares the table of an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.decoder = nn.Linear(4, 10)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(self.embedding(tokens))


def hooked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda *_: None)
    model[0].register_forward_pre_hook(lambda *_: None, prepend=True)
    model[1].register_full_backward_hook(lambda *_: None)
    model[1].register_state_dict_pre_hook(lambda *_: None)
    model[1].register_load_state_dict_post_hook(lambda *_: None)
    model[0].eval()
    model[1].weight.requires_grad_(False)
    return model


def pruned(cls):
    layer = cls(6, 4)
    prune.custom_from_mask(layer, "weight", (randn(4, 6) > 0).float())
    return layer


# Name -> model, input.
MODELS = {
    "tiny": (tiny_model, lambda: randn(*IMAGES)),
    "a layer": (lambda: nn.Linear(6, 4), lambda: randn(2, 6)),
    "no weights to quantize but one": (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)), lambda: randn(2, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), lambda: randn(2, 3, 4, 4)),
    "tied": (Tied, lambda: torch.tensor([[1, 2], [3, 3]])),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        lambda: randn(2, 3, 8),
    ),
    "subclass": (lambda: Own(6, 4), lambda: randn(2, 6)),
    "hooks": (hooked, lambda: randn(2, 4)),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), lambda: randn(2, 6)),
    "weight_norm, subclass": (lambda: nn.utils.parametrizations.weight_norm(Own(6, 4)), lambda: randn(2, 6)),
    "spectral_norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4))),
        lambda: randn(2, 6),
    ),
    "legacy weight_norm": (lambda: nn.utils.weight_norm(Own(6, 4)), lambda: randn(2, 6)),
    "pruned": (lambda: pruned(nn.Linear), lambda: randn(2, 6)),
    "pruned subclass": (lambda: pruned(Own), lambda: randn(2, 6)),
    "lazy, materialised": (lambda: materialised(nn.LazyLinear(4)), lambda: randn(2, 6)),
}
CONFIG = {"include": ["*", "type:Embedding"], "activation_bits": 3}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


def materialised(layer):
    layer(randn(2, 6))
    return layer


def build(kind):
    torch.manual_seed(0)
    factory, given = MODELS[kind]
    return factory(), given()


def config_for(model, **options):
    """Everything, embeddings only where there are some: a pattern has to match."""
    include = ["*", "type:Embedding"] if any(isinstance(m, nn.Embedding) for m in model.modules()) else ["*"]
    return everything(include=include, activation_bits=3, **options)


# --- Undoing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_unquantized_model_is_the_float_model_in_every_respect(kind):
    model, x = build(kind)
    model.train()
    if kind == "hooks":
        model[0].eval()
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    parameters = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    quantize_(model, config_for(model))
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        model(x)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert_equal(model.state_dict(), state)
    unquantize_(model)
    assert snapshot(model) == before
    assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == parameters
    assert_equal(model.state_dict(), state)


@pytest.mark.parametrize("kind", MODELS)
def test_unquantized_model_after_training_equals_a_float_model_with_the_trained_weights(kind):
    model, x = build(kind)
    twin, _ = build(kind)
    quantize_(model, config_for(model))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        update_ranges_(activation_quantizers(model))
    unquantize_(model)
    twin.load_state_dict(model.state_dict())
    if not kind.startswith(("weight_norm", "spectral_norm")):
        assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]
    assert [list(module.__dict__) for module in model.modules()] == [list(module.__dict__) for module in twin.modules()]
    for module in (model, twin):
        module.eval()
    assert_equal(model(x), twin(x))


@pytest.mark.parametrize("kind", MODELS)
def test_unquantizing_a_float_model_changes_nothing(kind):
    model, _ = build(kind)
    before = snapshot(model)
    unquantize_(model)
    assert snapshot(model) == before


def test_unquantizing_before_a_lazy_layer_is_materialised_leaves_it_lazy():
    layer = nn.LazyLinear(4)
    before = snapshot(layer)
    quantize_(layer, everything())
    unquantize_(layer)
    assert snapshot(layer) == before
    layer(randn(2, 6))
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("cls", [nn.Linear, Own])
def test_parametrization_removed_while_quantized_stays_removed_when_undone(cls):
    layer, twin = cls(6, 4), cls(6, 4)
    twin.load_state_dict(layer.state_dict())
    for module in (layer, twin):
        nn.utils.parametrizations.weight_norm(module)
    quantize_(layer, everything())
    for module in (layer, twin):
        parametrize.remove_parametrizations(module, "weight")
    unquantize_(layer)
    assert type(layer) is cls
    assert list(layer.__dict__) == list(twin.__dict__)
    assert list(layer.state_dict()) == list(twin.state_dict())
    assert_equal(layer(randn(2, 6)), twin(randn(2, 6)))


@pytest.mark.parametrize("cls", [nn.Linear, Own])
def test_parametrization_added_while_quantized_stays_when_undone(cls):
    layer, twin = cls(6, 4), cls(6, 4)
    twin.load_state_dict(layer.state_dict())
    quantize_(layer, everything())
    for module in (layer, twin):
        nn.utils.parametrizations.weight_norm(module)
    unquantize_(layer)
    assert list(layer.__dict__) == list(twin.__dict__)
    assert list(layer.state_dict()) == list(twin.state_dict())
    assert_equal(layer(randn(2, 6)), twin(randn(2, 6)))
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is cls


@pytest.mark.parametrize("change", ["added", "removed"])
@pytest.mark.parametrize("cls", [nn.Linear, Own])
def test_second_parametrization_changed_while_quantized_stays_changed_when_undone(cls, change):
    layer, twin = cls(6, 4), cls(6, 4)
    twin.load_state_dict(layer.state_dict())
    for module in (layer, twin):
        parametrize.register_parametrization(module, "weight", Halved())
        if change == "removed":
            parametrize.register_parametrization(module, "bias", Halved())
    quantize_(layer, everything())
    layer(randn(2, 6))
    for module in (layer, twin):
        if change == "removed":
            parametrize.remove_parametrizations(module, "bias")
        else:
            parametrize.register_parametrization(module, "bias", Halved())
    unquantize_(layer)
    assert list(layer.state_dict()) == list(twin.state_dict())
    assert_equal(layer(randn(2, 6)), twin(randn(2, 6)))


@pytest.mark.parametrize("cls", [nn.Linear, Own])
def test_pruning_made_permanent_while_quantized_stays_when_undone(cls):
    layer, twin = pruned(cls), pruned(cls)
    twin.load_state_dict(layer.state_dict())
    quantize_(layer, everything())
    layer(randn(2, 6))
    for module in (layer, twin):
        prune.remove(module, "weight")
    unquantize_(layer)
    assert type(layer) is cls
    assert list(layer.__dict__) == list(twin.__dict__)
    assert_equal(layer(randn(2, 6)), twin(randn(2, 6)))


def test_undoing_a_part_leaves_the_rest_quantized():
    model = tiny_model()
    quantize_(model, everything())
    unquantize_(model.hidden)
    assert type(model.hidden) is nn.Linear
    assert [name for name, _, _ in quantized_layers(model)] == ["stem", "conv", "head"]
    weights = {name: quantize for name, quantize in TINY_WEIGHTS.items() if name != "hidden.weight"}
    assert_equal(model(randn(*IMAGES)), hand_quantized(tiny_model(), weights)(randn(*IMAGES)))


# --- Once, twice, otherwise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_quantizing_twice_is_quantizing_once(kind):
    model, _ = build(kind)
    first = quantize_(model, config_for(model))
    once = snapshot(model)
    assert quantize_(model, config_for(model)) == first
    assert snapshot(model) == once


def test_plan_is_the_one_returned():
    model = tiny_model()
    decided = plan(model, QuantizationConfig(activation_bits=2))
    assert quantize_(model, QuantizationConfig(activation_bits=2)) == decided
    assert [name for name, _, _ in quantized_layers(model)] == ["conv", "hidden"]


def test_default_configuration_quantizes_inner_layers_to_four_balanced_bits():
    model = tiny_model()
    quantize_(model)
    inner = dict.fromkeys(("conv.weight", "hidden.weight"), balanced)
    assert_equal(model(randn(*IMAGES)), hand_quantized(tiny_model(), inner)(randn(*IMAGES)))


OTHER = {
    "bits": everything(BalancedQuantizer(3), activation_bits=3),
    "method": everything(UniformQuantizer(4), activation_bits=3),
    "scale": everything(BalancedQuantizer(4, scale="mean"), activation_bits=3),
    "bits of one layer": everything(activation_bits=3, weight_bits_by_layer={"hidden": 2}),
    "activation bits": everything(activation_bits=2),
    "float activations": everything(),
    "activation range": everything(activation_bits=3, activation_range="unit"),
    "activation sign": everything(activation_bits=3, activation_sign="signed"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_quantizing_again_in_another_way_is_refused_and_changes_nothing(kind):
    model = tiny_model()
    quantize_(model, everything(activation_bits=3))
    model(randn(*IMAGES))
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"layer '(stem|hidden)' is quantized already, as .*; call `unquantize_\(model\)`"
    ):
        quantize_(model, OTHER[kind])
    assert snapshot(model) == before


def test_layers_added_later_join_the_schedule_of_the_first():
    model = tiny_model()
    quantize_(model, QuantizationConfig())
    quantize_(model, everything())
    assert len(list(quantized_layers(model))) == 4
    assert len({id(state.schedule) for _, _, state in quantized_layers(model)}) == 1


def test_parts_quantized_apart_share_one_schedule_once_the_whole_is_quantized():
    model = nn.ModuleDict({"a": tiny_model(), "b": tiny_model()})
    quantize_(model.a, everything())
    quantize_(model.b, everything(BalancedQuantizer(4)))
    quantize_(model, everything())
    assert len({id(state.schedule) for _, _, state in quantized_layers(model)}) == 1


BAD = {
    "pattern": (everything(include=["tail"]), "'tail', which matches none"),
    "nothing left": (QuantizationConfig(exclude=["*"]), "no layer of the model would be quantized"),
    "several widths": (everything(weight_bits_by_layer={"conv": 2, "c*": 3}), "several widths"),
}


@pytest.mark.parametrize("kind", BAD)
def test_options_that_do_not_fit_change_nothing(kind):
    model = tiny_model()
    before = snapshot(model)
    config, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        quantize_(model, config)
    assert snapshot(model) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weight_that_is_not_finite_is_refused_by_name_and_changes_nothing(value):
    model = tiny_model()
    model.hidden.weight.data[3, 1] = value
    before = snapshot(model)
    with pytest.raises(ValueError, match="`weight` of layer 'hidden' holds NaN or infinite values"):
        quantize_(model, everything())
    assert snapshot(model) == before
    quantize_(model, everything(exclude=["hidden"]))  # what stays float may hold anything


@pytest.mark.parametrize("name", ["k_proj_weight", "out_proj.weight"])
def test_projection_that_is_not_finite_is_named(name):
    layer = nn.MultiheadAttention(8, 2, kdim=4)
    layer.get_parameter(name).data[0, 0] = math.nan
    with pytest.raises(ValueError, match=f"`{name}` of layer '' holds NaN"):
        quantize_(layer, everything())


@pytest.mark.parametrize("model", [None, nn.Linear, "model", torch.ones(2)], ids=["None", "class", "text", "tensor"])
def test_anything_but_a_module_is_refused(model):
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module, got "):
        quantize_(model)


@pytest.mark.parametrize("config", [2, {"weight_bits": 2}, BalancedQuantizer(2), QuantizationConfig], ids=str)
def test_anything_but_a_configuration_is_refused(config):
    with pytest.raises(TypeError, match="`config` must be a QuantizationConfig or None, got "):
        quantize_(tiny_model(), config)


def test_model_on_the_meta_device_can_be_quantized():
    with torch.device("meta"):
        model = tiny_model()
    quantize_(model, everything(activation_bits=2))
    assert model(torch.empty(IMAGES, device="meta")).shape == (2, 3)


def test_model_quantized_in_inference_mode_can_be_trained():
    model = tiny_model()
    with torch.inference_mode():
        quantize_(model, everything(activation_bits=3))
    train(model, 1)


# --- What a user holds on to -----------------------------------------------------------------------------------------


def test_model_computes_what_the_hand_quantized_model_computes():
    model, hand = tiny_model(), hand_quantized(tiny_model(), TINY_WEIGHTS)
    quantize_(model, everything())
    for module in (model, hand):
        module(randn(*IMAGES)).square().sum().backward()
    assert_equal(model(randn(*IMAGES)), hand(randn(*IMAGES)))
    for parameter, expected in zip(model.parameters(), hand.parameters(), strict=True):
        assert_equal(parameter.grad, expected.grad)


def test_state_dict_keeps_keys_values_and_order():
    model, twin = tiny_model(), tiny_model()
    quantize_(model, everything(activation_bits=3))
    model(randn(*IMAGES))
    assert list(model.state_dict()) == list(twin.state_dict())
    assert_equal(dict(model.state_dict()), dict(twin.state_dict()))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in twin.named_parameters()]
    assert [name for name, _ in model.named_modules()] == [name for name, _ in twin.named_modules()]
    assert list(model.named_buffers()) == []


def test_checkpoints_load_strictly_in_both_directions_without_the_package(tmp_path):
    model = tiny_model()
    quantize_(model, everything(activation_bits=3))
    torch.save(model.state_dict(), tmp_path / "quantized.pt")
    script = """
import sys, torch
from torch import nn
layers = dict(stem=nn.Conv2d(1, 4, 3), relu=nn.ReLU(), conv=nn.Conv2d(4, 8, 3, stride=2), flat=nn.Flatten(),
              hidden=nn.Linear(32, 16), act=nn.ReLU(), head=nn.Linear(16, 3))
model = nn.Sequential()
for name, layer in layers.items():
    model.add_module(name, layer)
print(model.load_state_dict(torch.load(sys.argv[1], weights_only=True), strict=True))
torch.save(model.state_dict(), sys.argv[2])
assert not any(name.startswith("lightning") for name in sys.modules)
"""
    assert run_python(script, tmp_path / "quantized.pt", tmp_path / "float.pt") == "<All keys matched successfully>"
    back = torch.load(tmp_path / "float.pt", weights_only=True)
    assert_equal(dict(back), dict(tiny_model().state_dict()))
    other = tiny_model(seed=1)
    quantize_(other, everything())
    assert str(other.load_state_dict(back, strict=True)) == "<All keys matched successfully>"
    assert_equal(other(randn(*IMAGES)), hand_quantized(tiny_model(), TINY_WEIGHTS)(randn(*IMAGES)))


def test_optimizer_made_before_trains_and_its_state_fits_a_float_model():
    model, twin = tiny_model(), tiny_model()
    optimizer = torch.optim.Adam(model.parameters())
    quantize_(model, everything())
    model(randn(*IMAGES)).square().sum().backward()
    optimizer.step()
    for parameter, before in zip(model.parameters(), twin.parameters(), strict=True):
        assert not torch.equal(parameter, before)
    torch.optim.Adam(twin.parameters()).load_state_dict(optimizer.state_dict())


def test_reference_from_a_python_list_is_the_quantized_layer():
    model = tiny_model()
    kept = [model.stem, model.conv]
    quantize_(model, everything())
    assert kept[0] is model.stem
    hand = hand_quantized(tiny_model(), TINY_WEIGHTS)
    assert_equal(kept[0](randn(*IMAGES)), hand.stem(randn(*IMAGES)))


def test_layer_used_twice_in_one_forward_gathers_both_gradients():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    model, hand = Twice(), hand_quantized(Twice(), {"layer.weight": balanced})
    quantize_(model, everything())
    for module in (model, hand):
        module(randn(3, 4)).square().sum().backward()
    assert_equal(model.layer.weight.grad, hand.layer.weight.grad)
    assert_equal(model(randn(3, 4)), hand(randn(3, 4)))


def test_tied_weights_stay_tied_and_gather_both_gradients():
    model, _ = build("tied")
    hand = hand_quantized(build("tied")[0], {"embedding.weight": balanced})
    quantize_(model, everything(include=["*", "embedding"]))
    tokens = torch.tensor([[1, 2], [3, 3]])
    assert_equal(model(tokens), hand(tokens))
    for module in (model, hand):
        module(tokens).square().sum().backward()
    assert model.decoder.weight is model.embedding.weight
    assert_equal(model.embedding.weight.grad, hand.embedding.weight.grad)


def test_hooks_registered_before_and_while_quantized_fire():
    model, calls = tiny_model(), []
    model.stem.register_forward_hook(lambda *_: calls.append("forward"))
    model.stem.register_forward_pre_hook(lambda *_: calls.append("pre"))
    model.hidden.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.stem.weight.register_hook(lambda _: calls.append("weight"))
    quantize_(model, everything())
    model.head.register_forward_hook(lambda *_: calls.append("late"))
    model(randn(*IMAGES)).sum().backward()
    assert calls == ["pre", "forward", "late", "backward", "weight"]
    unquantize_(model)
    model(randn(*IMAGES))
    assert calls[5:] == ["pre", "forward", "late"]


def test_classes_names_and_printed_model_stay():
    model, twin = tiny_model(), tiny_model()
    quantize_(model, everything())
    assert repr(model) == repr(twin)
    for module, plain in zip(model.modules(), twin.modules(), strict=True):
        assert isinstance(module, type(plain))
        assert (type(module).__name__, type(module).__module__) == (type(plain).__name__, type(plain).__module__)
        assert torch.fx.Tracer().is_leaf_module(module, "") == torch.fx.Tracer().is_leaf_module(plain, "")


def test_lightnings_summary_stays():
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.model_summary import ModelSummary

    class Wrapped(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = tiny_model()
            self.example_input_array = torch.zeros(IMAGES)

        def forward(self, x):
            return self.net(x)

    model = Wrapped()
    before = str(ModelSummary(model, max_depth=-1))
    quantize_(model, everything(activation_bits=2))
    assert str(ModelSummary(model, max_depth=-1)) == before


def test_module_converted_to_another_type_stays_quantized():
    model = tiny_model()
    quantize_(model, everything())
    model.double()
    hand = hand_quantized(tiny_model().double(), TINY_WEIGHTS)
    x = randn(*IMAGES, dtype=torch.float64)
    assert_equal(model(x), hand(x))


# --- Under the tools of torch ----------------------------------------------------------------------------------------


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(model, steps, forward=None):
    """Losses of a few steps with updates of ranges, and the weights they end at."""
    forward = model if forward is None else forward
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = forward(randn(*IMAGES, seed=step)).square().mean()
        loss.backward()
        optimizer.step()
        update_ranges_(activation_quantizers(model))
        losses.append(loss.detach())
    return losses, [parameter.detach() for parameter in model.parameters()]


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_training_is_one_graph_and_equals_eager(backend):
    model, reference = tiny_model(), tiny_model()
    for module in (model, reference):
        quantize_(module, everything(BalancedQuantizer(3), activation_bits=3))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    actual, expected = train(model, 5, compiled), train(reference, 5)
    assert counter.frame_count == 1
    # The joint graph of aot_eager may add gradients in another order: float32 rounding.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert_equal(actual[0][0], expected[0][0])
    torch.testing.assert_close(
        [quantizer.range for quantizer in activation_quantizers(model)],
        [quantizer.range for quantizer in activation_quantizers(reference)],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "Module.compile"])
def test_model_compiled_and_run_before_is_quantized_afterwards(in_place):
    model, hand = tiny_model(), hand_quantized(tiny_model(), TINY_WEIGHTS)
    x = randn(*IMAGES)
    if in_place:
        model.compile(backend="eager")
        forward = model
    else:
        forward = torch.compile(model, backend="eager")
    assert_equal(forward(x), tiny_model()(x))
    quantize_(model, everything())
    assert_equal(forward(x), hand(x))
    unquantize_(model)
    assert_equal(forward(x), tiny_model()(x))


@pytest.mark.usefixtures("dynamo")
def test_compiled_model_follows_the_schedule():
    model = tiny_model()
    quantize_(model, everything())
    schedule = next(state.schedule for _, _, state in quantized_layers(model))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    for blend in (0.0, 0.25, 0.5, 0.75, 1.0):
        schedule.set_blend(blend)
        assert_equal(compiled(randn(*IMAGES)), model(randn(*IMAGES)))
    assert counter.frame_count == 3  # float, blend, quantized


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.ConvTranspose1d(3, 4, 3), lambda: randn(2, 3, 5)),
        (lambda: nn.Embedding(9, 4, padding_idx=0), lambda: torch.tensor([0, 3, 8])),
        (lambda: Own(6, 4), lambda: randn(2, 6)),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), lambda: randn(2, 6)),
        (lambda: nn.utils.parametrizations.weight_norm(Own(6, 4)), lambda: randn(2, 6)),
    ],
    ids=["transposed", "embedding", "subclass", "weight_norm", "weight_norm, subclass"],
)
def test_compiled_layer_equals_eager_layer(layer, x):
    torch.manual_seed(0)
    module = layer()
    quantize_(module, config_for(module))
    module.eval()
    compiled = torch.compile(module, backend="eager")
    for _ in range(2):
        assert_equal(compiled(x()), module(x()))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)


@pytest.mark.usefixtures("dynamo")
def test_exported_model_equals_the_evaluated_one():
    model = tiny_model()
    quantize_(model, everything(activation_bits=3))
    train(model, 2)
    model.eval()
    exported = torch.export.export(model, (randn(*IMAGES),)).module()
    assert_equal(exported(randn(*IMAGES, seed=3)), model(randn(*IMAGES, seed=3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_model_equals_the_evaluated_one():
    model = tiny_model()
    quantize_(model, everything(activation_bits=3))
    train(model, 2)
    model.eval()
    traced = torch.jit.trace(model, (randn(*IMAGES),))
    assert_equal(traced(randn(*IMAGES, seed=3)), model(randn(*IMAGES, seed=3)))


def test_functional_call_runs_on_the_weights_given():
    model = tiny_model()
    quantize_(model, everything())
    given = dict(tiny_model(seed=1).named_parameters())
    output = torch.func.functional_call(model, given, (randn(*IMAGES),))
    assert_equal(output, hand_quantized(tiny_model(seed=1), TINY_WEIGHTS)(randn(*IMAGES)))
    assert_equal(model(randn(*IMAGES)), hand_quantized(tiny_model(), TINY_WEIGHTS)(randn(*IMAGES)))


@pytest.mark.parametrize("activation_bits", [None, 3])
def test_gradients_per_sample_equal_those_of_single_samples(activation_bits):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    quantize_(model, everything(activation_bits=activation_bits))
    model(randn(8, 4))
    update_ranges_(activation_quantizers(model))
    model.eval()  # as with batch norm: functional transforms refuse a layer that observes its batches
    x = randn(3, 4, seed=1)

    def loss(parameters, sample):
        return torch.func.functional_call(model, parameters, (sample[None],)).square().sum()

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    actual = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, sample in enumerate(x):
        model.zero_grad()
        model(sample[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            # Batched matrix products round differently.
            torch.testing.assert_close(actual[name][index], parameter.grad, rtol=1e-5, atol=1e-6)
