"""Compiled quantizer of activations: the plain form's results, gradients included, in one pass each way."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from lightning_balq import functional
from lightning_balq.kernels import cpu, gpu
from lightning_balq.kernels.activations import activation_fake_quantize
from tests.helpers import assert_equal, randn

RANGES = [(1.0, False), (1.3, True), (0.0, False), (0.0, True)]


@pytest.fixture(autouse=True)
def compiled():
    if cpu.library() is None:
        pytest.skip("needs a C++ compiler")


def both_forms(x, bits, value, signed, spread=1.5):
    """Levels, gradient and observation of the compiled and of the plain form."""
    options = {"range": torch.tensor(value), "signed": torch.tensor(signed)}
    upstream = randn(*x.shape, seed=1).to(x.dtype)
    results = []
    for quantize in (
        lambda given: activation_fake_quantize(given, bits, **options, spread=spread),
        lambda given: (
            functional.activation_fake_quantize(given, bits, **options),
            functional.activation_observation(given, spread),
        ),
    ):
        given = x.detach().clone().requires_grad_()
        levels, observation = quantize(given)
        levels.backward(upstream)
        results.append((levels.detach(), given.grad, observation))
    return results


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5, 4, 4), (20_001,)], ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_gradients_and_observations_equal_those_of_the_plain_form(shape, bits):
    for value, signed in RANGES:
        for spread in (0.5, 1.5, math.inf):
            actual, expected = both_forms(randn(*shape) * 1.5, bits, value, signed, spread)
            assert_equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_default_type_changes_no_observation(dtype):
    options = {"range": torch.tensor(1.0), "signed": torch.tensor(True), "spread": 1.5}
    x = randn(100)
    expected = activation_fake_quantize(x, 2, **options)[1]
    torch.set_default_dtype(dtype)
    try:
        assert_equal(activation_fake_quantize(x, 2, **options)[1], expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradient_at_a_bound_that_the_type_cannot_hold_equals_the_plain_form(dtype):
    x = torch.tensor([0.998, 1.0, 1.004, -1.0, -1.004]).to(dtype)
    for value in (1.001, 0.999):
        actual, expected = both_forms(x, 2, value, signed=True)
        assert_equal(actual, expected)


def test_ties_and_ends_of_the_interval_equal_the_plain_form():
    x = torch.tensor([-1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.0 + 2**-23, -1.0 - 2**-23, 1e-45, 3e38, -3e38])
    for (value, signed), bits in itertools.product([(1.0, False), (1.0, True)], (1, 2, 8)):
        actual, expected = both_forms(x, bits, value, signed)
        assert_equal(actual, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("length", [5, 20_000])
def test_values_that_are_not_finite_give_what_the_plain_form_gives(value, length):
    x = randn(length)
    x[3] = value
    actual, expected = both_forms(x, 3, 1.0, True)
    assert_equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_in_float32_and_kept(dtype):
    actual, expected = both_forms(randn(11, 13, dtype=dtype), 4, 1.0, True)
    assert_equal(actual, expected)


@pytest.mark.parametrize(
    "x",
    [
        randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        randn(2, 3, 4, 5, 2).to(memory_format=torch.channels_last_3d),
        randn(4, 6).t(),
        randn(4, 6)[:, ::2],
        randn(1, 6).expand(4, 6),
        torch.tensor(0.3),
    ],
    ids=["channels_last", "channels_last_3d", "transposed", "with gaps", "expanded", "scalar"],
)
def test_any_layout_gives_the_values_of_a_contiguous_activation(x):
    options = {"range": torch.tensor(1.0), "signed": torch.tensor(False)}
    levels, _ = activation_fake_quantize(x, 2, **options)
    assert_equal(levels, functional.activation_fake_quantize(x.contiguous(), 2, **options))
    for gradient in (torch.ones_like(x), torch.ones(()).expand(x.shape)):
        given = x.detach().requires_grad_()
        levels, _ = activation_fake_quantize(given, 2, **options)
        levels.backward(gradient)
        assert_equal(given.grad.contiguous(), ((x >= 0) & (x <= 1)).float().contiguous())


def test_channels_last_is_kept():
    x = randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    levels, _ = activation_fake_quantize(x, 2, range=torch.tensor(1.0), signed=torch.tensor(False))
    assert levels.is_contiguous(memory_format=torch.channels_last)


def test_backward_keeps_one_byte_for_each_value():
    kept = []

    def keep(tensor):
        kept.append(tensor.nbytes)
        return tensor

    x = randn(1000).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        activation_fake_quantize(x, 2, range=torch.tensor(1.0), signed=torch.tensor(True), spread=2.0)
    assert sum(kept) == 1000


def test_nothing_is_kept_and_no_mask_made_without_gradient():
    range_, signed = torch.tensor(1.0), torch.tensor(True)
    quantized = cpu.activation(randn(9), 2, range_, signed, with_mask=False, spread=None)
    assert quantized.mask is None and quantized.observation is None
    levels, observation = activation_fake_quantize(randn(9), 2, range=range_, signed=signed)
    assert levels.grad_fn is None and observation is None


def test_second_derivative_of_what_follows_passes():
    x = torch.tensor([-2.0, 0.4, 0.9], requires_grad=True)
    levels, _ = activation_fake_quantize(x, 8, range=torch.tensor(1.0), signed=torch.tensor(False))
    (first,) = torch.autograd.grad((levels**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_equal(second, 6 * levels.detach() * torch.tensor([0.0, 1.0, 1.0]))


def test_compiled_model_computes_the_same_in_one_graph():
    range_, signed = torch.tensor(1.0), torch.tensor(True)

    def model(x):
        return activation_fake_quantize(x, 3, range=range_, signed=signed)[0].sin()

    x = randn(50).requires_grad_()
    result = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert_equal(result, model(x))


def test_tangents_of_forward_mode_pass():
    x, tangent = torch.tensor([-2.0, 0.4, 0.9]), torch.tensor([1.0, 2.0, 3.0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        levels, _ = activation_fake_quantize(dual, 2, range=torch.tensor(1.0), signed=torch.tensor(False))
        assert_equal(torch.autograd.forward_ad.unpack_dual(levels).tangent, torch.tensor([0.0, 2.0, 3.0]))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("spread", [None, 0.5, 4.0])
def test_what_the_kernel_of_a_gpu_finds_is_what_the_plain_form_gives(monkeypatch, signed, spread):
    def activation_levels(x, bits, *, range, signed):
        assert not x.requires_grad
        levels = functional.activation_fake_quantize(x, bits, range=range, signed=signed)
        mask = (x >= torch.where(signed, -range, 0.0)) & (x <= range)
        return levels, mask, torch.stack([x.min(), x.max(), x.abs().mean()])

    kernels = SimpleNamespace(activation_levels=activation_levels)
    options = {"range": torch.tensor(0.7), "signed": torch.tensor(signed)}
    given, plain = randn(5, 8).requires_grad_(), randn(5, 8).requires_grad_()
    expected = functional.activation_fake_quantize(plain, 2, **options)
    observed = None if spread is None else functional.activation_observation(plain, spread)
    monkeypatch.setattr(gpu, "activation_kernels", lambda x: kernels)
    levels, observation = activation_fake_quantize(given, 2, **options, spread=spread)
    for result in (levels, expected):
        result.backward(randn(5, 8, seed=1))
    assert_equal([levels.detach(), given.grad], [expected.detach(), plain.grad])
    assert_equal(observation, observed)
    assert not activation_fake_quantize(given.detach(), 2, **options, spread=None)[0].requires_grad
