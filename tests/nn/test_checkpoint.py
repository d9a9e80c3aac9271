"""Checkpoints of a quantized model stay checkpoints of the float model, and carry ranges and schedule beside it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_balq.nn import (
    LSQQuantizer,
    activation_quantizers,
    load_quantization_state,
    quantization_state,
    quantize_,
    quantized_layers,
    settle_ranges_,
    unquantize_,
    update_ranges_,
)
from tests.helpers import assert_equal, everything, randn, snapshot

HOOKS = ("on_save_checkpoint", "on_load_checkpoint")


class Net(nn.Module):
    """Has the two hooks of a LightningModule, and notes when they run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.calls = []

    def forward(self, x):
        return self.b(self.a(x).relu())

    def on_save_checkpoint(self, checkpoint):
        self.calls.append(("save", sorted(checkpoint)))
        checkpoint["mine"] = 1

    def on_load_checkpoint(self, checkpoint):
        self.calls.append(("load", sorted(checkpoint)))


def quantized(**options):
    model = Net()
    quantize_(model, everything(activation_bits=3, **options))
    return model


def trained(steps=2):
    model = quantized()
    for step in range(steps):
        model(randn(5, 4, seed=step))
        update_ranges_(activation_quantizers(model))
    return model


def save(model):
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def states(model):
    return [quantizer.state() for quantizer in activation_quantizers(model)]


def blend(model):
    return next(state.schedule.blend for _, _, state in quantized_layers(model))


def test_checkpoint_holds_ranges_and_blend_beside_the_float_state_dict():
    model = trained()
    checkpoint = save(model)
    assert list(checkpoint["state_dict"]) == list(Net().state_dict())
    saved = checkpoint["lightning_balq"]
    assert (saved["version"], saved["blend"]) == (1, 1.0)
    assert_equal([saved["inputs"][name]["input"] for name in ("a", "b")], states(model))


def test_checkpoint_loads_with_weights_only(tmp_path):
    checkpoint = save(trained())
    torch.save(checkpoint, tmp_path / "c.ckpt")
    loaded = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert_equal(loaded["lightning_balq"]["inputs"], checkpoint["lightning_balq"]["inputs"])


def test_loading_restores_ranges_and_schedule():
    source, target = trained(), quantized()
    next(state.schedule for _, _, state in quantized_layers(source)).set_blend(0.25)
    target.on_load_checkpoint(save(source))
    target.load_state_dict(source.state_dict())
    assert_equal(states(target), states(source))
    assert blend(target) == 0.25
    assert_equal(target.eval()(randn(5, 4)), source.eval()(randn(5, 4)))


def test_hooks_of_the_class_still_run_in_their_order():
    model = quantized()
    checkpoint = save(model)
    assert checkpoint["mine"] == 1
    model.on_load_checkpoint(checkpoint)
    assert model.calls == [("save", ["state_dict"]), ("load", ["lightning_balq", "mine", "state_dict"])]


def test_hook_set_on_the_instance_still_runs_and_state_is_saved():
    model = Net()
    model.on_save_checkpoint = lambda checkpoint: checkpoint.update(instance=True)
    model.later = 1
    own, keys = model.__dict__["on_save_checkpoint"], list(model.__dict__)
    quantize_(model, everything(activation_bits=3))
    checkpoint = save(model)
    assert checkpoint["instance"]
    assert "lightning_balq" in checkpoint
    unquantize_(model)
    assert model.__dict__["on_save_checkpoint"] is own
    assert list(model.__dict__) == keys


def test_float_checkpoint_leaves_ranges_and_schedule_alone():
    model = trained()
    before = states(model)
    model.on_load_checkpoint({"state_dict": Net().state_dict()})
    assert_equal(states(model), before)
    assert blend(model) == 1.0


def test_checkpoint_of_a_newer_version_is_refused():
    model = trained()
    checkpoint = save(model)
    checkpoint["lightning_balq"]["version"] = 2
    before = states(model)
    with pytest.raises(ValueError, match=r"holds version 2 of the state of lightning_balq, this is version 1: install"):
        model.on_load_checkpoint(checkpoint)
    assert_equal(states(model), before)


def test_state_of_layers_that_are_float_here_is_left_out():
    source, target = trained(), quantized(exclude=["a"])
    load_quantization_state(target, quantization_state(source))
    assert_equal(states(target), states(source)[1:])


def test_state_without_observed_ranges_holds_no_inputs():
    model = Net()
    quantize_(model, everything())
    assert quantization_state(model)["inputs"] == {}
    assert quantization_state(Net()) == {
        "version": 1,
        "blend": 1.0,
        "inputs": {},
        "layers": {},
        "float": {},
        "zeros": {},
    }


def test_state_is_independent_of_later_training():
    model = trained()
    state = quantization_state(model)
    before = copy.deepcopy(state)
    model(100 * randn(5, 4))
    update_ranges_(activation_quantizers(model))
    assert_equal(state["inputs"], before["inputs"])


