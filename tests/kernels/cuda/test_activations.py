"""The activation kernel equals ``lightning_balq.functional`` bit for bit."""

import importlib

import pytest
import torch

from lightning_balq.functional import activation_fake_quantize
from tests.helpers import assert_equal, randn
from tests.kernels.cuda.device import device_or_skip, truncated

pytest.importorskip("triton", reason="the kernels need triton")
DEVICE = device_or_skip()
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
kernels = importlib.import_module("lightning_balq.kernels.cuda.activations")

SIGNED = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])


def statistics_of(x):
    return torch.stack([value.detach().float() for value in (x.min(), x.max(), x.double().abs().mean())])


def run(x, bits, r, signed):
    interval = {"range": torch.tensor(r), "signed": torch.tensor(signed)}
    levels, mask, statistics = kernels.activation_levels(
        x.to(DEVICE), bits, **{name: value.to(DEVICE) for name, value in interval.items()}
    )
    expected = activation_fake_quantize(x.requires_grad_(), bits, **interval)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    assert not levels.requires_grad
    if x.dtype == torch.bfloat16 and DEVICE.type == "cpu":
        assert_equal(levels, truncated(activation_fake_quantize(x.detach().float(), bits, **interval)))
    else:
        assert_equal(levels.cpu(), expected.detach())
    assert_equal(mask.cpu(), gradient != 0)
    assert levels.stride() == mask.stride() == expected.stride()
    return statistics.cpu()


@SIGNED
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("r", [0.0, 1e-45, 0.1, 1.0, 1.7, 1.5e38])
def test_levels_and_mask_equal_functional(r, bits, signed):
    run(torch.cat([randn(300), 1.1 * r * torch.linspace(-1, 1, 301)]), bits, r, signed)


@SIGNED
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_ties_round_to_even_as_in_functional(bits, signed):
    run(torch.arange(-600, 600) / 2, bits, float(2**bits - 1), signed)


@SIGNED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_equal_functional(dtype, signed):
    # The last two lie outside in float16, where 0.7 is larger, and on the bounds in float32, which is what is compared.
    x = torch.cat([torch.linspace(-2, 2, 999, dtype=torch.float64), torch.tensor([-0.7, 0.7], dtype=torch.float64)])
    x = x.to(dtype)
    assert_equal(run(x, 3, 0.7, signed), statistics_of(x))


@pytest.mark.parametrize(
    "x",
    [
        randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        randn(3, 4).t(),
        randn(2, 6, 4).transpose(1, 2),
        randn(4, 20)[:, ::2],
        randn(3, 1).expand(3, 4).detach(),
        torch.tensor(0.3),
        randn(1),
        randn(4097)[1:],
    ],
    ids=["channels_last", "transposed", "heads", "strided", "expanded", "scalar", "one", "unaligned"],
)
def test_any_layout_equals_functional_in_values_and_strides(x):
    run(x.clone(memory_format=torch.preserve_format) if x.dim() < 2 else x, 2, 1.0, True)


def test_empty_activation_has_no_levels_and_statistics_of_zero():
    assert_equal(run(torch.zeros(0, 3), 2, 1.0, False), torch.zeros(3))


@pytest.mark.parametrize("lanes", [1, 1024])
@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 20_000])
def test_statistics_are_those_of_the_activation(monkeypatch, length, lanes):
    monkeypatch.setattr(kernels, "_LANES", lanes)
    x = 3 + randn(length)
    assert_equal(run(x, 2, 1.0, False), statistics_of(x))


@pytest.mark.parametrize("sign", [-1, 1])
def test_statistics_of_one_sign_are_not_mixed_with_padding(sign):
    x = sign * (1 + randn(5).abs())
    assert_equal(run(x, 2, 1.0, True), statistics_of(x))


@SIGNED
def test_values_that_are_not_finite_equal_functional(signed):
    infinity = float("inf")
    assert run(torch.tensor([0.5, infinity]), 2, 1.0, signed)[1] == infinity
    assert run(torch.tensor([-infinity, 0.5]), 2, 1.0, signed)[0] == -infinity
    for length in [3, 5000]:
        x = torch.full((length,), 0.5)
        x[1] = float("nan")
        assert run(x, 2, 1.0, signed).isnan().all()


def test_a_step_never_waits_for_the_device():
    if DEVICE.type != "cuda":
        pytest.skip("only a CUDA device can be waited for")
    x, r, signed = randn(5000).to(DEVICE), torch.ones((), device=DEVICE), torch.zeros((), device=DEVICE).bool()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.activation_levels(x, 2, range=r, signed=signed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
