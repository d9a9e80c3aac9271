"""``balq export`` and ``balq verify`` with ONNX files: what is written, what is reported, what is noticed."""

import sys

import pytest
import torch

from lightning_balq import BalancedQuantizer
from lightning_balq.cli.comparison import compare_exported
from lightning_balq.cli.engines import run_onnx
from lightning_balq.export.onnx import export_onnx
from tests.cli.commands import NEEDS_ONNX, TINY, run, strictly
from tests.export.zoo import MODELS, quantized

onnx = pytest.importorskip("onnx")
pytestmark = NEEDS_ONNX
IMAGES = ("--model", TINY, "--shape", "4,1,8,8")


def images(count=4, seed=1):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def changed(checkpoint, path, key, factor):
    """Checkpoint with one weight multiplied by a factor, which changes its scale and none of its codes."""
    other = torch.load(checkpoint, weights_only=True)
    other["state_dict"][key] *= factor
    torch.save(other, path)
    return path


@pytest.fixture(scope="module")
def file(fitted, tmp_path_factory):
    """ONNX file of the plain model, in integers where that can be."""
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    arguments = ("--mode", "integer", "--integer-convolutions", "--dynamic", 0)
    assert run("export", fitted("plain")[1], path, *IMAGES, *arguments) == 0
    return path


@torch.no_grad()
def test_exported_file_is_the_model_that_was_trained(fitted, tmp_path, capsys):
    from tests.export.onnx.runtimes import run_onnx as run_file

    model, checkpoint = fitted("lsq")
    path = tmp_path / "m.onnx"
    names = ("--input-names", "image", "--output-names", "logits")
    assert run("export", checkpoint, path, *IMAGES, *names, "--dynamic", 0, "--json") == 0
    report = strictly(capsys.readouterr().out)
    assert (report["mode"], report["size"], report["path"]) == ("portable", path.stat().st_size, str(path))
    assert [weight["name"] for weight in report["weights"]] == ["net.3.weight", "net.7.weight"]
    graph = onnx.load(path).graph
    assert [graph.input[0].name, graph.output[0].name] == ["image", "logits"]
    for count in (4, 1, 7):
        (found,) = run_file(path, [images(count)])
        # Sums of about a hundred products of magnitude 1, in another order.
        torch.testing.assert_close(found, model(images(count)), rtol=1e-6, atol=1e-5)


def test_export_prints_what_became_of_each_weight(fitted, tmp_path, capsys):
    assert run("export", fitted("plain")[1], tmp_path / "m.onnx", *IMAGES, "--mode", "integer") == 0
    text = capsys.readouterr().out
    assert "m.onnx: " in text and "net.7.weight" in text and "int8" in text
    assert "convolutions in integers were not asked for" in text


def test_verify_finds_the_file_to_agree(fitted, file, capsys):
    arguments = ("verify", file, fitted("plain")[1], "--model", TINY, "--shape", "50,1,8,8")
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert ": agrees" in text and "rule: the median difference of each layer is at most 1e-05" in text
    assert run(*arguments, "--json") == 0
    found = strictly(capsys.readouterr().out)
    assert found["passed"] and found["note"] == "" and found["argmax_agreement"] == 1.0
    assert [layer["name"] for layer in found["layers"]] == ["net.3", "net.7"]
    assert all(layer["weights"] is None for layer in found["layers"])
    assert all(layer["outputs"] <= 1e-6 * layer["magnitude"] for layer in found["layers"])
    assert found["median"] <= 1e-6 * found["magnitude"]


def test_verify_names_the_layer_that_differs(fitted, file, tmp_path, capsys):
    other = changed(fitted("plain")[1], tmp_path / "other.ckpt", "net.3.weight", 1.01)
    arguments = ("verify", file, other, "--model", TINY, "--shape", "50,1,8,8")
    assert run(*arguments) == 1
    assert ": DIFFERS" in capsys.readouterr().out
    assert run(*arguments, "--json") == 1
    found = strictly(capsys.readouterr().out)
    wrong, right = found["layers"]
    assert wrong["median"] == pytest.approx(0.01 * wrong["magnitude"], rel=1)
    assert right["outputs"] <= 1e-6 * right["magnitude"]  # on the inputs that it got in the file
    assert not found["passed"] and not found["exact"]


def test_verify_writes_what_is_not_finite_as_text(fitted, file, tmp_path, capsys):
    model = onnx.load(file)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if output == name else output for output in node.output]
    model.graph.initializer.append(onnx.helper.make_tensor("nothing", onnx.TensorProto.FLOAT, [], [0.0]))
    model.graph.node.append(onnx.helper.make_node("Div", ["before", "nothing"], [name]))
    onnx.save(model, tmp_path / "m.onnx")
    assert run("verify", tmp_path / "m.onnx", fitted("plain")[1], *IMAGES, "--json") == 1
    found = strictly(capsys.readouterr().out)
    assert found["largest"] == found["median"] == "Infinity"


