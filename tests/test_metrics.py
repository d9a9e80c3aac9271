import math
from datetime import timedelta

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.testing import assert_close
from torchmetrics import MetricCollection

from lightning_balq import functional
from lightning_balq.metrics import BinUtilization, EffectiveBitwidth, Imbalance, QuantizationError

OF_CODES = {
    EffectiveBitwidth: functional.effective_bitwidth,
    BinUtilization: functional.bin_utilization,
    Imbalance: functional.imbalance,
}
each_of_codes = pytest.mark.parametrize(("metric_class", "statistic"), OF_CODES.items(), ids=lambda c: c.__name__)


def some_codes(seed, size=300):
    """Codes of 2 bits with unequal counts, all used."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor([1.0, 2.0, 3.0, 4.0]), size, replacement=True, generator=generator)


def some_weights(seed, size=300):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return weight, functional.balanced_fake_quantize(weight, bits=2)


# --- Alone -----------------------------------------------------------------------------------------------------------


@each_of_codes
def test_metric_of_several_updates_is_statistic_of_all_codes_exactly(metric_class, statistic):
    metric = metric_class(bits=2)
    updates = [some_codes(0), some_codes(1).reshape(30, 10), some_codes(2).to(torch.uint8)]
    for codes in updates:
        metric.update(codes)
    expected = statistic(functional.code_histogram(torch.cat([codes.reshape(-1) for codes in updates]), 2))
    assert_close(metric.compute(), expected, rtol=0, atol=0)


@each_of_codes
def test_forward_returns_the_statistic_of_the_batch_and_accumulates(metric_class, statistic):
    metric = metric_class(bits=2)
    for seed in (0, 1):
        batch = metric(some_codes(seed))
        assert_close(batch, statistic(functional.code_histogram(some_codes(seed), 2)), rtol=0, atol=0)
    both = functional.code_histogram(torch.cat([some_codes(0), some_codes(1)]), 2)
    assert_close(metric.compute(), statistic(both), rtol=0, atol=0)


@each_of_codes
def test_reset_forgets_all_codes(metric_class, statistic):
    metric = metric_class(bits=2)
    metric.update(some_codes(0))
    metric.reset()
    metric.update(some_codes(1))
    assert_close(metric.compute(), statistic(functional.code_histogram(some_codes(1), 2)), rtol=0, atol=0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_effective_bitwidth_of_all_codes_once_is_bits(bits):
    metric = EffectiveBitwidth(bits)
    metric.update(torch.arange(2**bits))
    # 256 float64 terms, each rounded to 2**-53.
    assert metric.compute().item() == pytest.approx(bits, rel=1e-14)


def test_quantization_error_of_several_updates_is_that_of_all_weights():
    metric = QuantizationError()
    updates = [some_weights(0), some_weights(1, size=10), some_weights(2)]
    for weight, quantized in updates:
        metric.update(weight, quantized)
    weights, quantized = (torch.cat(parts) for parts in zip(*updates, strict=True))
    # The sums of three updates, rounded to float32 each.
    assert_close(metric.compute(), functional.quantization_error(weights, quantized), rtol=1e-6, atol=0)
    metric.reset()
    metric.update(*some_weights(3))
    assert_close(metric.compute(), functional.quantization_error(*some_weights(3)), rtol=1e-6, atol=0)


def test_quantization_error_of_many_small_updates_stays_accurate():
    metric = QuantizationError()
    metric.update(torch.full((1000,), 100.0), torch.zeros(1000))
    for _ in range(100):
        metric.update(torch.tensor([0.5]), torch.tensor([0.5]))
    # The state is float32, and each update rounds it: 2**-24.
    assert metric.compute().item() == pytest.approx(1e7 / (1e7 + 25), rel=101 * 2**-24)


def test_quantization_error_of_no_weights_is_0():
    metric = QuantizationError()
    metric.update(torch.zeros(0), torch.zeros(0))
    assert metric.compute().item() == 0


def test_quantization_error_of_nan_is_nan():
    metric = QuantizationError()
    metric.update(torch.tensor([math.nan]), torch.tensor([1.0]))
    metric.update(*some_weights(0))
    assert math.isnan(metric.compute().item())


# --- In a collection -------------------------------------------------------------------------------------------------


def collection():
    return MetricCollection([*(metric_class(bits=2) for metric_class in OF_CODES), QuantizationError()])


def expected_values(codes, weight, quantized):
    histogram = functional.code_histogram(codes, 2)
    values = {metric_class.__name__: statistic(histogram) for metric_class, statistic in OF_CODES.items()}
    return values | {"QuantizationError": functional.quantization_error(weight, quantized)}


def assert_values_close(values, expected):
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        # The error is accumulated in float32, the histogram in integers.
        assert_close(values[name], value, rtol=1e-6 if name == "QuantizationError" else 0, atol=0)


def test_collection_gives_every_metric_the_arguments_it_names():
    metrics = collection()
    updates = [(some_codes(seed), *some_weights(seed)) for seed in (0, 1, 2)]
    for codes, weight, quantized in updates:
        metrics.update(codes=codes, weight=weight, quantized=quantized)
    everything = [torch.cat(parts) for parts in zip(*updates, strict=True)]
    assert_values_close(metrics.compute(), expected_values(*everything))
    metrics.reset()
    metrics.update(codes=some_codes(3), weight=some_weights(3)[0], quantized=some_weights(3)[1])
    assert_values_close(metrics.compute(), expected_values(some_codes(3), *some_weights(3)))


def test_collection_computes_one_histogram_for_all_metrics_of_codes():
    metrics = collection()
    for seed in (0, 1):
        metrics.update(codes=some_codes(seed), weight=some_weights(seed)[0], quantized=some_weights(seed)[1])
    groups = {frozenset(group) for group in metrics.compute_groups.values()}
    assert groups == {
        frozenset({"EffectiveBitwidth", "BinUtilization", "Imbalance"}),
        frozenset({"QuantizationError"}),
    }


def test_state_survives_a_checkpoint():
    metric, restored = EffectiveBitwidth(bits=2), EffectiveBitwidth(bits=2)
    metric.persistent(True)
    restored.persistent(True)
    metric.update(some_codes(0))
    restored.load_state_dict(metric.state_dict())
    assert_close(restored.histogram, metric.histogram, rtol=0, atol=0)


# --- Over processes --------------------------------------------------------------------------------------------------


def check_values_of_one_rank(rank, init_file):
    """Update with the codes of this rank of two, and expect the values of the codes of both."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{init_file}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        metrics = collection()
        # Rank 1 has fewer codes than rank 0; each has two updates.
        updates = [[(some_codes(s, 200 - 50 * r), *some_weights(s)) for s in (2 * r, 2 * r + 1)] for r in (0, 1)]
        for codes, weight, quantized in updates[rank]:
            metrics.update(codes=codes, weight=weight, quantized=quantized)
        everything = [torch.cat(parts) for parts in zip(*updates[0], *updates[1], strict=True)]
        assert_values_close(metrics.compute(), expected_values(*everything))
    finally:
        torch.distributed.destroy_process_group()


