"""The plan selects what the patterns say, explains what it leaves float, and counts bytes as one does by hand."""

import pytest
import torch
from torch import nn
from torchmetrics import Metric

from lightning_balq.nn import BalancedQuantizer, DoReFaQuantizer, QuantizationConfig, UniformQuantizer, plan
from tests.helpers import everything, snapshot, tiny_model


class Block(nn.Sequential):
    """A container with a type of its own."""


def nested():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(10, 4),
            "encoder": Block(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
            "teacher": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
            "conv": nn.Conv1d(4, 4, 3),
            "head": nn.Linear(4, 2),
        }
    )


def names(model, **options):
    return [layer.name for layer in plan(model, QuantizationConfig(**options)).quantized]


def reasons(model, **options):
    return {layer.name: layer.reason for layer in plan(model, QuantizationConfig(**options)).layers}


# --- Selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (["*"], ["encoder.0", "encoder.2", "teacher.0", "teacher.1", "conv", "head"]),
        (["encoder"], ["encoder.0", "encoder.2"]),
        (["encoder.*"], ["encoder.0", "encoder.2"]),
        (["encoder.?", "head"], ["encoder.0", "encoder.2", "head"]),
        (["*.[01]"], ["encoder.0", "teacher.0", "teacher.1"]),
        (["type:Linear"], ["encoder.0", "encoder.2", "teacher.0", "teacher.1", "head"]),
        (["type:Conv*"], ["conv"]),
        (["type:Block"], ["encoder.0", "encoder.2"]),
        (["type:Sequential"], ["encoder.0", "encoder.2", "teacher.0", "teacher.1"]),
        (["embed"], ["embed"]),
        (["type:Embedding"], ["embed"]),
        (["*", "type:Embedding"], ["embed", "encoder.0", "encoder.2", "teacher.0", "teacher.1", "conv", "head"]),
    ],
    ids=str,
)
def test_include_selects_by_name_container_and_type(include, expected):
    assert names(nested(), include=include, quantize_first_last=True) == expected


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (["teacher"], ["encoder.0", "encoder.2", "conv", "head"]),
        (["type:Conv1d", "*.0"], ["encoder.2", "teacher.1", "head"]),
        (["type:Block"], ["teacher.0", "teacher.1", "conv", "head"]),
    ],
    ids=str,
)
def test_exclude_takes_layers_and_wins_over_include(exclude, expected):
    assert names(nested(), exclude=exclude, quantize_first_last=True) == expected
    assert names(nested(), include=["*", "teacher.*"], exclude=["teacher.0", *exclude[1:]], quantize_first_last=True)


def test_patterns_are_case_sensitive():
    with pytest.raises(ValueError, match="'type:linear', which matches none"):
        plan(nested(), everything(include=["type:linear"]))


def test_subclasses_are_found_by_the_names_of_their_bases():
    class Mine(nn.Linear):
        pass

    assert names(nn.Sequential(Mine(2, 2)), include=["type:Linear"], quantize_first_last=True) == ["0"]
    assert names(nn.Sequential(Mine(2, 2)), include=["type:Mine"], quantize_first_last=True) == ["0"]


def test_root_that_is_a_layer_has_the_empty_name():
    decided = plan(nn.Linear(3, 2), everything())
    assert [layer.name for layer in decided.layers] == [""]
    assert "(the model)" in str(decided)


def test_plan_does_not_touch_the_model():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), tiny_model())
    before = snapshot(model)
    str(plan(model, everything(activation_bits=2)))
    assert snapshot(model) == before


# --- First and last layer --------------------------------------------------------------------------------------------


def test_first_and_last_layer_stay_float_by_default():
    assert reasons(tiny_model()) == {"stem": "first layer", "conv": "", "hidden": "", "head": "last layer"}


def test_embedding_counts_as_first_layer_whether_asked_for_or_not():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert names(model) == ["1", "2"]
    assert "on request" in reasons(model)["0"]
    assert names(model, include=["*", "type:Embedding"]) == ["1", "2"]
    assert reasons(model, include=["*", "type:Embedding"])["0"] == "first layer"


