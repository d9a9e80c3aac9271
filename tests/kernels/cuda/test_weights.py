"""Weight kernels equal ``lightning_balq.functional`` bit for bit.

Sums are taken in float64 in another order, so a mean could round to the neighbouring float32; the chance is about
2**-27 for each threshold, and none of these seeds meets it.
"""

import importlib
import itertools

import pytest
import torch
from torch import nn

from lightning_balq.functional import balanced_fake_quantize, uniform_fake_quantize
from tests.helpers import assert_equal, randn
from tests.kernels.cuda.device import device_or_skip, truncated

pytest.importorskip("triton", reason="the kernels need triton")
DEVICE = device_or_skip()
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
kernels = importlib.import_module("lightning_balq.kernels.cuda.weights")
segments = importlib.import_module("lightning_balq.kernels.cuda.segments")

GRANULARITIES = ["per_tensor", "per_channel"]
SCALES = ["max", "mean", "least_squares"]
METHODS = {
    "balanced": (kernels.balanced_levels, balanced_fake_quantize),
    "uniform": (kernels.uniform_levels, uniform_fake_quantize),
}
METHOD = pytest.mark.parametrize("method", METHODS)
LONG = 16384 + 3000  # values of a segment that is cut in parts, the last of them incomplete


def assert_levels_equal_functional(method, weights, bits, scale="max", granularity="per_tensor"):
    fast, plain = METHODS[method]
    before = [weight.clone() for weight in weights]
    results = fast([weight.to(DEVICE) for weight in weights], bits, scale=scale, granularity=granularity)
    assert len(results) == len(weights)
    for result, weight, copy in zip(results, weights, before, strict=True):
        expected = plain(weight, bits, scale=scale, granularity=granularity)
        if weight.dtype == torch.bfloat16 and DEVICE.type == "cpu":
            expected = truncated(plain(weight.float(), bits, scale=scale, granularity=granularity))
        assert_equal(result.cpu(), expected)
        if weight.numel() > 1:  # the stride of one value is arbitrary
            assert result.stride() == expected.stride()
        assert_equal(weight, copy)


def mixed():
    return [
        randn(2, 40),
        randn(0, 5),
        randn(1, seed=1),
        torch.full((2, 7), 0.3),
        torch.zeros(1, 6),
        randn(2, 3, 3, 2, seed=2).to(memory_format=torch.channels_last),
        torch.linspace(-1, 5, 300).reshape(1, 300) ** 3,
    ]


