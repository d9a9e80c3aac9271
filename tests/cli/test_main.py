"""The command ``balq``: what it prints, what it writes, and its exit codes."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from lightning_balq.cli.main import main
from lightning_balq.export import load_packed, read_packed
from lightning_balq.functional import balanced_codes
from tests.callback.tiny import TinyModel
from tests.cli import tiny_models
from tests.cli.commands import SIZED, TINY, run, strictly
from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("plain", TINY),
        ("weights only", TINY),
        ("lsq", TINY),
        ("sized", SIZED),
        ("late", "tests.cli.tiny_models:Late"),
    ],
)
def test_packed_file_of_a_checkpoint_is_the_model_that_was_trained(fitted, name, factory, tmp_path, capsys):
    model, checkpoint = fitted(name)
    assert run("pack", checkpoint, tmp_path / "m.safetensors", "--model", factory) == 0
    assert "m.safetensors" in capsys.readouterr().out
    fresh = {"sized": lambda: tiny_models.Sized(5), "late": tiny_models.Late}.get(name, TinyModel)()
    fresh.configure_model()
    loaded = load_packed(tmp_path / "m.safetensors", fresh)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    arguments = ("verify", tmp_path / "m.safetensors", checkpoint, "--model", factory, "--shape", "4,1,8,8")
    assert run(*arguments) == 0
    assert "exact" in capsys.readouterr().out


def test_verify_reports_what_differs_and_exits_with_1(fitted, tmp_path, capsys):
    _, checkpoint = fitted("plain")
    packed = tmp_path / "m.safetensors"
    run("pack", checkpoint, packed, "--model", TINY)
    other = torch.load(checkpoint, weights_only=True)
    other["state_dict"]["net.3.weight"][0, 0, 0, 0] += 10
    torch.save(other, tmp_path / "other.ckpt")
    capsys.readouterr()
    arguments = ("verify", packed, tmp_path / "other.ckpt", "--model", TINY, "--shape", "4,1,8,8")
    assert run(*arguments) == 1
    assert "NOT EXACT" in capsys.readouterr().out
    assert run(*arguments, "--json") == 1
    found = strictly(capsys.readouterr().out)
    changed, same = found["layers"]
    assert (changed["name"], same["name"]) == ("net.3", "net.7")
    assert changed["weights"] > 0 and changed["outputs"] > 0 and same["weights"] == 0
    assert not found["exact"] and found["largest"] >= found["median"] > 0


def test_verify_takes_inputs_of_a_file(fitted, tmp_path, capsys):
    _, checkpoint = fitted("plain")
    packed = tmp_path / "m.safetensors"
    run("pack", checkpoint, packed, "--model", TINY)
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    torch.save(torch.from_numpy(x), tmp_path / "x.pt")
    torch.save({"x": torch.from_numpy(x)}, tmp_path / "d.pt")
    torch.save((torch.from_numpy(x),), tmp_path / "t.pt")
    for name in ("x.npy", "x.pt", "d.pt", "t.pt"):
        assert run("verify", packed, checkpoint, "--model", TINY, "--inputs", tmp_path / name, "--json") == 0
        assert strictly(capsys.readouterr().out.splitlines()[-1])["argmax_agreement"] == 1.0


def test_verify_takes_integers_and_outputs_of_any_form(tmp_path, capsys):
    from lightning_balq import BalancedQuantizer, quantize_
    from tests.helpers import everything

    torch.manual_seed(0)
    model = tiny_models.Tokens()
    quantize_(model, everything(BalancedQuantizer(2), include=["*", "type:Embedding"]))
    saved: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "c.ckpt")
    factory = ("--model", "tests.cli.tiny_models:Tokens")
    assert run("pack", tmp_path / "c.ckpt", tmp_path / "m", *factory) == 0
    capsys.readouterr()
    assert run("verify", tmp_path / "m", tmp_path / "c.ckpt", *factory, "--shape", "4,2", "--tokens", 11, "--json") == 0
    layers = strictly(capsys.readouterr().out)["layers"]
    assert [layer["name"] for layer in layers] == ["embedding", "rnn", "head"]


def test_inspect_says_the_same_of_checkpoint_model_and_packed_file(fitted, tmp_path, capsys):
    for name in ("plain", "lsq"):
        _, checkpoint = fitted(name)
        run("pack", checkpoint, tmp_path / "m.safetensors", "--model", TINY)
        capsys.readouterr()
        found = []
        for arguments in ((checkpoint,), (checkpoint, "--model", TINY), (tmp_path / "m.safetensors",)):
            assert run("inspect", *arguments, "--json") == 0
            found.append(strictly(capsys.readouterr().out))
        for summary in found:
            summary.pop("kind")
        assert found[0] == found[1] == found[2]
        conv, linear = found[0]["weights"]
        assert (conv["name"], conv["shape"], conv["weights"]) == ("net.3.weight", [8, 4, 3, 3], 288)
        assert conv["bytes"] == 288 * conv["bits"] // 8 + 4
        assert linear["activation_bits"] == {"input": {"plain": 4, "lsq": 3}[name]}
        assert 1.5 < linear["effective_bitwidth"] <= linear["bits"]
        assert found[0]["float_layers"] == {"net.0": "first layer", "net.9": "last layer"}
        held = sum(value.nbytes for value in read_packed(tmp_path / "m.safetensors").tensors.values())
        assert found[0]["other_bytes"] == held


def test_inspect_counts_the_codes_of_what_is_not_zero(fitted, tmp_path, capsys):
    checkpoint = torch.load(fitted("plain")[1], weights_only=True)
    weight = checkpoint["state_dict"]["net.7.weight"]
    weight[::2] = 0
    codes = balanced_codes(weight, 2)
    checkpoint["lightning_balq"]["zeros"] = {"net.7": ["weight"]}
    torch.save(checkpoint, tmp_path / "c.ckpt")
    for arguments in ((), ("--model", TINY)):
        assert run("inspect", tmp_path / "c.ckpt", "--json", *arguments) == 0
        counts = strictly(capsys.readouterr().out)["weights"][1]["counts"]
        assert counts == np.bincount(codes[weight != 0].numpy(), minlength=4).tolist()
        assert sum(counts) == weight.numel() // 2


def test_inspect_prints_a_table(fitted, capsys):
    assert run("inspect", fitted("plain")[1]) == 0
    text = capsys.readouterr().out
    assert "net.3.weight" in text and "first layer" in text and "everything else" in text


def test_inspect_says_that_a_network_is_not_quantized_yet(fitted, capsys):
    _, checkpoint = fitted("blending")
    assert run("inspect", checkpoint, "--json") == 0
    assert 0 < strictly(capsys.readouterr().out)["blend"] < 1
    assert run("pack", checkpoint, checkpoint.with_name("m"), "--model", TINY) == 2
    assert "the network is not quantized yet" in capsys.readouterr().err


def test_arguments_override_hyper_parameters(fitted, tmp_path, capsys):
    _, checkpoint = fitted("sized")
    arguments = ("pack", checkpoint, tmp_path / "m", "--model", SIZED, "--arguments")
    assert run(*arguments, '{"width": 4}') == 2
    assert "does not fit the model" in capsys.readouterr().err
    assert run(*arguments, '{"width": 5}') == 0
    assert run(*arguments[:-1], "--arguments.width", 5) == 0


def test_options_can_come_from_a_file(fitted, tmp_path, capsys):
    _, checkpoint = fitted("sized")
    options = tmp_path / "options.yaml"
    options.write_text(f"model: {SIZED}\narguments: {{width: 4}}\njson: true\n")
    assert run("pack", checkpoint, tmp_path / "m", "--config", options) == 2
    assert "does not fit the model" in capsys.readouterr().err
    assert run("pack", checkpoint, tmp_path / "m", "--config", options, "--arguments", '{"width": 5}') == 0
    assert strictly(capsys.readouterr().out)["weights"]
    options.write_text(f"model: {SIZED}\nmodle: a\n")
    with pytest.raises(SystemExit, match="2"):
        run("pack", checkpoint, tmp_path / "m", "--config", options)
    assert "modle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tests.callback.tiny", "expected `package.module:Name`, got 'tests.callback.tiny'"),
        ("tests.no_such:Model", "cannot be imported: No module named 'tests.no_such'"),
        ("tests.callback.tiny:Missing", "cannot be imported"),
        ("tests.cli.tiny_models:NUMBER", "must be a class or a function, got int"),
        ("tests.cli.tiny_models:failing", "cannot be called with the arguments []: RuntimeError('no weights at hand')"),
        ("tests.cli.tiny_models:nothing", "must make a torch.nn.Module, got int"),
        ("torch.nn:ReLU", "the model has no layer 'net.3', which is quantized in the checkpoint"),
    ],
)
def test_model_that_cannot_be_made_is_wrong_input(fitted, factory, message, tmp_path, capsys):
    assert run("pack", fitted("plain")[1], tmp_path / "m", "--model", factory) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_file_of_another_kind_is_wrong_input(fitted, tmp_path, capsys):
    _, checkpoint = fitted("plain")
    (tmp_path / "text").write_text("hello")
    torch.save({"a": 1}, tmp_path / "other.pt")
    torch.save({"state_dict": {}}, tmp_path / "float.ckpt")
    torch.save({"state_dict": {}, "x": np.dtype}, tmp_path / "code.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:-500])
    for name, message in {
        "text": "is not a whole safetensors file",
        "cut.ckpt": "is not a whole safetensors file",
        "other.pt": 'holds no "state_dict"',
        "float.ckpt": "is that of a float model",
        "code.ckpt": "cannot be loaded with `weights_only=True`",
        "gone": "No such file",
        ".": "Is a directory",
    }.items():
        assert run("inspect", tmp_path / name) == 2
        assert message in capsys.readouterr().err


def test_options_that_mean_nothing_are_wrong_input(fitted, tmp_path, capsys):
    _, checkpoint = fitted("plain")
    packed = tmp_path / "m"
    run("pack", checkpoint, packed, "--model", TINY)
    torch.save(3, tmp_path / "n.pt")
    verify = ("verify", packed, checkpoint, "--model", TINY)
    for arguments, message in {
        ("inspect", packed, "--model", TINY): "`--model` is for a checkpoint",
        ("inspect", checkpoint, "--arguments", '{"a": 1}'): "`--arguments` are those of `--model`",
        (*verify, "--inputs", tmp_path / "n.pt", "--tokens", 3): "`--tokens` is for random inputs",
        (*verify, "--inputs", tmp_path / "n.pt"): "must hold a tensor, or a tuple, list or dict of them, got int",
        (*verify, "--inputs", tmp_path / "gone.npy"): "No such file",
        (*verify, "--inputs", packed): "holds no tensors that can be loaded without executing it",
        (*verify, "--shape", "2,3"): "the model does not run on the inputs",
        ("verify", checkpoint, checkpoint, "--model", TINY, "--shape", "2"): "is not a whole safetensors file",
        ("verify", packed, checkpoint, "--model", "torch.nn:ReLU", "--shape", "2"): "the model has no layer 'net.3'",
    }.items():
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unpack"],
        ["pack", "a"],
        ["pack", "a", "b"],
        ["verify", "a", "b", "--model", "c"],
        ["verify", "a", "b", "--model", "c", "--shape", "1,x"],
        ["verify", "a", "b", "--model", "c", "--shape", "0"],
        ["pack", "a", "b", "--model", "c", "--arguments", "[1]"],
        ["pack", "a", "b", "--model", "c", "--arguments", "{"],
    ],
    ids=" ".join,
)
def test_command_line_that_cannot_be_understood_is_wrong_input(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: balq" in capsys.readouterr().err


def test_names_in_a_file_do_not_reach_the_terminal_as_commands(fitted, tmp_path, capsys):
    checkpoint = torch.load(fitted("plain")[1], weights_only=True)
    checkpoint["lightning_balq"]["float"] = {"\x1b[31mred[/bold]": "\x1b]0;title\x07"}
    torch.save(checkpoint, tmp_path / "c.ckpt")
    assert run("inspect", tmp_path / "c.ckpt") == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\x07" not in text and "red[/bold]" in text


def test_missing_safetensors_is_wrong_input_with_the_extra(fitted, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert run("pack", fitted("plain")[1], tmp_path / "m", "--model", TINY) == 2
    assert "pip install lightning-balq[export]" in capsys.readouterr().err


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "lightning_balq.cli", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.startswith("balq 0.")