def test_ranges_of_a_compiled_model_load_into_the_plain_one():
    source, target = trained(), quantized()
    wrapped = nn.ModuleDict({"net": torch.compile(source.a, backend="eager"), "b": source.b})
    plain = nn.ModuleDict({"net": target.a, "b": target.b})
    load_quantization_state(plain, quantization_state(wrapped))
    assert_equal(states(target), states(source))


class Shared(Net):
    """A layer that has two names."""

    def __init__(self):
        super().__init__()
        self.again = self.a


def test_what_a_layer_with_two_names_learns_is_kept_out_of_the_float_state_dict_under_both():
    model, fresh = Shared(), Shared()
    for one in (model, fresh):
        quantize_(one, everything(LSQQuantizer(2), activation_bits=3, activation_range="pact"))
    with torch.no_grad():
        model.a.balq_range_input.fill_(7.0)
    checkpoint = save(model)
    Shared().load_state_dict(checkpoint["state_dict"], strict=True)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"], strict=True)
    assert_equal(dict(fresh.state_dict()), dict(model.state_dict()))


# --- Attaching and detaching -----------------------------------------------------------------------------------------


def learning():
    model = Net()
    quantize_(model, everything(LSQQuantizer(2), activation_bits=3, activation_range="lsq"))
    return model


def test_what_had_not_begun_when_it_was_saved_begins_anew():
    early, model = save(learning()), learning()
    assert len(early["lightning_balq"]["beginning"]) == 4
    model(randn(5, 4)).sum().backward()
    update_ranges_(activation_quantizers(model))
    settle_ranges_(activation_quantizers(model))
    late = save(model)
    assert late["lightning_balq"]["beginning"] == []
    for checkpoint, expected in ((early, True), (late, False)):
        model.on_load_checkpoint(checkpoint)
        for _ in range(2):  # averaging callbacks load twice
            model.load_state_dict(checkpoint["state_dict"])
        parts = [state for _, _, state in quantized_layers(model)]
        assert {part.is_beginning(name) for part in parts for name in part.learned()} == {expected}


def test_hooks_are_attached_once_and_removed_by_unquantize():
    model = Net()
    before = snapshot(model)
    quantize_(model, everything(activation_bits=3))
    assert [name in model.__dict__ for name in HOOKS] == [True, True]
    once = snapshot(model)
    quantize_(model, everything(activation_bits=3))
    assert snapshot(model) == once
    unquantize_(model)
    assert snapshot(model) == before


def test_module_without_the_hooks_gets_none():
    model = nn.Sequential(nn.Linear(2, 2))
    quantize_(model, everything(activation_bits=3))
    assert not set(HOOKS) & set(model.__dict__)


def test_module_with_one_of_the_hooks_gets_that_one():
    class Half(nn.Sequential):
        def on_save_checkpoint(self, checkpoint):
            pass

    model = Half(nn.Linear(2, 2))
    quantize_(model, everything(activation_bits=3))
    assert [name in model.__dict__ for name in HOOKS] == [True, False]


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_hooks_of_a_copy_save_the_copy(how):
    model = trained()
    copied = how(model)
    copied(100 * randn(5, 4))
    update_ranges_(activation_quantizers(copied))
    assert_equal([item["input"] for item in save(copied)["lightning_balq"]["inputs"].values()], states(copied))
    assert_equal([item["input"] for item in save(model)["lightning_balq"]["inputs"].values()], states(model))
    assert states(copied)[0]["range"] != states(model)[0]["range"]
    unquantize_(copied)
    assert not set(HOOKS) & set(copied.__dict__)
    assert set(HOOKS) <= set(model.__dict__)


def test_compiled_module_keeps_working_hooks():
    inner = Net()
    model = torch.compile(inner, backend="eager")
    quantize_(model, everything(activation_bits=3))
    for module in (model, inner):
        checkpoint = {}
        module.on_save_checkpoint(checkpoint)
        assert sorted(checkpoint["lightning_balq"]["inputs"]) == ["a", "b"]


def test_a_checkpoint_tells_which_zeros_are_kept():
    model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    nn.init.zeros_(model.weight)  # as a layer may begin: nothing of it is pruned
    for each in (model, other):
        quantize_(each, everything())
    with torch.no_grad():
        model.weight[0] = randn(4)  # a row that was never trained stays zero
    load_quantization_state(other, quantization_state(model))
    other.load_state_dict(model.state_dict())
    x = randn(3, 4)
    assert_equal(other(x), model(x))
    assert (other.__dict__["_balq"].quantize_weight(other, "weight") != 0).all()
    other.load_state_dict(model.state_dict())  # weights alone do not tell
    assert (other.__dict__["_balq"].quantize_weight(other, "weight")[1] == 0).all()