@pytest.mark.parametrize("mode", ["portable", "integer"])
def test_layers_of_every_kind_are_compared(mode, tmp_path):
    for name in ("lstm", "encoder", "attention of other widths", "self-attention", "tied", "twice", "lstm cell"):
        model, arguments = quantized(name, BalancedQuantizer(3, scale="mean"), activation_bits=4)
        export_onnx(model, tmp_path / "m.onnx", arguments, mode=mode)
        found = compare_exported(model, run_onnx(tmp_path / "m.onnx", tuple(arguments), {}), tuple(arguments), {})
        assert found.agrees and found.note == "", name
        # Sums of about ten products in another order; in recurrent layers, over a few steps.
        assert all(layer.outputs <= 2e-6 * layer.magnitude for layer in found.layers), name


def test_inputs_of_a_file_may_be_keywords(tmp_path):
    _, arguments = MODELS["attention"]
    keywords = dict(zip(("query", "key", "value"), arguments, strict=True))
    model, _ = quantized("attention")
    export_onnx(model, tmp_path / "m.onnx", keywords)
    turned = dict(reversed(keywords.items()))
    assert compare_exported(model, run_onnx(tmp_path / "m.onnx", (), turned), (), turned).agrees


def test_file_that_names_no_values_is_compared_as_a_whole(fitted, file, tmp_path, capsys):
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "m.onnx")
    assert run("verify", tmp_path / "m.onnx", fitted("plain")[1], *IMAGES, "--json") == 0
    found = strictly(capsys.readouterr().out)
    assert [layer["outputs"] for layer in found["layers"]] == [None, None]
    assert found["note"] == "not compared: net.3, net.7; the file does not name the values of all of their calls"


def test_file_that_is_not_what_it_says_is_wrong_input(fitted, file, tmp_path, capsys):
    def with_layers(name, text):
        model = onnx.load(file)
        onnx.helper.set_model_props(model, {"layers": text})
        onnx.save(model, tmp_path / name)

    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:-200])
    with_layers("odd.onnx", "[1]")
    with_layers("value.onnx", '[["net.3", {}, {"0": "gone"}]]')
    with_layers("layer.onnx", '[["net.99", {"0": "x"}, {"0": "x"}]]')
    for name, message in {
        "text.onnx": "is not a whole ONNX file",
        "cut.onnx": "is not a whole ONNX file",
        "odd.onnx": "the metadata do not tell layers apart",
        "value.onnx": "holds no value 'gone', which its metadata name",
        "layer.onnx": "tells of a layer 'net.99', and the model has none of that name",
        "gone.onnx": "No such file",
    }.items():
        assert run("verify", tmp_path / name, fitted("plain")[1], *IMAGES) == 2
        assert message in capsys.readouterr().err


def test_inputs_that_the_file_does_not_take_are_wrong_input(fitted, file, tmp_path, capsys):
    x = images()
    torch.save((x, x), tmp_path / "two.pt")
    torch.save(x.double(), tmp_path / "double.pt")
    for name, message in {
        "two.pt": "takes 1 tensors, ['x'], and the inputs hold 2",
        "double.pt": "does not run",
    }.items():
        assert run("verify", file, fitted("plain")[1], "--model", TINY, "--inputs", tmp_path / name) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_absent_engine_is_wrong_input_with_the_extra(package, fitted, file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnxruntime":
        arguments = ("verify", file, fitted("plain")[1], *IMAGES)
    else:
        arguments = ("export", fitted("plain")[1], tmp_path / "m.onnx", *IMAGES)
    assert run(*arguments) == 2
    text = capsys.readouterr().err
    assert f"the package {package}" in text and "pip install lightning-balq[onnx]" in text
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_the_file_that_was_there(fitted, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")
    assert run("export", fitted("plain")[1], path, "--model", TINY, "--shape", "2,3") == 2
    assert "the model cannot be exported" in capsys.readouterr().err
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_options_that_mean_nothing_are_wrong_input(fitted, tmp_path, capsys):
    checkpoint = fitted("plain")[1]
    for name, arguments, message in (
        ("m.safetensors", (), "expected an output called *.onnx or *.pt2"),
        ("m.pt2", ("--mode", "integer"), "`--mode` is for files called *.onnx"),
        ("m.pt2", ("--output-names", "y"), "`--output-names` is for files called *.onnx"),
        ("m.onnx", ("--integer-convolutions",), "`--integer-convolutions` needs `--mode integer`"),
        ("m.onnx", ("--dynamic", "4"), "`--dynamic 4` needs inputs of at least 5 dimensions"),
        ("m.onnx", ("--dynamic", "0,1"), "`--dynamic 1` needs inputs of at least 2 dimensions whose size there is 2"),
    ):
        assert run("export", checkpoint, tmp_path / name, *IMAGES, *arguments) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
