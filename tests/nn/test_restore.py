"""A float model and a checkpoint give the quantized network again, without any option being said twice."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_balq import BalancedQuantizer, LSQQuantizer, UniformQuantizer, quantize_, unquantize_
from lightning_balq.nn import (
    activation_quantizers,
    quantization_state,
    quantized_layers,
    restore_,
    settle_ranges_,
    update_ranges_,
)
from lightning_balq.nn.saved_layers import float_reasons
from tests.helpers import assert_equal, everything, randn


class Net(nn.Module):
    """Has the two hooks of a LightningModule."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Linear(4, 5)
        self.rnn = nn.GRU(5, 6)
        self.b = nn.Linear(6, 4)
        self.mine = 0

    def forward(self, x):
        return self.b(self.rnn(self.a(x).relu())[0])

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 7

    def on_load_checkpoint(self, checkpoint):
        self.mine = checkpoint["mine"]


def trained(config, model=None):
    model = Net() if model is None else model
    quantize_(model, config)
    model(randn(3, 2, 4)).sum().backward()
    update_ranges_(activation_quantizers(model))
    settle_ranges_(activation_quantizers(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    return model.eval()


def saved(model, tmp_path):
    checkpoint = {"state_dict": model.state_dict()}
    if hasattr(model, "on_save_checkpoint"):
        model.on_save_checkpoint(checkpoint)
    else:
        checkpoint["lightning_balq"] = quantization_state(model)
    torch.save(checkpoint, tmp_path / "c.ckpt")
    return torch.load(tmp_path / "c.ckpt", weights_only=True)


CONFIGS = {
    "weights": everything(BalancedQuantizer(2)),
    "observed": everything(BalancedQuantizer(2, granularity="per_channel"), activation_bits=3),
    "learned": everything(LSQQuantizer(3), activation_bits=3, activation_range="lsq"),
    "pact": everything(UniformQuantizer(3), activation_bits=2, activation_range="pact"),
    "parts": everything(BalancedQuantizer(2), recurrent=UniformQuantizer(4), exclude=["*.state"], activation_bits=3),
    "some": everything(BalancedQuantizer(2), exclude=["a"], weight_bits_by_layer={"b": 7}),
}


@torch.no_grad()
def output(model):
    return model(randn(3, 2, 4, seed=5))


@pytest.mark.parametrize("name", CONFIGS)
def test_restored_model_computes_what_was_saved(name, tmp_path):
    model, other = trained(CONFIGS[name]), Net(seed=1).eval()
    restore_(other, saved(model, tmp_path))
    assert_equal(output(other), output(model))
    assert [state.settings() for _, _, state in quantized_layers(other)] == [
        state.settings() for _, _, state in quantized_layers(model)
    ]
    assert float_reasons(other) == float_reasons(model)
    assert other.mine == 7


@pytest.mark.parametrize("name", ["observed", "learned"])
def test_model_without_hooks_is_restored(name, tmp_path):
    model = trained(CONFIGS[name], nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    other = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    restore_(other, saved(model, tmp_path))
    assert_equal(output(other), output(model))


def test_compiled_model_is_restored_into_a_plain_one(tmp_path):
    model = trained(CONFIGS["observed"])
    model.a = torch.compile(model.a, backend="eager")
    other = Net(seed=1).eval()
    restore_(other, saved(model, tmp_path))
    assert_equal(output(other), output(model))


def test_pruned_model_is_restored(tmp_path):
    def build(seed):
        model = Net(seed)
        prune.random_unstructured(model.a, "weight", 0.5)
        return model

    model, other = trained(CONFIGS["observed"], build(0)), build(1).eval()
    restore_(other, saved(model, tmp_path))
    assert_equal(output(other), output(model))


def test_layers_quantized_in_two_calls_are_restored(tmp_path):
    model = Net()
    quantize_(model, everything(UniformQuantizer(2), include=["a"]))
    trained(everything(BalancedQuantizer(5), include=["b"], activation_bits=3), model)
    other = Net(seed=1).eval()
    restore_(other, saved(model, tmp_path))
    assert_equal(output(other), output(model))


def test_blend_is_restored(tmp_path):
    model, other = trained(CONFIGS["weights"]), Net(seed=1)
    next(state.schedule for _, _, state in quantized_layers(model)).set_blend(0.25)
    restore_(other, saved(model, tmp_path))
    assert {state.schedule.blend for _, _, state in quantized_layers(other)} == {0.25}


def lying(change):
    def apply(checkpoint):
        checkpoint["lightning_balq"].update(change)
        return checkpoint

    return apply


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: [], 'expected a checkpoint with a "state_dict"'),
        (lambda c: {"state_dict": c["state_dict"]}, "the checkpoint is that of a float model"),
        (lambda c: c | {"lightning_balq": 3}, "`lightning_balq` must be a dict with keys of type str, got 3"),
        (lying({"version": 2}), "holds version 2 of the state of lightning_balq, this is version 1: install"),
        (lying({"version": "x"}), r"`lightning_balq\['version'\]` must be a version"),
        (lying({"layers": {}}), "does not say how its layers are quantized, as one of an older lightning_balq"),
        (lying({"layers": []}), r"`lightning_balq\['layers'\]` must be a dict"),
        (lying({"layers": {"gone": {}}}), "the model has no layer 'gone', which is quantized in the checkpoint"),
        (lying({"layers": {"a": 3}}), "what the checkpoint says of layer 'a' cannot be understood"),
        (lying({"inputs": {"a": {"input": {}}}}), "must be a dict with the keys 'range', 'signed', 'batches'"),
        (lying({"inputs": {"a": 3}}), r"`lightning_balq\['inputs'\]\['a'\]` must be a dict"),
        (lambda c: c | {"state_dict": {}}, r"(?s)the checkpoint does not fit the model: .*Missing key"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_and_layers_stay_float(change, match, tmp_path):
    checkpoint, other = change(saved(trained(CONFIGS["observed"]), tmp_path)), Net(seed=1)
    with pytest.raises(ValueError, match=match):
        restore_(other, checkpoint)
    assert list(quantized_layers(other)) == []
    assert type(other.a) is nn.Linear


def test_quantized_model_is_refused(tmp_path):
    model = trained(CONFIGS["observed"])
    checkpoint = saved(model, tmp_path)
    with pytest.raises(ValueError, match="the model is quantized already; expected a float model"):
        restore_(model, checkpoint)
    unquantize_(model)
    restore_(model, checkpoint)
