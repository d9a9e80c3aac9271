"""Where the kernels run: a CUDA device or, where TRITON_INTERPRET=1 is set, Triton's interpreter on the CPU."""

import os

import pytest
import torch


def device_or_skip():
    """The device to test on; without one, skips the file that asks."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; test_interpreted.py runs these tests without one", allow_module_level=True)
    return torch.device("cuda")


def truncated(values):
    """float32 as bfloat16, rounded toward zero as the interpreter does; devices round to nearest, as torch does."""
    return (values.view(torch.int32) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)
