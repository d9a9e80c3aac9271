"""Compiled quantizers of weights: the plain form's results, however many values, threads and bits."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from lightning_balq import BalancedQuantizer, functional
from lightning_balq.kernels import cpu, gpu
from lightning_balq.kernels.weights import (
    balanced_codes,
    balanced_levels,
    balanced_levels_of_all,
    uniform_codes,
    uniform_levels,
    uniform_levels_of_all,
)
from tests.helpers import assert_equal, randn

CENTERS = ["mean", "median"]
SCALES = ["max", "mean", "least_squares"]
GRANULARITIES = ["per_tensor", "per_channel"]
BITS = range(1, 9)

# One value, less and more than a vector, a piece and the length up to which all values are collected.
LENGTHS = [1, 7, 8, 9, 300, 8191, 8193, 40_000]


@pytest.fixture(autouse=True)
def compiled():
    if cpu.library() is None:
        pytest.skip("needs a C++ compiler")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["gaussian", "student_t3", "positive", "ties"])
@pytest.mark.parametrize("length", LENGTHS)
def test_balanced_codes_equal_those_of_the_plain_form(draw, kind, length):
    weight = torch.from_numpy(draw(kind, (length,)))
    for bits, center in itertools.product(BITS, CENTERS):
        expected = functional.balanced_codes(weight, bits, center=center)
        assert_equal(balanced_codes(weight, bits, center=center, granularity="per_tensor"), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student_t3"])
def test_guesses_of_where_thresholds_lie_are_put_right(draw, kind, seed):
    # Long enough that thresholds are guessed from counts first; in every draw some lie elsewhere than guessed.
    weight = torch.from_numpy(draw(kind, (60_000,), seed))
    for bits, center in itertools.product((2, 5, 6, 7, 8), CENTERS):
        expected = functional.balanced_codes(weight, bits, center=center)
        assert_equal(balanced_codes(weight, bits, center=center, granularity="per_tensor"), expected)


@pytest.mark.parametrize("scale", [*SCALES, "unit"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(4, 1), (6, 5, 3, 3), (3, 20_000), (300, 40)], ids=str)
def test_levels_equal_those_of_the_plain_form(draw, shape, granularity, scale):
    weight = torch.from_numpy(draw("gaussian", shape))
    options = {"scale": scale, "granularity": granularity}
    for bits in BITS:
        if scale != "unit":
            expected = functional.uniform_fake_quantize(weight, bits, **options)
            assert_levels_equal(uniform_levels(weight, bits, **options), expected, scale)
        for center in CENTERS:
            assert_levels_equal(
                balanced_levels(weight, bits, center=center, **options),
                functional.balanced_fake_quantize(weight, bits, center=center, **options),
                scale,
            )


def assert_levels_equal(actual, expected, scale):
    # Sums of the fit in float64 are added in another order: the scale may round to the neighbouring float32, and then
    # its multiples to the next but one.
    tolerance = 2.0**-22 if scale == "least_squares" else 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_constant_rows_have_the_highest_code(bits):
    # 0.1 is not a sum of few powers of two: a mean rounded up by one place would leave all values below it.
    weight = torch.tensor([0.1, -0.1, 1e-30, 0.0, 3e38])[:, None].expand(5, 999).contiguous()
    for center in CENTERS:
        codes = balanced_codes(weight, bits, center=center, granularity="per_channel")
        assert_equal(codes, torch.full_like(codes, 2**bits - 1))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("length", [5_000, 100_000])
def test_codes_differ_only_next_to_a_threshold(bits, length):
    # Half of the values are 20 orders of magnitude smaller than the others, too small to be summed beside them.
    large = torch.rand(length, generator=torch.Generator().manual_seed(1)) < 0.5
    weight = randn(length) * torch.where(large, 1.0, 1e-20)
    differ = balanced_codes(weight, bits, center="mean", granularity="per_tensor") != functional.balanced_codes(
        weight, bits
    )
    thresholds = functional.balanced_thresholds(weight, bits)
    distance = (weight[:, None].double() - thresholds.double()).abs().amin(dim=1)
    assert (distance[differ] <= 2.0**-33 * weight.abs().max()).all()
    assert not differ[large].any()


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("shape", [(100_003,), (2, 70_000), (130, 700)], ids=str)
def test_number_of_threads_changes_no_bit(threads, shape, center):
    weight = randn(*shape) ** 3
    granularity = "per_tensor" if len(shape) == 1 else "per_channel"
    for bits, scale in itertools.product(BITS, SCALES):
        options = {"center": center, "scale": scale, "granularity": granularity}
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(balanced_levels(weight, bits, **options))
        assert_equal(results[1], results[0])
        assert_equal(results[2], results[0])


@pytest.mark.parametrize("center", CENTERS)
def test_bins_of_a_long_weight_are_those_of_numpy_order(center):
    # A median partition of distinct values is a cut of the sorted values into equal parts, whatever computes it.
    weight = torch.randperm(2**18, generator=torch.Generator().manual_seed(0)).float() - 2**17
    codes = balanced_codes(weight, 6, center=center, granularity="per_tensor")
    assert_equal(codes.bincount(), torch.full((64,), 2**12))
    assert_equal(codes[weight.argsort()], torch.arange(64, dtype=torch.uint8).repeat_interleave(2**12))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_values_that_are_not_finite_give_what_the_plain_form_gives(value, bits):
    weight = randn(9_000)
    weight[17] = value
    for center in CENTERS:
        options = {"center": center, "scale": "max", "granularity": "per_tensor"}
        expected = functional.balanced_fake_quantize(weight, bits, **options)
        assert_equal(balanced_levels(weight, bits, **options), expected)


@pytest.mark.parametrize("largest", [3.4e38, 1e-38, 1e-44], ids=str)
@pytest.mark.parametrize("length", [1_001, 40_001])
@pytest.mark.parametrize("bits", BITS)
def test_weights_at_the_ends_of_float32_equal_the_plain_form(largest, length, bits):
    weight = (torch.linspace(-1, 1, length, dtype=torch.float64) ** 3 * largest).float()
    for center in CENTERS:
        options = {"center": center, "scale": "max", "granularity": "per_tensor"}
        expected = functional.balanced_fake_quantize(weight, bits, **options)
        assert_equal(balanced_levels(weight, bits, **options), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_in_float32_and_kept(dtype):
    weight = randn(50, 30, dtype=dtype)
    options = {"center": "mean", "scale": "max", "granularity": "per_channel"}
    levels = balanced_levels(weight, 3, **options)
    assert_equal(levels, functional.balanced_fake_quantize(weight, 3, **options))
    assert levels.dtype == dtype


def layouts():
    image, volume = randn(6, 4, 3, 3), randn(6, 4, 3, 3, 2)
    return {
        "channels_last": image.to(memory_format=torch.channels_last),
        "channels_last_3d": volume.to(memory_format=torch.channels_last_3d),
        "transposed": randn(8, 5).t(),
        "with gaps": randn(6, 10)[:, ::2],
        "expanded": randn(1, 5).expand(6, 5),
        "scalar": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_any_layout_gives_the_values_of_a_contiguous_weight(layout, granularity):
    weight = layouts()[layout]
    if layout == "scalar" and granularity == "per_channel":
        pytest.skip("a scalar has no channel")
    options = {"scale": "max", "granularity": granularity}
    for bits in (2, 6):
        expected = functional.balanced_fake_quantize(weight.contiguous(), bits, **options)
        assert_equal(balanced_levels(weight, bits, center="mean", **options), expected)
        expected = functional.uniform_fake_quantize(weight.contiguous(), bits, **options)
        assert_equal(uniform_levels(weight, bits, **options), expected)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bits", BITS)
def test_uniform_codes_equal_those_of_the_plain_form(draw, bits, scale):
    weight = torch.from_numpy(draw("laplace", (30, 400)))
    step = functional.uniform_scale(weight, bits, scale=scale)
    expected = functional.uniform_codes(weight, step, bits)
    assert_equal(uniform_codes(weight, bits, scale=scale, granularity="per_tensor"), expected)


def test_codes_beside_a_tie_are_the_lower_ones():
    assert uniform_codes(torch.tensor([-3.0, -2, 0, 2, 3]), 2, scale="max", granularity="per_tensor").tolist() == [
        0, 0, 1, 2, 3,
    ]  # fmt: skip


def test_levels_are_new_memory_without_gradient():
    weight = randn(5, 5).requires_grad_()
    levels = balanced_levels(weight, 8, center="mean", scale="max", granularity="per_tensor")
    assert not levels.requires_grad and levels.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("quantizer", [BalancedQuantizer(2), BalancedQuantizer(6, "median", "mean", "per_channel")])
def test_compiled_model_computes_the_same_in_one_graph(quantizer):
    weight = randn(40, 30).requires_grad_()
    explanation = torch._dynamo.explain(lambda w: quantizer(w).sin())(weight)
    assert explanation.graph_count == 1 and explanation.graph_break_count == 0
    compiled = torch.compile(lambda w: quantizer(w).sin(), fullgraph=True, backend="aot_eager")
    result = compiled(weight)
    assert_equal(result, quantizer(weight).sin())
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    assert_equal(gradient, quantizer(weight).cos().detach())


def test_operators_pass_the_checks_of_torch():
    for args in [
        (randn(6, 4, 3, 3), 3, "mean", "max", "per_channel"),
        (randn(9, 2).t(), 5, "median", "mean", "per_tensor"),
    ]:
        torch.library.opcheck(torch.ops.lightning_balq.balanced_levels, args)
    torch.library.opcheck(torch.ops.lightning_balq.uniform_levels, (randn(6, 5), 3, "max", "per_channel"))


def test_exported_model_does_not_need_this_package():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(randn(6, 5))
            self.quantizer = BalancedQuantizer(3)

        def forward(self, x):
            return x @ self.quantizer(self.weight)

    program = torch.export.export(Model(), (randn(2, 6),))
    assert "lightning_balq" not in str(program.graph)
    x = randn(2, 6, seed=1)
    assert_equal(program.module()(x), Model()(x))


@pytest.mark.parametrize(
    ("quantize", "options", "calls"),
    [
        (balanced_levels_of_all, {"center": "mean", "scale": "unit", "granularity": "per_channel"}, 1),
        (balanced_levels_of_all, {"center": "median", "scale": "max", "granularity": "per_tensor"}, 0),
        (uniform_levels_of_all, {"scale": "mean", "granularity": "per_channel"}, 1),
    ],
    ids=["balanced", "balanced at the median", "uniform"],
)
def test_all_weights_go_to_the_kernels_of_a_gpu_at_once_unless_bins_have_medians(monkeypatch, quantize, options, calls):
    weights, made, seen = [randn(3, 4), randn(2, 5)], [randn(3, 4, seed=1), randn(2, 5, seed=1)], []

    def note(given, bits, **chosen):
        seen.append((given, bits, chosen))
        return made

    kernels = SimpleNamespace(balanced_levels=note, uniform_levels=note)
    plain = quantize(weights, 3, **options)
    monkeypatch.setattr(gpu, "weight_kernels", lambda given: kernels)
    levels = quantize(weights, 3, **options)
    assert_equal(levels, made if calls else plain)
    assert seen == [(weights, 3, {key: value for key, value in options.items() if key != "center"})] * calls
