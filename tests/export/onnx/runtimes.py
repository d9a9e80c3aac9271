"""Run graphs and files in ONNX Runtime, with the options that it has by default, and in OpenVINO."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from lightning_balq.export.onnx.graph import OPSET, GraphBuilder


def evaluate(builder: GraphBuilder, inputs, outputs):
    """Values of outputs of a graph, given tensors by the names of its inputs."""
    model = to_model(builder, inputs, outputs)
    return run_onnx(model.SerializeToString(), list(inputs.values()))


def to_model(builder: GraphBuilder, inputs, outputs):
    """Checked ONNX model of what was emitted."""

    def info(name, value):
        kind = helper.np_dtype_to_tensor_dtype(value.numpy().dtype)
        return helper.make_tensor_value_info(name, kind, [None] * value.dim())

    given = [info(name, value) for name, value in inputs.items()]
    found = [helper.make_empty_tensor_value_info(name) for name in outputs]
    nodes = [*builder.head, *builder.nodes]
    graph = helper.make_graph(nodes, "test", given, found, list(builder.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def run_onnx(model, inputs):
    """Outputs of an ONNX file, or of its bytes, in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model)
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return [torch.from_numpy(np.array(value)) for value in found]


def run_openvino(model, inputs):
    """Outputs of an ONNX file in OpenVINO, in float32."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([value.numpy() for value in inputs])
    return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]
