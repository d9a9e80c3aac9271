"""Arguments: plain typed values, refused at construction when bad, and round-tripped by LightningCLI."""

import inspect
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_balq import BalancedQuantization, DoReFaQuantization, LSQQuantization, UniformQuantization
from tests.callback.tiny import TinyModel, tiny_model

CALLBACKS = [BalancedQuantization, UniformQuantization, DoReFaQuantization, LSQQuantization]


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight_bits": 0}, ValueError, "`weight_bits` must be from 1 to 8.*got 0"),
        ({"weight_bits": 9}, ValueError, "`weight_bits` must be from 1 to 8.*got 9"),
        ({"weight_bits": 2.0}, TypeError, "`weight_bits` must be an int from 1 to 8, got 2.0 of type float"),
        ({"weight_bits": True}, TypeError, "`weight_bits` must be an int from 1 to 8, got True of type bool"),
        ({"activation_bits": 16}, ValueError, "`activation_bits` must be from 1 to 8.*got 16"),
        ({"activation_bits": "2"}, TypeError, "`activation_bits` must be an int from 1 to 8, got '2' of type str"),
        (
            {"activation_range": "max"},
            ValueError,
            r"`activation_range` must be one of \['lsq', 'observed', 'pact', 'unit'\], got 'max'",
        ),
        ({"activation_sign": None}, ValueError, "`activation_sign` must be one of .*, got None"),
        ({"include": "net.3"}, TypeError, "`include` must be a sequence of patterns .*, got 'net.3'"),
        ({"include": []}, ValueError, "`include` must hold at least one pattern, got none"),
        ({"exclude": [3]}, TypeError, r"`exclude` must be a sequence of patterns .*, got \[3\]"),
        ({"weight_bits_by_layer": ["net.3"]}, TypeError, "`weight_bits_by_layer` must map patterns to bits"),
        ({"weight_bits_by_layer": {"net.3": 0}}, ValueError, r"`weight_bits_by_layer\['net.3'\]` must be from 1 to 8"),
        (
            {"activation_bits_by_layer": {"net.3": "4"}},
            TypeError,
            r"`activation_bits_by_layer\['net.3'\]` must be an int",
        ),
        ({"quantize_first_last": 1}, TypeError, "`quantize_first_last` must be a bool, got 1"),
        ({"start_step": -1}, ValueError, "`start_step` must not be negative, got -1"),
        ({"blend_steps": 1.5}, TypeError, "`blend_steps` must be an int, got 1.5 of type float"),
        ({"record_every_n_steps": -5}, ValueError, "`record_every_n_steps` must not be negative, got -5"),
        ({"verbose": "no"}, TypeError, "`verbose` must be an int, got 'no' of type str"),
        ({"name": 3}, TypeError, "`name` must be a str or None, got 3 of type int"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_argument_is_refused_at_construction(
    callback: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        callback(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"center": "mode"}, r"`center` must be one of \['mean', 'median'\], got 'mode'"),
        ({"scale": "min"}, r"`scale` must be one of \['learned', 'least_squares', 'max', 'mean'\], got 'min'"),
        ({"center": np.ones(2)}, r"`center` must be one of \['mean', 'median'\], got array"),
        ({"scale": np.ones(2)}, r"`scale` must be one of .*, got array"),
        ({"granularity": "per_row"}, r"`granularity` must be one of \['per_channel', 'per_tensor'\], got 'per_row'"),
    ],
    ids=str,
)
def test_bad_option_of_the_quantizer_is_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BalancedQuantization(**arguments)


def test_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'bits'"):
        BalancedQuantization(bits=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("callback", CALLBACKS)
def test_every_argument_has_a_default_and_is_documented(callback: Any) -> None:
    parameters = inspect.signature(callback).parameters
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())
    documentation = f"{inspect.getdoc(BalancedQuantization)}\n{inspect.getdoc(callback)}"
    undocumented = [name for name in parameters if f"\n    {name}: " not in documentation]
    assert undocumented == []


def test_the_papers_setting_is_one_keyword_each_away() -> None:
    callback = BalancedQuantization(2, 2, scale="max", activation_range="unit")
    assert (callback.center, callback.granularity, callback.quantize_first_last) == ("mean", "per_tensor", False)


def test_repr_shows_every_argument() -> None:
    assert "weight_bits=3" in repr(BalancedQuantization(3)) and "center='mean'" in repr(BalancedQuantization(3))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "BalancedQuantization",
            {
                "weight_bits": 2, "activation_bits": 3,
                "center": "median", "scale": "max", "granularity": "per_channel",
                "activation_range": "unit", "activation_sign": "signed", "include": ["net.*"], "exclude": ["net.9"],
                "weight_bits_by_layer": {"net.3": 8}, "activation_bits_by_layer": {"net.3": 8},
                "quantize_first_last": True, "start_step": 3, "blend_steps": 4, "record_every_n_steps": 7,
                "verbose": 0, "name": "student",
            },
        ),
        ("UniformQuantization", {"weight_bits": 2, "activation_bits": None, "scale": "mean"}),
        ("DoReFaQuantization", {"weight_bits": 1, "granularity": "per_channel"}),
        ("BalancedQuantization", {"scale": "learned", "activation_range": "pact", "learned_lr_factor": 0.1}),
        ("LSQQuantization", {"grid": "symmetric", "granularity": "per_channel", "activation_range": "lsq"}),
    ],
)  # fmt: skip
def test_yaml_round_trips_through_the_lightning_cli(tmp_path: Any, name: str, arguments: dict[str, Any]) -> None:
    written = {"class_path": f"lightning_balq.{name}", "init_args": arguments}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [written], "logger": False, "accelerator": "cpu"}}))
    cli = LightningCLI(TinyModel, run=False, args=["--config", str(config)], save_config_callback=None)
    callback = next(item for item in cli.trainer.callbacks if type(item).__name__ == name)
    for key, value in arguments.items():
        present = getattr(callback, key)
        assert (list(present) if isinstance(present, tuple) else present) == value
    dumped = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))["trainer"]["callbacks"][0]
    assert {key: dumped["init_args"][key] for key in arguments} == arguments


def test_plan_says_what_fit_does_and_touches_nothing() -> None:
    model = tiny_model()
    before = {name: type(module) for name, module in model.named_modules()}
    plan = BalancedQuantization(2, 3, exclude=["net.7"]).plan(model)
    decided = [(layer.name, layer.weight_bits, layer.activation_bits, layer.reason) for layer in plan.layers]
    assert decided == [
        ("net.0", None, None, "first layer"),
        ("net.3", 2, 3, ""),
        ("net.7", None, None, "excluded by 'net.7'"),
        ("net.9", None, None, "last layer"),
    ]
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert "excluded by 'net.7'" in str(plan)
