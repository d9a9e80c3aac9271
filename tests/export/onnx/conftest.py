"""Tests of ONNX files need onnx, onnxscript, onnxruntime and torch 2.8; those with OpenVINO need it, too."""

import functools
import importlib.util

import pytest
import torch
from packaging.version import Version

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
_IS_OLD = Version(torch.__version__) < Version("2.8")
collect_ignore_glob = ["test_*.py"] if _MISSING or _IS_OLD else []


@pytest.fixture(autouse=True, scope="session")
def torch_reads_its_operators_once():
    """Every export of torch translates its whole library of operators, which takes longer than all else."""
    from torch.onnx._internal.exporter import _registration

    earlier = _registration.ONNXRegistry.__dict__["from_torchlib"]
    read = functools.cache(_registration.ONNXRegistry.from_torchlib)
    _registration.ONNXRegistry.from_torchlib = staticmethod(read)
    yield
    _registration.ONNXRegistry.from_torchlib = earlier
