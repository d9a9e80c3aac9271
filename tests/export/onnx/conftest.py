"""Tests of ONNX files need onnx, onnxscript, onnxruntime and torch 2.8; those with OpenVINO need it, too."""

import importlib.util

import pytest
import torch
from packaging.version import Version

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
_IS_OLD = Version(torch.__version__) < Version("2.8")
collect_ignore_glob = ["test_*.py"] if _MISSING or _IS_OLD else []


@pytest.fixture(autouse=True, scope="session")
def always(torch_reads_its_operators_once):
    """Every test here exports."""
