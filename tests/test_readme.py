"""The README's example runs as printed, and its table of options is complete."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from torch import nn

from lightning_balq import BalancedQuantization

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_example_runs_and_ends_with_a_float_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    model, trainer = names["model"], names["trainer"]
    assert isinstance(model, nn.Module)
    assert type(model.get_submodule("net.3")) is nn.Conv2d
    assert trainer.callback_metrics["test_accuracy"] > 0.8  # type: ignore[attr-defined]


def test_example_comes_before_line_30() -> None:
    assert README[: README.index("```python")].count("\n") < 30


def test_every_argument_is_in_the_table_with_its_default() -> None:
    defaults = {"include": '["*"]', "exclude": "[]", "weight_bits_by_layer": "{}", "activation_bits_by_layer": "{}"}
    table = README[README.index("| argument |") : README.index("The paper's own setting")]
    for item in fields(BalancedQuantization):
        (row,) = [line for line in table.strip().splitlines() if f"`{item.name}`" in line.split("|")[1]]
        text = repr(item.default) if item.name not in defaults else defaults[item.name]
        assert f"`{text}`".replace("'", '"') in row.split("|")[2]
