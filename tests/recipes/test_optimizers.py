import pytest
import torch

from recipes.models.networks import build
from recipes.models.optimizers import optimizer_factory, parameter_groups


@pytest.mark.parametrize("network", ["resnet18", "googlenet_auxiliary", "alexnet"])
def test_batch_norm_and_biases_do_not_decay_unless_asked_to(network):
    model = build(network, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, others = parameter_groups(model, 0.1, decay_norm_and_bias=False)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    found = [{names[id(parameter)] for parameter in group["params"]} for group in (decaying, others)]
    weights = {
        f"{name}.weight" for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    }  # fmt: skip
    assert found == [weights, set(names.values()) - weights]
    (everything,) = parameter_groups(model, 0.1, decay_norm_and_bias=True)
    assert everything["weight_decay"] == 0.1 and len(everything["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    model = build("resnet20", 10)
    model.requires_grad_(False).fc.requires_grad_()
    assert [len(group["params"]) for group in parameter_groups(model, 0.1, decay_norm_and_bias=False)] == [1, 1]
    model.fc.bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1, decay_norm_and_bias=False)] == [1]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"lr": 0.5, "momentum": 0.8, "nesterov": False}),
        ("adam", torch.optim.Adam, {"lr": 0.5, "betas": (0.8, 0.999)}),
        ("adamw", torch.optim.AdamW, {"lr": 0.5, "betas": (0.8, 0.999)}),
    ],
)
def test_an_optimizer_has_what_was_asked_for(name, kind, expected):
    optimizer = optimizer_factory(name, 0.5, 0.8, nesterov=False)(build("resnet20", 10).parameters())
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in expected} == expected


def test_sgd_looks_ahead():
    optimizer = optimizer_factory("sgd", 0.5, 0.8, nesterov=True)(build("resnet20", 10).parameters())
    assert optimizer.defaults["nesterov"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rmsprop", 0.1, 0.9, False), "`optimizer` must be one of sgd, adam, adamw, got 'rmsprop'"),
        (("sgd", -0.1, 0.9, False), "`learning_rate` must be 0 or more, got -0.1"),
        (("sgd", 0.1, 1.0, False), "`momentum` must be at least 0 and less than 1, got 1.0"),
        (("adam", 0.1, 0.9, True), "`nesterov` is for `optimizer: sgd` with momentum, got adam"),
        (("sgd", 0.1, 0.0, True), "`nesterov` is for `optimizer: sgd` with momentum, got sgd with momentum 0.0"),
    ],
)
def test_options_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer_factory(*arguments)
