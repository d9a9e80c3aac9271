"""Files hold the promised bytes, and NumPy alone reads the weights of the forward out of them, bit for bit."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lightning_balq import BalancedQuantizer, DoReFaQuantizer, LSQQuantizer, UniformQuantizer, quantize_
from lightning_balq.export import pack, read_packed, unpack
from lightning_balq.nn import QuantizationConfig, plan
from recipes.models.resnet import resnet18
from tests.export.zoo import MODELS, assert_same_bits, build, decode_by_hand, quantized, read_by_hand
from tests.helpers import everything, run_python

CHANNELS = BalancedQuantizer(3, scale="mean", granularity="per_channel")


def arrange(levels, entry):
    """Bring channels first to the arrangement of the weight, in NumPy."""
    groups = entry["groups"]
    if groups is None:
        return levels
    grouped = levels.reshape(groups, -1, *levels.shape[1:])
    return np.swapaxes(grouped, 1, 2).reshape(-1, *grouped.shape[1:2], *levels.shape[2:])


def read_weights(path):
    """Weights of a file in NumPy alone, float32."""
    metadata, arrays = read_by_hand(path)
    found = {}
    for name, layer in json.loads(metadata["content"])["layers"].items():
        for key, entry in layer["weights"].items():
            place = f"{name}.{key}".lstrip(".")
            source = entry["tensors_of"] or place
            levels = arrange(decode_by_hand(entry, source, arrays), entry)
            if entry["padding_row"] is not None:
                levels[entry["padding_row"]] = arrays[f"padding:{source}"]
            if entry["pruned"]:
                bits = np.unpackbits(arrays[f"kept:{source}"], bitorder="little")[: levels.size]
                levels = levels * bits.reshape(levels.shape).astype(np.float32)
            found[place] = levels
    return found


@torch.no_grad()
def used_weights(model):
    from lightning_balq.nn import quantized_layers

    return {
        f"{name}.{key}".lstrip("."): state.quantize_weight(layer, key)
        for name, layer, state in quantized_layers(model)
        for key in state.weights
    }


def assert_numpy_reads_the_weights(model, path):
    pack(model, path)
    found, used = read_weights(path), used_weights(model)
    assert found.keys() == used.keys()
    for key, levels in found.items():
        assert_same_bits(torch.from_numpy(np.ascontiguousarray(levels)), used[key].detach())


@pytest.mark.parametrize("quantizer", [BalancedQuantizer(2), CHANNELS], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", MODELS)
def test_numpy_reads_the_weights_of_every_layer(name, quantizer, tmp_path):
    assert_numpy_reads_the_weights(quantized(name, quantizer, activation_bits=4)[0], tmp_path / "m.safetensors")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("make", [BalancedQuantizer, UniformQuantizer, DoReFaQuantizer, LSQQuantizer])
def test_numpy_reads_the_weights_of_every_width(make, bits, tmp_path):
    quantizer = LSQQuantizer(1, grid="symmetric") if make is LSQQuantizer and bits == 1 else make(bits)
    assert_numpy_reads_the_weights(quantized("norms between", quantizer)[0], tmp_path / "m.safetensors")


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_exactly_their_bits(bits, tmp_path):
    model, _ = quantized("linear", BalancedQuantizer(bits))
    pack(model, tmp_path / "m.safetensors")
    _, arrays = read_by_hand(tmp_path / "m.safetensors")
    assert {key: array.nbytes for key, array in arrays.items()} == {
        "codes:weight": -(-30 * bits // 8),
        "scale:weight": 4,
        "float:bias": 20,
    }


@pytest.mark.parametrize("name", MODELS)
def test_tensors_take_the_bytes_of_the_plan(name, tmp_path):
    float_model, _ = build(name)
    include = ["*", "type:Embedding"] if name.startswith(("embedding", "tied")) else ["*"]
    promised = plan(float_model, everything(CHANNELS, include=include)).quantized_bytes
    pack(quantized(name, CHANNELS)[0], tmp_path / "m.safetensors")
    _, arrays = read_by_hand(tmp_path / "m.safetensors")
    parameters = {key for key, _ in float_model.named_parameters()}
    kept = {key for key in arrays if key.startswith("float:") and key.removeprefix("float:") not in parameters}
    extra = sum(array.nbytes for key, array in arrays.items() if key.startswith(("kept:", "padding:")) or key in kept)
    assert sum(array.nbytes for array in arrays.values()) - extra == promised


@pytest.mark.parametrize(("bits", "megabytes"), [(1, 3.58), (2, 4.98), (4, 7.77)])
def test_resnet18_takes_few_megabytes(bits, megabytes, tmp_path):
    torch.manual_seed(0)
    model = resnet18(1000)
    quantize_(model, QuantizationConfig(BalancedQuantizer(bits)))
    pack(model, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size / 1e6 == pytest.approx(megabytes, rel=0.01)


def test_reading_gives_back_the_description(tmp_path):
    for name in ("lstm", "pruned", "embedding with padding", "tied", "twice", "self-attention", "transposed 2d"):
        model, _ = quantized(name, CHANNELS, activation_bits=3)
        written, read = pack(model, tmp_path / "m.safetensors"), read_packed(tmp_path / "m.safetensors")
        assert read.reasons == written.reasons
        assert {key: (layer.type, layer.inputs, layer.aliases) for key, layer in read.layers.items()} == {
            key: (layer.type, layer.inputs, layer.aliases) for key, layer in written.layers.items()
        }
        assert read.tensors.keys() == written.tensors.keys()
        assert all(torch.equal(read.tensors[key], written.tensors[key]) for key in read.tensors)
        for key, weight in written.weights().items():
            again = read.weights()[key]
            assert torch.equal(again.codes, weight.codes) and torch.equal(again.scale, weight.scale)
            assert (again.grid, again.method, again.dtype) == (weight.grid, weight.method, weight.dtype)


PLAIN = sorted(name for name in MODELS if not name.endswith("norm") and name != "pruned")
"""Models whose weights are parameters."""


@pytest.mark.parametrize("name", PLAIN)
def test_unpacked_state_loads_strictly_into_a_float_model(name, tmp_path):
    model, _ = quantized(name, CHANNELS)
    pack(model, tmp_path / "m.safetensors")
    other, _ = build(name, seed=1)
    other.load_state_dict(unpack(tmp_path / "m.safetensors"))
    used = used_weights(model)
    for key, value in other.state_dict().items():
        first = key.replace("second", "first")  # one layer of two names
        assert torch.equal(value, used[first] if first in used else model.state_dict()[key])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_types_come_back_exactly(dtype, tmp_path):
    model, _ = quantized("norms between", CHANNELS, dtype=dtype)
    pack(model, tmp_path / "m.safetensors")
    state = unpack(tmp_path / "m.safetensors")
    assert_same_bits(state["2.weight"], used_weights(model)["2.weight"])
    assert_same_bits(state["2.bias"], model[2].bias.detach())


def test_tied_tensors_are_stored_once(tmp_path):
    model, _ = quantized("tied", CHANNELS)
    float_tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    float_tied.b.weight = float_tied.a.weight
    quantize_(float_tied, everything(CHANNELS, exclude=["a", "b"]))
    for each, once in ((model, {"codes:embedding.weight", "codes:body.weight"}), (float_tied, {"codes:c.weight"})):
        pack(each, tmp_path / "m.safetensors")
        _, arrays = read_by_hand(tmp_path / "m.safetensors")
        assert {key for key in arrays if key.startswith("codes:")} == once
        assert "float:b.weight" not in arrays
    assert torch.equal(unpack(tmp_path / "m.safetensors")["b.weight"], float_tied.a.weight)


def test_weight_that_is_float_in_one_place_and_quantized_in_another_is_stored_as_both(tmp_path):
    model, _ = build("tied")
    quantize_(model, everything(CHANNELS, include=["head", "body"]))
    pack(model, tmp_path / "m.safetensors")
    state = unpack(tmp_path / "m.safetensors")
    assert torch.equal(state["embedding.weight"], model.embedding.weight)
    assert_same_bits(state["head.weight"], used_weights(model)["head.weight"])


def test_failed_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"earlier")
    model, _ = quantized("linear")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        pack(model, path)
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_existing_file_is_replaced_with_usual_rights(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"earlier")
    pack(quantized("linear")[0], path)
    (tmp_path / "other").touch()
    assert read_packed(path).layers
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_model_that_cannot_be_described_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no quantized layer"):
        pack(nn.Linear(2, 2), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_sparse_tensor_is_refused_by_name(tmp_path):
    model, _ = quantized("linear")
    model.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"'graph' is a tensor of layout torch.sparse_coo; expected a dense one"):
        pack(model, tmp_path / "m.safetensors")


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: pack(quantized("linear")[0], tmp_path / "m"), lambda: read_packed(tmp_path / "m")):
        with pytest.raises(ImportError, match=r"need the package safetensors: pip install lightning-balq\[export\]"):
            call()


def test_importing_the_package_or_export_loads_no_safetensors():
    assert run_python("import sys, lightning_balq.export; print('safetensors' in sys.modules)") == "False"


def test_folder_and_missing_file_are_named_by_the_system(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_packed(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        read_packed(tmp_path / "gone")


def test_reading_does_not_depend_on_the_file_afterwards(tmp_path):
    path = tmp_path / "m.safetensors"
    pack(quantized("linear")[0], path)
    state = unpack(path)
    before = {key: value.clone() for key, value in state.items()}
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(state[key], before[key]) for key in state)
