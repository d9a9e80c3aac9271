"""The graph that has nothing but products holds those of the graph it is taken from."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import bench_export
from lightning_balq.export import describe
from lightning_balq.export.onnx.activation import zero_point

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


def test_product_of_a_linear_layer_is_that_of_its_integers(tmp_path):
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 5), torch.randn(1, 12)
    files = bench_export.write(layer, x, tmp_path)
    session = bench_export.open_session(files[bench_export.PRODUCTS])
    given = bench_export.feed(session, x)
    (integers,) = given.values()
    described = describe(layer).layers[""]
    codes, bits = described.weights["weight"].codes.numpy().astype(np.int64), bench_export.BITS
    expected = (integers.astype(np.int64) - zero_point(described.inputs["input"])) @ (2 * codes - 2**bits + 1).T
    np.testing.assert_array_equal(session.run(None, given)[0], expected)
    assert integers.any() and integers.dtype == np.uint8


def test_loop_keeps_its_product_alone(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 2, 6)
    files = bench_export.write(bench_export.Recurrent(6), x, tmp_path)
    (loop,) = [node for node in onnx.load(files[bench_export.PRODUCTS]).graph.node if node.op_type == "Scan"]
    (body,) = [part.g for part in loop.attribute if part.name == "body"]
    assert [node.op_type for node in body.node] == ["MatMulInteger", "Identity", "Identity", "Identity"]
    session = bench_export.open_session(files[bench_export.PRODUCTS])
    assert session.run(None, bench_export.feed(session, x))[0].shape == (4, 2, 6)