@METHOD
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_short_segments_equal_functional(method, granularity, scale, bits):
    assert_levels_equal_functional(method, mixed(), bits, scale, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_levels_for_a_learned_scale_equal_functional(granularity):
    weights = [*mixed(), randn(1, LONG, seed=3)]
    assert_levels_equal_functional("balanced", weights, 3, "unit", granularity)


@METHOD
@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_short_segments_equal_functional_at_wide_codes(method, bits):
    assert_levels_equal_functional(method, [randn(257, seed=bits)], bits, "least_squares")


@METHOD
@pytest.mark.parametrize("length", [1, 16, 255, 256, 257, 1024, 1025, 4097, 16384, 16385])
def test_every_length_equals_functional(method, length):
    assert_levels_equal_functional(method, [randn(length), randn(16 * length, seed=1)[::16]], 2, "mean")


@METHOD
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("scale", SCALES)
def test_long_segments_equal_functional(method, scale, bits):
    weights = [randn(LONG), randn(7, seed=1), randn(2, LONG // 2 + 1, seed=2)]
    assert_levels_equal_functional(method, weights, bits, scale)


@METHOD
@pytest.mark.parametrize("scale", SCALES)
def test_long_channels_equal_functional(method, scale):
    weights = [randn(2, LONG), randn(3, 9, seed=1)]
    assert_levels_equal_functional(method, weights, 2, scale, "per_channel")


def test_long_segments_equal_functional_at_wide_codes():
    assert_levels_equal_functional("balanced", [randn(LONG)], 6)


@METHOD
@pytest.mark.parametrize("scale", SCALES)
def test_more_parts_than_are_added_at_a_time_equal_functional(monkeypatch, method, scale):
    monkeypatch.setattr(kernels, "_LANES", 4)
    assert_levels_equal_functional(method, [randn(16), randn(2 * LONG, seed=1)], 3, scale)


@METHOD
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("length", [300, LONG])
def test_other_types_equal_functional(method, length, dtype):
    weights = [randn(length, dtype=dtype), randn(5), randn(6, seed=1, dtype=dtype)]
    assert_levels_equal_functional(method, weights, 2, "mean")


@METHOD
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_any_layout_equals_functional_in_values_and_strides(method, granularity):
    weights = [
        randn(3, 4).t(),
        randn(4, 20)[:, ::2],
        randn(2, 3, 4, 5, seed=1).permute(0, 3, 1, 2),
        randn(8)[1:],  # not aligned
        randn(1).expand(2, 3),
        nn.Parameter(randn(2, 2, 2, 2, 2).to(memory_format=torch.channels_last_3d)).detach(),
    ]
    assert_levels_equal_functional(method, weights, 2, granularity=granularity)


@METHOD
def test_scalar_equals_functional(method):
    assert_levels_equal_functional(method, [torch.tensor(-2.5)], 3)


@METHOD
@pytest.mark.parametrize("length", [50, LONG])
def test_values_that_are_not_finite_equal_functional(method, length):
    values = [[float("nan")], [float("inf")], [-float("inf")], [float("inf"), -float("inf")], [float("nan"), -1e30]]
    weights = [randn(length, seed=seed) for seed in range(len(values))]
    for weight, value in zip(weights, values, strict=True):
        weight[3 : 3 + len(value)] = torch.tensor(value)
    for scale in ["max", "least_squares"]:
        assert_levels_equal_functional(method, weights, 2, scale)


@METHOD
@pytest.mark.parametrize("length", [50, LONG])
@pytest.mark.parametrize("size", [1e-44, 3e38])
def test_extreme_magnitudes_equal_functional(method, length, size):
    weight = randn(length).clamp(-1, 1) * size
    for scale in ["max", "least_squares"]:
        assert_levels_equal_functional(method, [weight], 2, scale)


@pytest.mark.parametrize("length", [50, LONG])
def test_a_scale_that_underflows_starts_where_functional_does(length):
    smallest = torch.full((length,), 2.0**-149) * randn(length).sign()
    assert_levels_equal_functional("uniform", [smallest], 4, "least_squares")


@pytest.mark.parametrize("length", [1, 100, LONG])
@pytest.mark.parametrize("value", [0.1, -1 / 3, 0.0, 1e-40])
def test_equal_values_have_the_highest_code(length, value):
    weight = torch.full((length,), value, device=DEVICE)
    (levels,) = kernels.balanced_levels([weight], 3, scale="max", granularity="per_tensor")
    assert_equal(levels, weight.abs().div(torch.tensor(7.0, device=DEVICE)) * 7)


@pytest.mark.parametrize("length", [1000, LONG])
def test_equal_small_values_beside_large_ones_are_not_split(length):
    weight = randn(length)
    weight[::3] = 1.1e-7
    assert_levels_equal_functional("balanced", [weight], 4)


@pytest.mark.parametrize("length", [1000, LONG])
def test_thresholds_are_means_rounded_to_float32_once(length):
    weight = 3000 + randn(length)  # float32 sums would be off by many steps of float32
    assert_levels_equal_functional("balanced", [weight], 3)


@METHOD
def test_results_are_apart_and_without_gradient(method):
    weights = [nn.Parameter(randn(3, 3).to(DEVICE)), nn.Parameter(randn(5).to(DEVICE))]
    first, second = METHODS[method][0](weights, 2, scale="max", granularity="per_tensor")
    assert not first.requires_grad and not second.requires_grad
    kept, version = second.clone(), second._version
    first.zero_()
    assert_equal(second, kept)
    assert second._version == version and not second._is_view()


@METHOD
def test_no_weights_give_no_levels(method):
    assert METHODS[method][0]([], 2, scale="max", granularity="per_tensor") == []


@METHOD
@pytest.mark.parametrize("length", [40, LONG])
def test_changed_values_are_seen_and_tables_kept(method, length):
    weight = randn(length).to(DEVICE)
    for seed in range(2):
        weight.copy_(randn(length, seed=seed))
        before = segments._layout.cache_info().hits
        assert_levels_equal_functional(method, [weight.cpu()], 2)  # the same shape elsewhere
        fast, plain = METHODS[method]
        (levels,) = fast([weight], 2, scale="max", granularity="per_tensor")
        assert_equal(levels.cpu(), plain(weight.cpu(), 2))
        assert segments._layout.cache_info().hits > before


class Recorded:
    """A kernel that notes the options of its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches.append(options)
            self.kernel[grid](*arguments, **options)

        return launch


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize(
    ("method", "scale", "long"),
    [
        ("balanced", "max", lambda bits: bits + 1),
        ("balanced", "least_squares", lambda bits: bits + 2),
        ("uniform", "mean", lambda bits: 2),
        ("uniform", "least_squares", lambda bits: 4),
    ],
    ids=["balanced", "balanced least squares", "uniform", "uniform least squares"],
)
def test_launches_do_not_depend_on_the_number_of_weights(monkeypatch, method, scale, long, bits):
    launches = []
    for name in ["_quantize_short", "_measure", "_split", "_fit", "_place"]:
        monkeypatch.setattr(kernels, name, Recorded(getattr(kernels, name), launches))
    weights = [randn(length).to(DEVICE) for length in [9, 100, 250, LONG, LONG + 1]]
    METHODS[method][0](weights, bits, scale=scale, granularity="per_tensor")
    assert len(launches) == 1 + long(bits)
    assert not any(options["enable_fp_fusion"] for options in launches)  # a fused product rounds otherwise


@pytest.mark.parametrize("count", [1, 2, 5])
def test_layout_covers_every_value_once(count):
    extents = tuple(itertools.islice(itertools.cycle([(3, 9), (1, 20000), (0, 4), (2, 300)]), count))
    layout = segments._layout(extents, torch.device("cpu"), 0)
    seen = torch.zeros(layout.size, dtype=torch.int64)
    for group in [*layout.short, layout.long]:
        for _, _, place, length, _ in [] if group is None else group.table.tolist():
            seen[place : place + length] += 1
    for place, (rows, length) in zip(layout.places, extents, strict=True):
        assert (seen[place : place + rows * length] == 1).all()
    assert seen.sum() == sum(rows * length for rows, length in extents)


@METHOD
def test_a_step_never_waits_for_the_device(method):
    if DEVICE.type != "cuda":
        pytest.skip("only a CUDA device can be waited for")
    weights = [randn(4, 5).to(DEVICE), randn(LONG).to(DEVICE)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        METHODS[method][0](weights, 2, scale="least_squares", granularity="per_tensor")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@METHOD
def test_repeated_runs_are_equal_bit_for_bit(method):
    if DEVICE.type != "cuda":
        pytest.skip("the interpreter runs one program after the other")
    weights = [randn(2_000_000).to(DEVICE), randn(512, 4608).to(DEVICE)]
    for scale, granularity in itertools.product(SCALES, GRANULARITIES):
        options = {"scale": scale, "granularity": granularity}
        first = METHODS[method][0](weights, 4, **options)
        for _ in range(20):
            for again, before in zip(METHODS[method][0](weights, 4, **options), first, strict=True):
                assert torch.equal(again, before)
