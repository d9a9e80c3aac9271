"""Files in ONNX Runtime, with the options that it has by default, are the quantized model."""

import logging
import re
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import prune, rnn

from lightning_balq import BalancedQuantization, BalancedQuantizer, quantize_
from lightning_balq.export import load_packed, pack
from lightning_balq.export.onnx import export_onnx, packages
from lightning_balq.nn import activation_quantizers
from tests.callback.tiny import Batches, quiet_trainer, tiny_model
from tests.export.onnx.runtimes import run_onnx, run_openvino
from tests.export.zoo import MODELS, build, observe, quantized, run
from tests.helpers import assert_equal, everything, randn, snapshot

TOLERANCE = 1e-6
"""Sums of about ten products, of magnitude 1, in another order."""

EXPORTED = [name for name, (_, given) in MODELS.items() if not any(isinstance(x, rnn.PackedSequence) for x in given)]
SEVERAL = [name for name in EXPORTED if "cell" not in name and "legacy" not in name]


class Several(nn.Module):
    """Models of many kinds as one, so that they are exported at once."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models.values())
        self.counts = [len(MODELS[name][1]) for name in models]

    def forward(self, *arguments):
        given = iter(arguments)
        return [model(*(next(given) for _ in range(n))) for model, n in zip(self.models, self.counts, strict=True)]


def assert_same(path, model, arguments, tolerance=TOLERANCE):
    for found, right in zip(run_onnx(path, arguments), run(model, arguments), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("mode", "bits", "activation_bits", "granularity"),
    [
        pytest.param("portable", 3, None, "per_channel", marks=pytest.mark.slow),
        ("portable", 2, 3, "per_tensor"),
        ("integer", 5, 4, "per_channel"),
    ],
)
def test_models_of_every_kind(mode, bits, activation_bits, granularity, tmp_path):
    quantizer = BalancedQuantizer(bits, scale="mean", granularity=granularity)
    parts = {name: quantized(name, quantizer, activation_bits=activation_bits) for name in SEVERAL}
    model = Several({name: part for name, (part, _) in parts.items()}).eval()
    arguments = [x for _, given in parts.values() for x in given]
    before = snapshot(model)
    report = export_onnx(model, tmp_path / "m.onnx", arguments, mode=mode, integer_convolutions=True)
    assert snapshot(model) == before
    assert_same(tmp_path / "m.onnx", model, arguments)
    assert report.mode == mode and report.size == (tmp_path / "m.onnx").stat().st_size
    integer = {weight.name for weight in report.weights if weight.form != "float"}
    assert bool(integer) == (mode == "integer")
    if mode == "integer":
        names = {f"models.{place}": name for place, name in enumerate(SEVERAL)}
        kinds = {names[".".join(weight.split(".")[:2])] for weight in integer}
        assert {"linear", "conv1d", "conv3d", "lstm", "rnn", "tied", "twice", "pruned", "norms between"} <= kinds
        assert not {"conv2d", "transposed 1d", "embedding", "attention"} & kinds
        assert all(bool(weight.reason) == (weight.form == "float") for weight in report.weights)


@pytest.mark.parametrize(
    "name",
    ["lstm cell", pytest.param("gru cell", marks=pytest.mark.slow), "legacy weight norm"],
)
def test_cells_and_legacy_norms(name, tmp_path):
    model, arguments = quantized(name, BalancedQuantizer(2, scale="mean"), activation_bits=3)
    before = snapshot(model)
    report = export_onnx(model, tmp_path / "m.onnx", arguments, mode="integer")
    assert snapshot(model) == before
    assert_same(tmp_path / "m.onnx", model, arguments)
    if "cell" in name:
        assert {weight.reason for weight in report.weights} == {
            f"a {type(model.cell).__name__} has no form in integers"
        }


class Tagger(nn.Module):
    """Tokens to labels, batch first."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0)
        self.rnn = nn.LSTM(6, 7, num_layers=2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(14, 2, batch_first=True)
        self.head = nn.Linear(14, 5)

    def forward(self, tokens):
        states = self.rnn(self.embedding(tokens))[0]
        return self.head(self.attention(states, states, states, need_weights=False)[0])


@pytest.mark.parametrize("mode", ["portable", "integer"])
def test_batch_and_length_are_free(mode, tmp_path):
    torch.manual_seed(0)
    model, tokens = Tagger(), torch.tensor([[0, 3, 10], [2, 2, 1]])
    quantize_(model, everything(BalancedQuantizer(3, scale="mean"), include=["*", "type:Embedding"], activation_bits=4))
    observe(model, [tokens])
    dims = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    names = {"input_names": ["tokens"], "output_names": ["labels"]}
    export_onnx(model.eval(), tmp_path / "m.onnx", tokens, mode=mode, dynamic_shapes=dims, **names)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [graph.input[0].name, graph.output[0].name] == ["tokens", "labels"]
    for batch, length in ((2, 3), (1, 1), (5, 8)):
        more = torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(0))
        assert_same(tmp_path / "m.onnx", model, [more], 3e-6)


