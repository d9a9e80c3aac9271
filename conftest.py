"""Names that every doctest may use without importing them."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

# Doctests import what they are in, and these files import triton.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["lightning_balq/kernels/cuda/*.py"]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, nn=nn)
