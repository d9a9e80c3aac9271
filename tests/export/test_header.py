"""Files that are damaged or hostile are refused with the name of the file and of the entry, and change nothing."""

import json
import struct

import numpy as np
import pytest
import torch

from lightning_balq import BalancedQuantizer
from lightning_balq.export import load_packed, pack, read_packed
from tests.export.zoo import build, quantized, read_by_hand, write_by_hand
from tests.helpers import snapshot

DELETE = object()


@pytest.fixture
def good(tmp_path):
    """Path of a sound file, of a layer with activations; ``rewrite`` is to change it."""
    path = tmp_path / "m.safetensors"
    pack(quantized("linear", BalancedQuantizer(2, granularity="per_channel"), activation_bits=4)[0], path)
    return path


def rewrite(path, field, value, *, within="weights"):
    """Set a field of the one layer: of its weight, of its input, or of itself."""
    metadata, arrays = read_by_hand(path)
    content = json.loads(metadata["content"])
    layer = content["layers"][""]
    where = {"weights": layer["weights"].get("weight"), "inputs": layer["inputs"].get("input")}
    entry = {"layer": layer, "content": content, **where}[within]
    if value is DELETE:
        del entry[field]
    else:
        entry[field] = value
    write_by_hand(path, metadata | {"content": json.dumps(content)}, arrays)


def assert_refused(path, match):
    model, _ = build("linear", seed=1)
    before = snapshot(model)
    with pytest.raises(ValueError, match=match) as caught:
        load_packed(path, model)
    assert repr(str(path)) in str(caught.value)
    assert snapshot(model) == before


def test_rewritten_file_is_sound(good):
    metadata, arrays = read_by_hand(good)
    expected = read_packed(good).layers[""].weights["weight"].levels()
    write_by_hand(good, metadata, arrays)
    assert torch.equal(read_packed(good).layers[""].weights["weight"].levels(), expected)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.6, 0.99])
def test_truncated_file(good, share):
    data = good.read_bytes()
    good.write_bytes(data[: int(len(data) * share)])
    assert_refused(good, "is not a whole safetensors file")


def test_longer_file(good):
    good.write_bytes(good.read_bytes() + b"\0" * 9)
    assert_refused(good, "is not a whole safetensors file")


@pytest.mark.parametrize("data", [b"", b"PK\3\4" + b"\0" * 100, b"\xff" * 200, struct.pack("<Q", 2**62) + b"{}"])
def test_file_of_another_kind(good, data):
    good.write_bytes(data)
    assert_refused(good, "is not a whole safetensors file")


def test_header_that_promises_gigabytes(good):
    header = json.dumps({"codes:w": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}).encode()
    good.write_bytes(struct.pack("<Q", len(header)) + header)
    assert_refused(good, "is not a whole safetensors file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "pt"}, "names the format 'pt'; expected 'lightning_balq.packed'"),
        ({"version": "2"}, "has version '2' of the format, this lightning_balq reads version 1: install"),
        ({"content": "{"}, "its metadata is not JSON"),
        ({"content": "[" * 100_000}, "its metadata is not JSON"),
        ({"content": "[]"}, r"the metadata must be a JSON object, got \[\]"),
        ({"content": "{}"}, "the metadata has no `layers`"),
        ({"content": '{"layers": {}, "ties": {}, "float_layers": {}}'}, "the metadata holds no layer"),
    ],
)
def test_metadata_of_another_kind(good, change, match):
    metadata, arrays = read_by_hand(good)
    write_by_hand(good, metadata | change, arrays)
    assert_refused(good, match)


def test_file_without_metadata(good):
    _, arrays = read_by_hand(good)
    write_by_hand(good, {}, arrays)
    assert_refused(good, "names the format None")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("bits", 0, "`bits` of weight 'weight' must be an integer from 1 to 8, got 0"),
        ("bits", 9, "`bits` of weight 'weight' must be an integer from 1 to 8, got 9"),
        ("bits", True, "must be an integer from 1 to 8, got True"),
        ("bits", "2", "must be an integer from 1 to 8, got '2'"),
        ("bits", 4, r"'codes:weight' must be torch.uint8 of shape \(15,\), as the metadata says, got .* \(8,\)"),
        ("bits", DELETE, "weight 'weight' has no `bits`"),
        ("shape", [5, 7], r"'codes:weight' must be torch.uint8 of shape \(9,\)"),
        ("shape", [2**50, 2**50], "`shape` of weight 'weight' must be sizes of a tensor that can exist"),
        ("shape", [0, 2**63], "`shape` of weight 'weight' must be sizes of a tensor that can exist"),
        ("shape", [-5, -6], "`shape` of weight 'weight' must be at most 8 sizes"),
        ("shape", [1] * 9, "must be at most 8 sizes"),
        ("shape", 30, "must be at most 8 sizes"),
        ("shape", [6, 5], r"'scale:weight' must be torch.float32 of shape \(1,\), as the metadata says, got .* \(5,\)"),
        ("grid", "cubic", "`grid` of weight 'weight' must be one of"),
        ("grid", None, "`grid` of weight 'weight' must be a string, got None"),
        ("dtype", "int8", "`dtype` of weight 'weight' must be one of"),
        ("method", 1, "`method` of weight 'weight' must be a string"),
        ("groups", 2, "2 `groups` do not divide `shape`"),
        ("groups", -1, "`groups` of weight 'weight' must be an integer from 1 to"),
        ("padding_row", 5, "`padding_row` of weight 'weight' must be an integer from 0 to 4, got 5"),
        ("padding_row", 1, "the tensor 'padding:weight' is missing"),
        ("pruned", True, "the tensor 'kept:weight' is missing"),
        ("pruned", 1, "`pruned` of weight 'weight' must be true or false, got 1"),
        ("tensors_of", "weight", "has its tensors from 'weight', which is no weight before it"),
        ("tensors_of", [], "`tensors_of` of weight 'weight' must be a string"),
    ],
)
def test_weight_entry_that_lies(good, field, value, match):
    rewrite(good, field, value)
    assert_refused(good, match)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("bits", 12, "`bits` of input 'input' must be an integer from 1 to 8"),
        ("range", -1.0, "`range` of input 'input' must be a float32 number that is not negative"),
        ("range", 0.1, "`range` of input 'input' must be a float32 number"),
        ("range", 1e300, "`range` of input 'input' must be a float32 number"),
        ("range", float("nan"), "`range` of input 'input' must be a float32 number"),
        ("range", 10**400, "`range` of input 'input' must be a float32 number"),
        ("range", "1", "`range` of input 'input' must be a float32 number"),
        ("range", None, "has a `range` without `signed`"),
        ("signed", "yes", "`signed` of input 'input' must be true or false"),
        ("mode", "none", "`mode` of input 'input' must be one of"),
        ("sign", 3, "`sign` of input 'input' must be a string"),
    ],
)
def test_input_entry_that_lies(good, field, value, match):
    rewrite(good, field, value, within="inputs")
    assert_refused(good, match)