def test_only_standard_operators_and_nothing_that_was_not_asked_for(tmp_path):
    model, arguments = quantized("norms between", activation_bits=3)
    export_onnx(model, tmp_path / "m.onnx", arguments)
    file = onnx.load(tmp_path / "m.onnx")
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 20)]
    assert {node.domain for node in file.graph.node} == {""}
    assert not any("weight" in value.name and len(value.dims) > 1 for value in file.graph.initializer)
    assert not {"DequantizeLinear", "QuantizeLinear"} & {node.op_type for node in file.graph.node}


def test_packed_weights_make_the_file_small(tmp_path):
    model = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 200))
    quantize_(model, everything(BalancedQuantizer(2)))
    report = export_onnx(model.eval(), tmp_path / "m.onnx", randn(1, 300))
    assert report.float_bytes == 4 * 200_000 and report.code_bytes == 50_000
    assert report.size < 50_000 + 4 * 600 + 10_000  # codes, biases, one table and the graph
    assert str(report).splitlines()[1] == "  0.weight: 2 bits, activations float, multiplied as float"


def test_loaded_packed_file_is_exported_like_the_model(tmp_path):
    model, arguments = quantized("norms between", activation_bits=3)
    pack(model, tmp_path / "m.safetensors")
    loaded = load_packed(tmp_path / "m.safetensors", build("norms between", seed=1)[0])
    export_onnx(model, tmp_path / "one.onnx", arguments)
    export_onnx(loaded, tmp_path / "other.onnx", arguments)
    one, other = (run_onnx(tmp_path / name, arguments)[0] for name in ("one.onnx", "other.onnx"))
    assert_equal(one, other)


def test_lightning_module_after_fit(tmp_path):
    model = tiny_model()
    callback = BalancedQuantization(2, 4, verbose=0, quantize_first_last=True)
    quiet_trainer(tmp_path, callbacks=[callback]).fit(model, Batches())
    prune.random_unstructured(model.net[3], "weight", 0.5)
    x = randn(4, 1, 8, 8)
    report = export_onnx(model, tmp_path / "m.onnx", x, mode="integer", integer_convolutions=True)
    assert {weight.form for weight in report.weights} == {"int8"}
    assert_same(tmp_path / "m.onnx", model.eval(), [x])