def test_first_and_last_are_those_of_the_layers_selected():
    # An excluded teacher at the front does not make the student's first layer an inner one.
    model = nn.ModuleDict({"teacher": tiny_model(), "student": tiny_model()})
    found = reasons(model, exclude=["teacher"])
    assert found["student.stem"] == "first layer"
    assert found["student.head"] == "last layer"
    assert names(model, exclude=["teacher"]) == ["student.conv", "student.hidden"]


@pytest.mark.parametrize(
    "options",
    [{"include": ["*", "stem"]}, {"weight_bits_by_layer": {"stem": 8}}],
    ids=["include", "weight_bits_by_layer"],
)
def test_exact_name_overrides_the_first_layer_rule(options):
    assert names(tiny_model(), **options) == ["stem", "conv", "hidden"]


def test_glob_does_not_override_the_first_layer_rule():
    assert names(tiny_model(), include=["s*", "conv", "h*"]) == ["conv", "hidden"]


def test_quantize_first_last_includes_both():
    assert names(tiny_model(), quantize_first_last=True) == ["stem", "conv", "hidden", "head"]


# --- What cannot be quantized ----------------------------------------------------------------------------------------


def test_layers_inside_metrics_are_no_candidates():
    class Perceptual(Metric):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

        def update(self, x):
            pass

        def compute(self):
            return torch.tensor(0.0)

    model = nn.ModuleDict({"a": nn.Linear(4, 4), "metric": Perceptual(), "b": nn.Linear(4, 4)})
    assert list(reasons(model, quantize_first_last=True)) == ["a", "b"]


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_layer_is_quantized_and_is_neither_first_nor_last(recurrent):
    model = nn.ModuleDict({"rnn": recurrent(4, 4), "a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 2)})
    assert reasons(model) == {"rnn": "", "a": "first layer", "b": "", "c": "last layer"}


def test_activation_bits_of_an_embedding_are_refused():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"`activation_bits_by_layer` sets the bits of '0', but .* integer"):
        plan(model, everything(include=["*", "type:Embedding"], activation_bits_by_layer={"0": 2}))


def test_embedding_that_renormalises_stays_float():
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Linear(4, 4))
    found = reasons(model, include=["*", "type:Embedding"], quantize_first_last=True)
    assert found == {"0": "max_norm rewrites the table in every forward", "1": ""}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weight: weight.to(torch.int8), "`weight` is int8"),
        (lambda weight: weight.to(torch.complex64), "`weight` is complex64"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "`weight` is float8_e4m3fn"),
        (lambda weight: weight.to_sparse(), "`weight` is sparse"),
    ],
    ids=["codes", "complex", "8-bit float", "sparse"],
)
def test_weight_that_can_have_no_codes_stays_as_it_is(change, reason):
    model = tiny_model()
    model.hidden.weight = nn.Parameter(change(model.hidden.weight.detach()), requires_grad=False)
    decided = plan(model, everything())
    assert {layer.name: layer.reason for layer in decided.layers if layer.reason} == {"hidden": reason}
    assert decided.layers[2].quantized_bytes == model.hidden.weight.numel() * model.hidden.weight.element_size()


def test_attention_is_one_layer_and_its_out_proj_none_of_its_own():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4, vdim=6))
    decided = plan(model, everything())
    assert [layer.name for layer in decided.layers] == ["0", "1"]
    assert [layer.shapes for layer in decided.layers] == [((24, 8), (8, 8)), ((8, 8), (8, 4), (8, 6), (8, 8))]


def test_layer_that_a_subclass_of_attention_adds_is_listed():
    class Gated(nn.MultiheadAttention):
        def __init__(self):
            super().__init__(8, 2)
            self.gate = nn.Linear(8, 8)

    assert [layer.name for layer in plan(nn.Sequential(Gated()), everything()).layers] == ["0", "0.gate"]


def test_module_used_under_two_names_is_one_layer():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(4, 4)})
    assert list(reasons(model, quantize_first_last=True)) == ["a", "c"]


# --- Bits ------------------------------------------------------------------------------------------------------------


def test_bits_follow_patterns_and_defaults():
    config = everything(
        activation_bits=4,
        weight_bits_by_layer={"stem": 8, "h*": 2},
        activation_bits_by_layer={"type:Conv2d": 6},
    )
    decided = plan(tiny_model(), config)
    assert [(layer.weight_bits, layer.activation_bits) for layer in decided.layers] == [(8, 6), (4, 6), (2, 4), (2, 4)]


