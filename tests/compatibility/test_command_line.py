"""LightningCLI: every argument from YAML and from the command line, and nothing that a user did not ask for."""

import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI

from lightning_balq import BalancedQuantization, DoReFaQuantization, LSQQuantization, UniformQuantization
from lightning_balq.callback import QuantizationCallback
from tests.callback.tiny import TinyModel
from tests.helpers import ROOT

CALLBACKS = [BalancedQuantization, UniformQuantization, DoReFaQuantization, LSQQuantization]

RECURRENT = {
    "class_path": "lightning_balq.nn.UniformQuantizer",
    "init_args": {"bits": 5, "scale": "mean", "granularity": "per_channel"},
}
VALUES: dict[str, Any] = {
    "weight_bits": 2, "activation_bits": 3, "recurrent": RECURRENT, "activation_range": "unit",
    "activation_sign": "signed", "include": ["net.*", "type:Conv2d"], "exclude": ["net.9"],
    "weight_bits_by_layer": {"net.3": 8}, "activation_bits_by_layer": {"net.3": 7}, "quantize_first_last": True,
    "learned_lr_factor": 0.5, "start_step": 3, "blend_steps": 4, "best_when_quantized": False, "reuse_quantized": False,
    "non_finite": "warn", "record_every_n_steps": 7, "verbose": 0, "name": "student", "center": "median",
    "scale": "mean", "granularity": "per_channel", "grid": "symmetric",
}  # fmt: skip
"""A value other than the default for every argument of any callback."""


def arguments(callback: Any) -> dict[str, Any]:
    """The arguments of a callback with values that are not their defaults."""
    parameters = inspect.signature(callback).parameters
    assert set(parameters) <= set(VALUES)  # an argument was added: give it a value above
    given = {name: VALUES[name] for name in parameters}
    assert all(given[name] != parameter.default for name, parameter in parameters.items())
    return given


def parse(*args: str) -> LightningCLI:
    return LightningCLI(TinyModel, run=False, args=[*args, *PLAIN], save_config_callback=None)


PLAIN = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def seen(cli: LightningCLI) -> dict[str, Any]:
    """Values of the arguments of the callback that was built, as a file would say them."""
    (callback,) = [each for each in cli.trainer.callbacks if isinstance(each, QuantizationCallback)]
    values = {name: getattr(callback, name) for name in inspect.signature(type(callback)).parameters}
    return {name: as_written(value) for name, value in values.items()}


def as_written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    if type(value).__module__.startswith("lightning_balq"):
        return {"class_path": f"lightning_balq.nn.{type(value).__name__}", "init_args": vars(value)}
    return value


def flags(callback: Any, values: dict[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    chosen = [f"--trainer.callbacks.{name}={text(value)}" for name, value in values.items()]
    return [f"--trainer.callbacks+=lightning_balq.{callback.__name__}", *chosen]


@pytest.mark.parametrize("callback", CALLBACKS)
def test_every_argument_can_be_given_in_yaml(tmp_path: Path, callback: Any) -> None:
    written = {"class_path": f"lightning_balq.{callback.__name__}", "init_args": arguments(callback)}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [written]}}))
    assert seen(parse("--config", str(path))) == arguments(callback)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_every_argument_can_be_given_on_the_command_line(callback: Any) -> None:
    assert seen(parse(*flags(callback, arguments(callback)))) == arguments(callback)


def test_a_command_line_changes_a_file_and_leaves_the_rest(tmp_path: Path) -> None:
    written = {"class_path": "lightning_balq.BalancedQuantization", "init_args": {"weight_bits": 2, "center": "median"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [written]}}))
    values = seen(parse("--config", str(path), "--trainer.callbacks.weight_bits=5"))
    assert (values["weight_bits"], values["center"], values["activation_bits"]) == (5, "median", None)


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("given", ["defaults", "all"])
def test_a_printed_configuration_gives_the_same_callback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], callback: Any, given: str
) -> None:
    chosen = flags(callback, arguments(callback) if given == "all" else {})
    expected = seen(parse(*chosen))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        parse(*chosen, "--print_config")
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert seen(parse("--config", str(path))) == expected


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weight_bits", "two", "two"),
        ("activation_bits", "2.5", "2.5"),
        ("scale", "min", "least_squares"),
        ("center", "mode", "median"),
        ("granularity", "per_row", "per_channel"),
        ("activation_range", "max", "observed"),
        ("activation_sign", "both", "unsigned"),
        ("non_finite", "ignore", "warn"),
        ("quantize_first_last", "perhaps", "perhaps"),
        ("include", "3", "include"),
        ("weight_bits_by_layer", "[8]", "weight_bits_by_layer"),
        ("recurrent", "lightning_balq.nn.Nothing", "Nothing"),
        ("bits", "2", "bits"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(
    capsys: pytest.CaptureFixture[str], name: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*flags(BalancedQuantization, {name: value}))
    error = capsys.readouterr().err
    assert name in error and said in error


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_bits", 9, "`weight_bits` must be from 1 to 8.*got 9"),
        ("start_step", -1, "`start_step` must not be negative, got -1"),
        ("learned_lr_factor", 0.0, "`learned_lr_factor` must be a positive number, got 0.0"),
        ("include", [], "`include` must hold at least one pattern"),
        ("weight_bits_by_layer", {"net.3": 0}, r"`weight_bits_by_layer\['net.3'\]` must be from 1 to 8"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_trained(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(*flags(BalancedQuantization, {name: value}))


def test_installing_the_package_adds_no_callback_to_a_trainer() -> None:
    """There is no entry point but the command, so that a Trainer quantizes only where the user says so."""
    points = importlib.metadata.distribution("lightning-balq").entry_points
    assert {(point.group, point.name) for point in points} <= {("console_scripts", "balq")}
    assert "entry-points" not in (ROOT / "pyproject.toml").read_text()
    callbacks: list[Any] = Trainer(accelerator="cpu", logger=False).callbacks  # type: ignore[attr-defined]
    assert callbacks and not [each for each in callbacks if type(each).__module__.startswith("lightning_balq")]