@pytest.mark.parametrize("mode", ["portable", "integer"])
def test_what_nothing_uses_is_not_in_the_file(mode, tmp_path):
    class States(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(5, 7, num_layers=2)

        def forward(self, x):
            return self.rnn(x)[0]  # and not the last states

    model, x = States(), randn(4, 3, 5)
    quantize_(model, everything(BalancedQuantizer(2), activation_bits=3))
    observe(model, [x])
    export_onnx(model.eval(), tmp_path / "m.onnx", x, mode=mode)
    graph = onnx.load(tmp_path / "m.onnx").graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    read |= {name for node in graph.node for part in node.attribute for inner in part.g.node for name in inner.input}
    assert [node.name for node in graph.node if read.isdisjoint(node.output)] == []
    assert [value.name for value in graph.initializer if value.name not in read] == []
    assert_same(tmp_path / "m.onnx", model, [x])


def test_torch_logs_and_warns_of_nothing(tmp_path, caplog):
    model, arguments = quantized("linear", BalancedQuantizer(2))
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            export_onnx(model, tmp_path / "m.onnx", arguments)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert logger.level == level


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_openvino_runs_the_same_file(bits, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    model, arguments = quantized("norms between", BalancedQuantizer(bits), activation_bits=3)
    export_onnx(model, tmp_path / "m.onnx", arguments)
    (found,), (right,) = run_openvino(tmp_path / "m.onnx", arguments), run(model, arguments)
    torch.testing.assert_close(found, right, rtol=0, atol=TOLERANCE)


def test_inputs_of_a_mapping_are_keywords(tmp_path):
    model, arguments = quantized("attention")
    export_onnx(model, tmp_path / "m.onnx", dict(zip(("query", "key", "value"), arguments, strict=True)))
    assert_same(tmp_path / "m.onnx", model, arguments)


def test_refusals_name_what_is_wrong(tmp_path):
    path = tmp_path / "m.onnx"
    model, arguments = quantized("linear")
    with pytest.raises(ValueError, match="`mode` must be one of"):
        export_onnx(model, path, arguments, mode="fast")
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got int"):
        export_onnx(3, path, arguments)
    with pytest.raises(ValueError, match="no quantized layer"):
        export_onnx(nn.Linear(2, 2), path, randn(1, 2))
    half, given = quantized("linear", dtype=torch.float64)
    with pytest.raises(ValueError, match=r"weight 'weight' is torch.float64; expected float32"):
        export_onnx(half, path, given)
    model, (x,) = quantized("self-attention", activation_bits=3)
    with pytest.raises(ValueError, match=r"no training batch has shown the range of 'key'"):
        export_onnx(model.attention, path, [x, randn(2, 3, 8, seed=9), x])
    lstm, (steps,) = quantized("lstm", activation_bits=3)
    packed = rnn.pack_padded_sequence(steps, torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="the input of '' is a PackedSequence; expected a tensor"):
        export_onnx(lstm, path, [packed])
    assert not path.exists()


def test_absent_packages_are_named_with_what_to_install(tmp_path, monkeypatch):
    model, arguments = quantized("linear")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(packages.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=re.escape("needs the package onnx: pip install lightning-balq[onnx]")):
        export_onnx(model, tmp_path / "m.onnx", arguments)


def test_training_mode_and_ranges_stay_as_they_were(tmp_path):
    model, arguments = quantized("norms between", activation_bits=3)
    model.train()
    ranges = [float(quantizer.range) for quantizer in activation_quantizers(model)]
    export_onnx(model, tmp_path / "m.onnx", arguments)
    assert model.training and model[1].training
    assert ranges == [float(quantizer.range) for quantizer in activation_quantizers(model)]
    assert_same(tmp_path / "m.onnx", model.eval(), arguments)


def test_failed_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    model, arguments = quantized("linear")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")

    def fill_the_disk(proto, draft, **options):
        Path(draft).write_bytes(proto.SerializeToString()[:100])
        raise OSError("disk full")

    save = onnx.save
    monkeypatch.setattr(onnx, "save", fill_the_disk)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(model, path, arguments)
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(onnx, "save", save)
    export_onnx(model, path, arguments)
    assert_same(path, model, arguments)
    assert list(tmp_path.iterdir()) == [path]


def test_model_that_cannot_be_traced_leaves_the_file_that_was_there(tmp_path):
    class Fails(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("not today")

    model = Fails(nn.Linear(2, 2))
    quantize_(model, everything(BalancedQuantizer(2)))
    (tmp_path / "m.onnx").write_bytes(b"earlier")
    with pytest.raises(Exception, match="not today"):
        export_onnx(model, tmp_path / "m.onnx", randn(1, 2))
    assert (tmp_path / "m.onnx").read_bytes() == b"earlier" and len(list(tmp_path.iterdir())) == 1
