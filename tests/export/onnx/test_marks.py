"""Values that a file names as those of a layer are what goes into the layer and comes out of it in PyTorch."""

import json
import re

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lightning_balq import BalancedQuantizer, quantize_
from lightning_balq.export.onnx import export_onnx
from lightning_balq.export.onnx.marks import from_entry, map_tensors
from tests.export.zoo import quantized
from tests.helpers import everything, randn, snapshot


def file_calls(path, arguments):
    """Layer, inputs and outputs of each call in ONNX Runtime, by ``json`` and ``onnx`` alone."""
    model = onnx.load(path)
    calls = json.loads({entry.key: entry.value for entry in model.metadata_props}["layers"])
    given = {value.name: x for value, x in zip(model.graph.input, arguments, strict=True)}
    names = {name for _, *values in calls for each in values for name in each.values()} - given.keys()
    old = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names - old)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(list(names), {name: x.numpy() for name, x in given.items()})
    tensors = given | {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}
    return [
        (layer, *({int(place): tensors[name] for place, name in each.items()} for each in values))
        for layer, *values in calls
    ]


@torch.no_grad()
def torch_calls(model, layers, arguments):
    calls = []

    def flat(value):
        if isinstance(value, torch.Tensor):
            return [value]
        return [x for part in value for x in flat(part)] if isinstance(value, tuple) else []

    for name in layers:
        model.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: calls.append((name, flat(given), flat(output)))
        )
    model(*arguments)
    return calls


class Stack(nn.Module):
    """Layers of several kinds, one after the other, and one of them twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnn = nn.LSTM(6, 6, batch_first=True)
        self.cell = nn.GRUCell(6, 6)
        self.head = nn.Linear(6, 6)

    def forward(self, tokens):
        hidden, (state, _) = self.rnn(self.embedding(tokens))
        state = self.cell(hidden[:, -1], state[0])
        return self.head(self.head(state).relu())


@pytest.mark.parametrize("mode", ["portable", "integer"])
def test_values_are_those_of_the_layers(mode, tmp_path):
    torch.manual_seed(0)
    model, tokens = Stack(), torch.tensor([[0, 3, 10], [2, 2, 1]])
    quantize_(model, everything(BalancedQuantizer(3, scale="mean"), include=["*", "type:Embedding"]))
    model.eval()
    before = snapshot(model)
    export_onnx(model, tmp_path / "m.onnx", tokens, mode=mode)
    assert snapshot(model) == before
    found = file_calls(tmp_path / "m.onnx", [tokens])
    right = torch_calls(model, ["embedding", "rnn", "cell", "head"], [tokens])
    names = ["embedding", "rnn", "cell", "head", "head"]
    assert [call[0] for call in found] == [call[0] for call in right] == names
    for (name, *values), (_, *expected) in zip(found, right, strict=True):
        for given, wanted in zip(values, expected, strict=True):
            for place, value in given.items():
                # Sums of six products, in another order.
                torch.testing.assert_close(value, wanted[place], rtol=0, atol=2e-6)
        assert values[0].keys() == set(range(len(expected[0])))
        unused = {"rnn": {2}}.get(name, set())  # the cell state
        assert values[1].keys() == set(range(len(expected[1]))) - unused


def test_tensor_that_is_given_several_times_stays_one(tmp_path):
    model, arguments = quantized("self-attention", activation_bits=3)
    export_onnx(model, tmp_path / "m.onnx", arguments)
    ((name, inputs, outputs),) = file_calls(tmp_path / "m.onnx", arguments)
    assert name == "attention" and inputs.keys() == outputs.keys() == {0}
    assert torch.equal(inputs[0], arguments[0])


def test_layers_around_a_branch(tmp_path):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(torch.cond(x.sum() > 0, torch.relu, torch.neg, (self.first(x),)))

    torch.manual_seed(0)
    model, x = Branch(), randn(3, 4)
    quantize_(model, everything(BalancedQuantizer(2)))
    export_onnx(model.eval(), tmp_path / "m.onnx", x)
    right = torch_calls(model, ["first", "second"], [x])
    for (_, _, found), (_, _, wanted) in zip(file_calls(tmp_path / "m.onnx", [x]), right, strict=True):
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-6)  # sums in another order


def test_only_tensors_are_mapped_and_each_once():
    x, y = torch.zeros(1), torch.ones(1)
    seen = []

    def change(tensor):
        seen.append(tensor)
        return len(seen)

    assert map_tensors(([x, 3, None], {"a": y, "b": x}, "text"), change) == ([1, 3, None], {"a": 2, "b": 1}, "text")
    assert seen[0] is x and seen[1] is y


@pytest.mark.parametrize("text", ["", "3", "[3]", '[["a", 1, {}]]', '[["a", {"x": "y"}, {}]]', '[["a", {}, {}, {}]]'])
def test_metadata_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=re.escape("the metadata do not tell layers apart")):
        from_entry(text)
