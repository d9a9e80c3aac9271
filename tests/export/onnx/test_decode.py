"""Weights that a runtime decodes are those of the model, bit for bit."""

import onnx
import pytest
import torch

from lightning_balq.export.bits import packed_size
from lightning_balq.export.description import GRIDS, QuantizedWeight
from lightning_balq.export.onnx.decode import decode_integers, decode_levels, with_rows
from lightning_balq.export.onnx.forms import WeightForm
from lightning_balq.export.onnx.graph import GraphBuilder
from tests.export.onnx.runtimes import evaluate, run_openvino, to_model
from tests.helpers import assert_equal, randn


def make_weight(shape, bits, grid="odd", per_channel=False, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, shape, generator=generator, dtype=torch.uint8)
    scale = torch.rand(shape[0] if per_channel else 1, generator=generator) + 0.01
    return QuantizedWeight(codes, scale, bits, grid, torch.float32, "", **options)


def decoded(weight):
    builder = GraphBuilder()
    return evaluate(builder, {}, [decode_levels(builder, weight)])[0]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_those_of_the_description(bits, grid, per_channel):
    for shape in [(1, 1), (5, 7), (3, 2, 3, 3), (65, 33)]:
        weight = make_weight(shape, bits, grid, per_channel)
        assert_equal(decoded(weight), weight.levels())


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_levels_of_a_transposed_convolution_are_in_its_own_arrangement(groups, per_channel):
    weight = make_weight((6, 4, 3, 2), 3, per_channel=per_channel, groups=groups)
    assert weight.shape == (4 * groups, 6 // groups, 3, 2)
    assert_equal(decoded(weight), weight.levels())


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_pruned_weights_and_the_padding_row_stay_what_they_are(bits):
    kept = randn(7, 5) > 0
    weight = make_weight((7, 5), bits, per_channel=True, kept=kept)
    assert_equal(decoded(weight), weight.levels())
    assert torch.equal(decoded(weight) != 0, kept)
    padded = make_weight((7, 5), bits, padding_row=3, padding=torch.tensor([0.0, 0.3, -1.0, 0.0, 7.0]))
    assert_equal(decoded(padded), padded.levels())


def test_rows_in_another_order():
    weight = make_weight((6, 5), 3, per_channel=True, kept=randn(6, 5) > 0)
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    assert_equal(decoded(with_rows(weight, order)), weight.levels()[order])


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_take_the_bytes_of_their_codes(bits):
    builder = GraphBuilder()
    weight = make_weight((129, 67), bits)
    decode_levels(builder, weight)
    streams = [value for value in builder.initializers.values() if value.data_type == onnx.TensorProto.UINT8]
    size = packed_size(129 * 67, bits)
    assert size <= sum(len(value.raw_data) for value in streams) <= size + 2
    assert sum(len(value.raw_data) for value in builder.initializers.values()) < size + 17_000  # tables


def test_a_weight_used_twice_is_stored_and_decoded_once():
    builder = GraphBuilder()
    weight = make_weight((9, 5), 3)
    assert decode_levels(builder, weight) == decode_levels(builder, weight)


@pytest.mark.parametrize("bits", [1, 3, 7, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_integers_stand_for_the_levels(grid, bits):
    shape, scale = (5, 7), torch.tensor([0.5])
    weight = make_weight(shape, bits, grid)
    weight = QuantizedWeight(weight.codes, scale, bits, grid, torch.float32, "")
    unit = {"odd": 1.0, "integer": 1.0, "half": 0.5, "unit": 1 / (2**bits - 1)}[grid]
    # int8 holds 127 at most, and uint8 all integers from -128 to 127, plus 128.
    kinds = ["codes"] if bits == 8 and grid != "integer" else ["int8", "uint8"]
    for kind in kinds:
        builder = GraphBuilder()
        (found,) = evaluate(builder, {}, [decode_integers(builder, weight, WeightForm(kind, unit))])
        assert found.dtype == (torch.int8 if kind == "int8" else torch.uint8)
        values = found.double() - (128 if kind == "uint8" else 0)
        if kind == "codes":
            values = 2 * values - 255
        torch.testing.assert_close(values.t() * unit * 0.5, weight.levels().double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_openvino_decodes_the_same_before_a_product(bits, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    builder = GraphBuilder()
    weight = make_weight((65, 33), bits, per_channel=True, kept=randn(65, 33) > 0)
    eye = torch.eye(65)
    name = builder.op("MatMul", "x", decode_levels(builder, weight))
    onnx.save(to_model(builder, {"x": eye}, [name]), tmp_path / "m.onnx")
    (found,) = run_openvino(tmp_path / "m.onnx", [eye])
    assert_equal(found + 0.0, weight.levels() + 0.0)  # a sum of zeros has no sign
