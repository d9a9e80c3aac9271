"""Every method file builds its callback, and what is then computed has no more values than the widths allow."""

import pytest
import torch
import yaml
from torch import nn
from torch.testing import assert_close

import lightning_balq
from recipes.compare.cells import FLOAT, FOLDER, Width, methods
from tests.recipes.tiny import RandomImages, quiet_trainer, tiny_classifier

METHODS = {name: method for name, method in methods().items() if name != FLOAT}
EVERY = (1, 2, 3, 4, 5, 6, 7, 8)
ROWS = {
    # name: class, what a weight is quantized with, widths of weights, widths of activations
    "balanced_learned": ("BalancedQuantization", "LearnedBalancedQuantizer", EVERY, (*EVERY, None)),
    "balanced_least_squares": ("BalancedQuantization", "BalancedQuantizer", EVERY, (*EVERY, None)),
    "balanced_lsq": ("BalancedQuantization", "LearnedBalancedQuantizer", EVERY, EVERY),
    "balanced_mean": ("BalancedQuantization", "BalancedQuantizer", EVERY, (*EVERY, None)),
    "balanced_median": ("BalancedQuantization", "BalancedQuantizer", EVERY, (*EVERY, None)),
    "balanced_paper": ("BalancedQuantization", "BalancedQuantizer", EVERY, (*EVERY, None)),
    "bwn": ("UniformQuantization", "UniformQuantizer", (1,), (None,)),
    "dorefa": ("DoReFaQuantization", "DoReFaQuantizer", EVERY, (*EVERY, None)),
    "lsq": ("LSQQuantization", "LSQQuantizer", EVERY[1:], (*EVERY, None)),
    "pact": ("DoReFaQuantization", "DoReFaQuantizer", EVERY, EVERY),
    "uniform_least_squares": ("UniformQuantization", "UniformQuantizer", EVERY, (*EVERY, None)),
    "uniform_max": ("UniformQuantization", "UniformQuantizer", EVERY, (*EVERY, None)),
    "uniform_mean": ("UniformQuantization", "UniformQuantizer", EVERY, (*EVERY, None)),
    "xnor": ("UniformQuantization", "UniformQuantizer", (1,), (1,)),
}
CASES = [
    (name, Width(*widths))
    for name, (*_, weights, activations) in ROWS.items()
    for widths in dict.fromkeys([(weights[0], activations[0]), (weights[min(1, len(weights) - 1)], activations[-1])])
]


def settings(name):
    return yaml.safe_load(METHODS[name].file.read_text())["quantization"]


def trained(name, width, root, relu=True):
    """A small network after one step."""
    options = settings(name)
    kind = getattr(lightning_balq, options["class_path"])
    bits = {"weight_bits": width.weight_bits, "activation_bits": width.activation_bits}
    callback = kind(**bits, **options["init_args"], verbose=0)
    model = tiny_classifier()
    for child, module in list(model.network.named_children()):
        if isinstance(module, nn.ReLU) and not relu:
            setattr(model.network, child, nn.Identity())
    quiet_trainer(root, callbacks=[callback], fast_dev_run=True).fit(model, RandomImages())
    return model, callback


def convolved(model, monkeypatch):
    """Input and weight of every convolution."""
    seen = []
    forward = nn.Conv2d._conv_forward

    def watched(self, x, weight, bias):
        seen.append((x, weight))
        return forward(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", watched)
    model.train()  # after one step the running statistics of batch norm are not yet those of the data
    with torch.no_grad():
        model(RandomImages().images(0)[0])
    return seen


def test_there_is_a_row_for_each_file():
    assert sorted(METHODS) == sorted(ROWS) == sorted(file.stem for file in FOLDER.iterdir())
    assert len(METHODS) == 14


@pytest.mark.parametrize("name", ROWS)
def test_a_file_says_what_it_is_and_is_made_for_its_widths(name):
    kind, _, weights, activations = ROWS[name]
    text = METHODS[name].file.read_text()
    for part in ("# Source: ", "# Differs", f"--config recipes/methods/{name}.yaml"):
        assert part in text
    assert (METHODS[name].weight_bits, METHODS[name].activation_bits) == (weights, activations)
    assert settings(name)["class_path"] == kind
    # What is not said would be left to the recipe, whose own method may differ in it.
    said = {"activation_range"} | ({"scale"} & set(dir(getattr(lightning_balq, kind))))
    assert said <= set(settings(name)["init_args"])


@pytest.mark.parametrize(("name", "width"), CASES, ids=lambda value: str(value))
def test_what_is_convolved_has_the_promised_number_of_values(name, width, tmp_path, monkeypatch):
    model, callback = trained(name, width, tmp_path)
    (quantizers,) = ({type(q).__name__ for layer in callback.plan(model).quantized for q in layer.quantizers.values()},)
    assert quantizers == {ROWS[name][1]}
    (inputs, first), *quantized = [
        (x.unique().numel(), max(channel.unique().numel() for channel in weight))
        for x, weight in convolved(model, monkeypatch)
    ]
    assert inputs > 256 and first == 9  # the first layer is float
    assert len(quantized) == 2
    for inputs, weights in quantized:
        assert 2 <= weights <= 2**width.weight_bits
        if width.activation_bits is None:
            assert inputs > 256
        else:
            assert 2 <= inputs <= 2**width.activation_bits


def test_xnor_multiplies_signs_with_signs_and_the_mean_magnitude_of_a_channel(tmp_path, monkeypatch):
    model, _ = trained("xnor", Width(1, 1), tmp_path, relu=False)
    _, (x, weight), _ = convolved(model, monkeypatch)
    assert x.unique().tolist() == [-1.0, 1.0]
    plain = model.network[3].weight.detach()
    assert_close(weight, plain.sign() * plain.abs().mean((1, 2, 3), keepdim=True))