@pytest.mark.parametrize(
    ("within", "field", "value", "match"),
    [
        ("layer", "type", 3, "`type` of layer '' must be a string"),
        ("layer", "type", "Conv2d", "its layer '' is a Linear, in the file a Conv2d"),
        ("layer", "weights", [], "`weights` of layer '' must be a JSON object"),
        ("layer", "weights", {}, "the tensor 'codes:weight' belongs to no entry"),
        ("layer", "inputs", {"input": 3}, "input 'input' must be a JSON object, got 3"),
        ("layer", "aliases", "ab", "`aliases` of layer '' must be a list of strings"),
        ("content", "ties", {"x": "y"}, "'x' is tied to 'y'; expected a tensor of the file"),
        ("content", "ties", {"bias": "bias"}, "'bias' is tied to 'bias'"),
        ("content", "ties", {"x": 3}, "must be a string, got 3"),
        ("content", "float_layers", {"a": 1}, "must be a string, got 1"),
    ],
)
def test_other_entry_that_lies(good, within, field, value, match):
    rewrite(good, field, value, within=within)
    assert_refused(good, match)


@pytest.mark.parametrize(
    ("key", "array", "match"),
    [
        ("scale:weight", np.full(5, np.nan, np.float32), "'scale:weight' holds a scale that is negative or not finite"),
        ("scale:weight", np.full(5, np.inf, np.float32), "negative or not finite"),
        ("scale:weight", np.array([1, 1, -1, 1, 1], np.float32), "negative or not finite"),
        ("scale:weight", np.ones(4, np.float32), r"'scale:weight' must be torch.float32 of shape \(1,\)"),
        ("scale:weight", np.ones(5, np.int64), "'scale:weight' must be torch.float32"),
        ("codes:weight", np.zeros(8, np.int64), "'codes:weight' must be torch.uint8"),
        ("codes:weight", np.zeros((8, 1), np.uint8), "'codes:weight' must be torch.uint8"),
        ("codes:weight", None, "the tensor 'codes:weight' is missing"),
        ("scale:weight", None, "the tensor 'scale:weight' is missing"),
        ("more", np.zeros(3, np.float32), "the tensor 'more' belongs to no entry of the metadata"),
        ("float:bias", None, "it has 'bias' beside the quantized layers that the file has not"),
        ("float:other", np.zeros(3, np.float32), "the file has 'other' that it has not"),
        ("float:bias", np.zeros(4, np.float32), r"its 'bias' is torch.float32 of shape \(5,\), in the file .* \(4,\)"),
        ("float:bias", np.zeros(5, np.int64), r"its 'bias' is torch.float32 .*, in the file torch.int64"),
    ],
)
def test_tensor_that_lies(good, key, array, match):
    metadata, arrays = read_by_hand(good)
    arrays.pop(key, None)
    write_by_hand(good, metadata, arrays if array is None else arrays | {key: array})
    assert_refused(good, match)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\nb", "\x1b[31m", "weight\u202e", "__class__", "[red]"])
def test_layer_of_an_odd_name(good, name):
    metadata, arrays = read_by_hand(good)
    content = json.loads(metadata["content"])
    content["layers"] = {name: content["layers"][""]}
    arrays = {key.replace(":weight", f":{name}.weight"): value for key, value in arrays.items()}
    write_by_hand(good, metadata | {"content": json.dumps(content)}, arrays)
    assert_refused(good, "it has no layer ")


def test_layer_missing_from_the_model_and_the_other_way_round(tmp_path):
    path = tmp_path / "m.safetensors"
    pack(quantized("norms between")[0], path)
    before = snapshot(model := torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.BatchNorm2d(6)))
    with pytest.raises(ValueError, match="does not fit the model: it has no layer '2', a Conv2d in the file"):
        load_packed(path, model)
    assert snapshot(model) == before
    before = snapshot(model := torch.nn.Sequential(*build("norms between")[0], torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"it has '3.bias', '3.weight' beside the quantized layers that the file has"):
        load_packed(path, model)
    assert snapshot(model) == before