# This process is rank 1 and a new one, which has to import torch and Lightning (some 8 s), rank 0.
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_metrics_over_two_processes_are_those_of_all_codes(tmp_path):
    init_file = tmp_path / "init"
    other = torch.multiprocessing.spawn(check_values_of_one_rank, args=(init_file,), nprocs=1, join=False)
    check_values_of_one_rank(1, init_file)
    assert other.join()


# --- Bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric_class", OF_CODES, ids=lambda c: c.__name__)
def test_bad_bits_raise_at_construction(metric_class):
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"`bits` must be from 1 to 8 .*, got {bits}"):
            metric_class(bits=bits)
    for bits in (True, 2.0, "2"):
        with pytest.raises(TypeError, match=f"`bits` must be an int from 1 to 8, got {bits!r}"):
            metric_class(bits=bits)


@pytest.mark.parametrize("metric_class", OF_CODES, ids=lambda c: c.__name__)
def test_bad_codes_raise_and_leave_the_state_as_it_was(metric_class):
    metric = metric_class(bits=2)
    metric.update(some_codes(0))
    before = metric.histogram.clone()
    with pytest.raises(ValueError, match="`codes` must be at most 3 at bits=2, got 4"):
        metric.update(torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="`codes` must be at least 0, got -1"):
        metric.update(torch.tensor([0, -1]))
    with pytest.raises(TypeError, match=r"`codes` must be integers, got dtype torch\.float32"):
        metric.update(torch.tensor([0.0, 1.0]))
    assert torch.equal(metric.histogram, before)


def test_weight_and_quantized_of_two_shapes_raise():
    with pytest.raises(ValueError, match=r"`weight` and `quantized` must have one shape, got \(2,\) and \(1, 2\)"):
        QuantizationError().update(torch.ones(2), torch.ones(1, 2))