def test_activation_bits_of_one_layer_leave_the_others_float():
    decided = plan(tiny_model(), everything(activation_bits_by_layer={"conv": 3}))
    assert [layer.activation_bits for layer in decided.layers] == [None, 3, None, None]


def test_embedding_has_no_activation_bits():
    decided = plan(nn.Embedding(9, 4), everything(activation_bits=4, include=["type:Embedding"]))
    assert decided.layers[0].activation_bits is None


def test_two_patterns_may_agree_on_the_bits_of_a_layer():
    decided = plan(tiny_model(), everything(weight_bits_by_layer={"conv": 2, "c*": 2}))
    assert [layer.weight_bits for layer in decided.layers] == [4, 2, 4, 4]


# --- Errors ----------------------------------------------------------------------------------------------------------

ERRORS = {
    "include matches nothing": ({"include": ["hiden"]}, r"`include` .* 'hiden', which matches none .*near: 'hidden'"),
    "exclude matches nothing": ({"exclude": ["tail"]}, r"`exclude` holds the pattern 'tail', which matches none"),
    "type matches nothing": ({"include": ["type:Conv"]}, r"`include` .* 'type:Conv', .*near: 'type:Conv2d'"),
    "weight bits match nothing": ({"weight_bits_by_layer": {"heads": 2}}, r"`weight_bits_by_layer` .*near: 'head'"),
    "activation bits match nothing": ({"activation_bits_by_layer": {"stm": 2}}, r"`activation_bits_by_.*near: 'stem'"),
    "include and exclude": (
        {"include": ["*", "conv"], "exclude": ["type:Conv2d"], "quantize_first_last": True},
        r"`include` asks for 'conv', but `exclude` takes all it matches: 'conv' is excluded by 'type:Conv2d'",
    ),
    "several weight bits": (
        {"weight_bits_by_layer": {"conv": 2, "type:Conv2d": 4}},
        r"`weight_bits_by_layer` gives layer 'conv' several widths: \{'conv': 2, 'type:Conv2d': 4\}",
    ),
    "several activation bits": (
        {"activation_bits_by_layer": {"c*": 2, "conv": 4}},
        r"`activation_bits_by_layer` gives layer 'conv' several widths",
    ),
    "bits for an excluded layer": (
        {"weight_bits_by_layer": {"conv": 2}, "exclude": ["conv"]},
        r"`weight_bits_by_layer` sets the bits of 'conv', but .* stays float: 'conv' \(excluded by 'conv'\)",
    ),
    "activation bits for the first layer": (
        {"activation_bits_by_layer": {"stem": 2}},
        r"`activation_bits_by_layer` sets the bits of 'stem', but .*'stem' \(first layer\)",
    ),
    "everything excluded": ({"exclude": ["*"]}, r"its 4 candidates all stay float: 'stem' \(excluded by '\*'\)"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_pattern_that_does_not_fit_the_model_is_refused(kind):
    options, message = ERRORS[kind]
    with pytest.raises(ValueError, match=message):
        plan(tiny_model(), QuantizationConfig(**options))


def test_model_without_a_layer_to_quantize_is_refused():
    with pytest.raises(ValueError, match="no layer that can be quantized: expected at least one of Linear, Conv1d"):
        plan(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), QuantizationConfig())


def test_model_of_which_only_ends_are_left_is_refused_with_the_way_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'0' \(first layer\), '1' \(last layer\).*`quantize_first_last=True`"):
        plan(model, QuantizationConfig())


def test_message_about_many_layers_lists_six_and_counts_the_others():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
    with pytest.raises(ValueError, match=r"'5' \(excluded by '\*'\) and 3 more"):
        plan(model, QuantizationConfig(exclude=["*"]))


# --- Bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_are_codes_and_one_float32_scale(bits):
    decided = plan(nn.Linear(5, 3), everything(BalancedQuantizer(bits)))
    (layer,) = decided.layers
    codes = {1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12, 7: 14, 8: 15}[bits]  # 15 codes, rounded up to whole bytes
    assert (layer.weights, layer.float_bytes, layer.quantized_bytes) == (15, 60, codes + 4)
    assert decided.other_bytes == 12  # the bias


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (lambda: nn.Linear(5, 3), 3),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), 6),
        (lambda: nn.ConvTranspose2d(4, 6, 3), 6),
        (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), 6),
        (lambda: nn.LazyLinear(3), 0),
    ],
    ids=["linear", "conv", "transposed", "transposed in groups", "lazy"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_one_scale_per_output_channel(layer, channels):
    module = layer()
    (decided,) = plan(module, everything(UniformQuantizer(8, granularity="per_channel"))).layers
    assert decided.quantized_bytes == decided.weights + 4 * channels
    assert decided.weights == (module.weight.numel() if channels else 0)


def test_dorefa_has_one_scale_per_weight():
    (decided,) = plan(nn.Linear(5, 3), everything(DoReFaQuantizer(8))).layers
    assert decided.quantized_bytes == 15 + 4


def test_attention_has_scales_for_each_projection():
    (decided,) = plan(nn.MultiheadAttention(8, 2), everything(BalancedQuantizer(4, granularity="per_channel"))).layers
    assert decided.weights == 24 * 8 + 8 * 8
    assert decided.quantized_bytes == (24 * 8 + 8 * 8) // 2 + 4 * (24 + 8)


def test_layer_that_stays_float_keeps_its_bytes():
    layers = plan(tiny_model(), QuantizationConfig()).layers
    assert layers[0].float_bytes == layers[0].quantized_bytes == 4 * 36
    assert layers[1].quantized_bytes == 4 * 8 * 9 // 2 + 4


def test_tied_weight_is_counted_once():
    embedding, decoder = nn.Embedding(10, 4), nn.Linear(4, 10)
    decoder.weight = embedding.weight
    decided = plan(nn.ModuleDict({"embedding": embedding, "decoder": decoder}), everything(include=["*", "embedding"]))
    assert [(layer.weights, layer.float_bytes, layer.quantized_bytes) for layer in decided.layers] == [
        (40, 160, 20 + 4),
        (0, 0, 0),
    ]
    assert decided.layers[1].shapes == ((10, 4),)
    assert decided.other_bytes == 40


def test_bytes_of_a_half_precision_model_are_those_it_has():
    (decided,) = plan(nn.Linear(8, 4).to(torch.bfloat16), everything()).layers
    assert (decided.float_bytes, decided.quantized_bytes) == (64, 16 + 4)


def test_parametrized_weight_counts_as_the_weight_it_makes():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.BatchNorm1d(4))
    decided = plan(model, everything())
    assert [(layer.name, layer.shapes, layer.weights, layer.float_bytes) for layer in decided.layers] == [
        ("0", ((4, 6),), 24, 96)
    ]
    assert decided.other_bytes == 4 * (4 + 4 + 4)  # bias of the layer, weight and bias of the norm


