"""``balq export`` and ``balq verify`` with files of ``torch.export``: the deploy model, and each of its int8 layers."""

import os

import pytest
import torch
from torch import nn

from lightning_balq import BalancedQuantizer, quantize_
from lightning_balq.cli.comparison import compare_exported
from lightning_balq.cli.engines import run_program
from lightning_balq.cli.exporting import write_program
from tests.cli.commands import TINY, run, strictly
from tests.export.zoo import observe, quantized
from tests.helpers import everything, randn

FREE = hasattr(torch.export.Dim, "DYNAMIC")  # torch 2.6 and newer
COUNT = 50 if FREE else 4
IMAGES = ("--model", TINY, "--shape", "4,1,8,8")


@pytest.fixture(scope="module")
def file(fitted, tmp_path_factory):
    """File of the plain model, for any number of images where torch can have it."""
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    assert run("export", fitted("plain")[1], path, *IMAGES, *(["--dynamic", 0] if FREE else [])) == 0
    return path


@torch.no_grad()
def test_exported_file_is_the_model_that_was_trained(fitted, file):
    model, _ = fitted("plain")
    program = torch.export.load(str(file))
    assert {value.dtype for key, value in program.state_dict.items() if key.endswith("codes")} == {torch.int8}
    for count in (4, COUNT):
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        # Batch norm is folded into a scale and a bias, which rounds otherwise.
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


def test_export_says_what_became_of_each_layer(fitted, tmp_path, capsys):
    assert run("export", fitted("plain")[1], tmp_path / "m.pt2", *IMAGES, "--json") == 0
    report = strictly(capsys.readouterr().out)
    assert report["size"] == (tmp_path / "m.pt2").stat().st_size
    assert {layer["name"]: (layer["int8"], layer["norm"], layer["reason"]) for layer in report["layers"]} == {
        "net.0": (False, "", "first layer"),
        "net.3": (True, "net.4", ""),
        "net.7": (True, "", ""),
        "net.9": (False, "", "last layer"),
    }
    assert run("export", fitted("plain")[1], tmp_path / "m.pt2", *IMAGES) == 0
    text = capsys.readouterr().out
    assert "net.4" in text and "int8" in text and "last layer" in text


def test_verify_compares_layers_with_their_batch_norms(fitted, file, tmp_path, capsys):
    arguments = ("--model", TINY, "--shape", f"{COUNT},1,8,8")
    assert run("verify", file, fitted("plain")[1], *arguments, "--json") == 0
    found = strictly(capsys.readouterr().out)
    assert found["passed"] and found["note"] == ""
    assert [layer["name"] for layer in found["layers"]] == ["net.3", "net.7"]
    assert all(layer["outputs"] <= 1e-6 * layer["magnitude"] for layer in found["layers"])

    other = torch.load(fitted("plain")[1], weights_only=True)
    other["state_dict"]["net.4.weight"] *= 1.01  # the batch norm of the first
    torch.save(other, tmp_path / "other.ckpt")
    assert run("verify", file, tmp_path / "other.ckpt", *arguments, "--json") == 1
    wrong, right = strictly(capsys.readouterr().out)["layers"]
    assert wrong["median"] > 1e-3 * wrong["magnitude"] and right["outputs"] <= 1e-6 * right["magnitude"]


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "norms between", "twice", "encoder", "tied", "lstm"])
def test_layers_in_int8_are_compared(name, tmp_path):
    model, arguments = quantized(name, BalancedQuantizer(3), activation_bits=4)
    report = write_program(model, tmp_path / "m.pt2", tuple(arguments), {}, dynamic=())
    found = compare_exported(model, run_program(tmp_path / "m.pt2", tuple(arguments), {}, model), tuple(arguments), {})
    integer = {layer.name for layer in report.int8}
    assert found.agrees
    assert {layer.name for layer in found.layers if layer.outputs is not None} == integer
    assert bool(found.note) == (len(integer) < len(found.layers))
    # Sums of about ten products, with batch norm folded.
    assert all(layer.outputs <= 1e-6 * layer.magnitude for layer in found.layers if layer.outputs is not None)


class Again(nn.Module):
    """One layer twice, under one name, and a residual beside, for which torch names the calls apart."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        x = x.relu()
        return x + self.layer(self.layer(x).relu())


def test_both_calls_of_a_layer_are_compared(tmp_path):
    torch.manual_seed(0)
    model, x = Again(), randn(3, 6)
    quantize_(model, everything(BalancedQuantizer(3), activation_bits=4))
    observe(model, [x])
    write_program(model.eval(), tmp_path / "m.pt2", (x,), {}, dynamic=())
    exported = run_program(tmp_path / "m.pt2", (x,), {}, model)
    assert [call.layer for call in exported.calls] == ["layer", "layer"]
    comparison = compare_exported(model, exported, (x,), {})
    assert comparison.agrees and comparison.note == ""


def test_failed_write_leaves_the_file_that_was_there(fitted, tmp_path, capsys, monkeypatch):
    path = tmp_path / "m.pt2"
    path.write_bytes(b"earlier")

    def fill_the_disk(program, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", fill_the_disk)
    assert run("export", fitted("plain")[1], path, *IMAGES) == 2
    assert "disk full" in capsys.readouterr().err
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["m.pt2"]


def test_file_of_another_kind_is_wrong_input(fitted, file, tmp_path, capsys):
    (tmp_path / "text.pt2").write_text("hello")
    (tmp_path / "cut.pt2").write_bytes(file.read_bytes()[:-500])
    for path, message in {
        tmp_path / "text.pt2": "is not whole",
        tmp_path / "cut.pt2": "is not whole",
        tmp_path / "gone.pt2": "No such file",
    }.items():
        assert run("verify", path, fitted("plain")[1], *IMAGES) == 2
        assert message in capsys.readouterr().err
    assert run("verify", file, fitted("plain")[1], "--model", TINY, "--shape", "4,2,8,8") == 2
    assert "does not run on the inputs" in capsys.readouterr().err
