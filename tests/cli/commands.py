"""The command, and what it is called with."""

import importlib.util
import json
from typing import Any

import pytest
import torch
from packaging.version import Version

from lightning_balq.cli.main import main

TINY, SIZED = "tests.callback.tiny:TinyModel", "tests.cli.tiny_models:Sized"

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
MISSING += ["torch 2.8"] if Version(torch.__version__) < Version("2.8") else []
NEEDS_ONNX = [
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed"),
    pytest.mark.usefixtures("torch_reads_its_operators_once"),
]


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def strictly(text: str) -> Any:
    """What JSON stands for; Infinity and NaN are none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