def test_pruned_weight_counts_once():
    layer = nn.Linear(6, 4)
    nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    decided = plan(layer, everything())
    assert (decided.layers[0].weights, decided.layers[0].float_bytes, decided.other_bytes) == (24, 96, 16)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_layer_has_no_shape_yet():
    decided = plan(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyLinear(2)), everything())
    assert [layer.shapes for layer in decided.layers] == [(), ()]
    assert decided.other_bytes == 0
    assert "not known yet" in str(decided)


# --- Wrapped models --------------------------------------------------------------------------------------------------


def compiled(module):
    return torch.compile(module, backend="eager")


def test_compiled_model_has_the_layers_of_the_plain_one():
    assert plan(compiled(tiny_model()), QuantizationConfig()) == plan(tiny_model(), QuantizationConfig())


def test_compiled_parts_keep_their_names_and_types():
    def parts(wrap):
        return nn.ModuleDict(
            {
                "block": wrap(Block(nn.Linear(4, 4), nn.Linear(4, 4))),
                "attn": wrap(nn.MultiheadAttention(4, 2)),
                "head": wrap(nn.Linear(4, 4)),
            }
        )

    for options in ({}, {"include": ["type:Block", "head"]}, {"include": ["attn"]}):
        assert names(parts(compiled), quantize_first_last=True, **options) == names(
            parts(lambda module: module), quantize_first_last=True, **options
        )
