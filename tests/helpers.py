"""What several test files share: a small model, its quantization by hand, and a comparison of complete module state."""

import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_balq.nn import BalancedQuantizer, QuantizationConfig

ROOT = Path(__file__).parent.parent


def randn(*shape, seed=0, dtype=torch.float32):
    """Seeded Gaussian values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def everything(quantizer=None, **options):
    """Configuration that quantizes every layer, the first and the last included; 4-bit balanced weights by default."""
    return QuantizationConfig(quantizer or BalancedQuantizer(4), quantize_first_last=True, **options)


def tiny_model(seed=0):
    """Two convolutions and two linear layers for images of shape ``(N, 1, 8, 8)``, three classes."""
    torch.manual_seed(seed)
    layers = {
        "stem": nn.Conv2d(1, 4, 3),
        "relu": nn.ReLU(),
        "conv": nn.Conv2d(4, 8, 3, stride=2),
        "flat": nn.Flatten(),
        "hidden": nn.Linear(32, 16),
        "act": nn.ReLU(),
        "head": nn.Linear(16, 3),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def hand_quantized(model, weights):
    """Copy of a float model whose parameters named in ``weights`` are replaced by ``weights[name](parameter)``."""
    replaced = copy.deepcopy(model)
    parameters = dict(replaced.named_parameters())
    with torch.no_grad():
        for name, quantize in weights.items():
            parameters[name].copy_(quantize(parameters[name].detach().clone()))
    return replaced


def assert_equal(actual, expected):
    """Equal bit for bit, type and shape included; NaN equals NaN. Text and other plain values may be among them."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in actual.items():
            assert_equal(value, expected[key])
    elif actual is None or isinstance(actual, str) or (isinstance(actual, list) and _is_text(actual)):
        assert actual == expected
    else:
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def _is_text(values):
    return bool(values) and all(isinstance(value, str) for value in values)


def snapshot(model):
    """Complete state of a module tree, for ``==``: two are equal if nothing that anybody can see has changed.

    For each module: its class and its ``__dict__`` with the order of its keys; parameters, hooks and other objects by
    identity, tensors also by value.
    """
    return {name: (_Same(type(module)), _seen(module.__dict__)) for name, module in model.named_modules()}


class _Same:
    """Equal only to the very same object, which it keeps alive."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value is other.value

    def __hash__(self):
        return id(self.value)

    def __repr__(self):
        return f"<{type(self.value).__name__} at {id(self.value):x}>"


def _seen(value):
    if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
        return _Same(value)
    if isinstance(value, Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
        # A tensor that is no parameter, such as a pruned weight, may be made anew by every forward.
        identity = (_Same(value), value.requires_grad) if isinstance(value, nn.Parameter) else None
        return identity, str(value.dtype), tuple(value.shape), content
    if isinstance(value, Mapping):
        return type(value), [(key, _seen(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set):
        return type(value), [_seen(item) for item in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    if type(value).__module__.startswith("lightning_balq"):
        return _Same(value), _seen(vars(value))
    return _Same(value)


def run_python(script, *arguments):
    """Output of a script in a fresh interpreter at the root of the repository."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
