"""Activation ranges: what a batch shows, when it counts, and what inference sees."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_balq.functional import activation_fake_quantize
from lightning_balq.nn import ActivationQuantizer, activation_quantizers, quantize_, update_ranges_
from lightning_balq.nn.activation import settle_ranges_
from tests.helpers import assert_equal, everything, randn, tiny_model


def expected_range(x, bits):
    """min(max|x|, 2 sqrt(n) E|x|) with n = 2**bits - 1, in NumPy."""
    x = np.abs(x.double().numpy())
    return min(x.max(), 2 * math.sqrt(2**bits - 1) * x.mean())


def observe(quantizer, *batches):
    """One training step over these batches."""
    for x in batches:
        quantizer(x, observe=True)
    update_ranges_([quantizer])


def quantized(x, bits, largest, signed):
    return activation_fake_quantize(x, bits, range=torch.as_tensor(largest), signed=torch.tensor(signed))


def state_of(quantizer):
    tensors = (quantizer.range, quantizer.signed, quantizer.pending, quantizer.batches)
    return [*(tensor.clone() for tensor in tensors), quantizer.ready]


# --- The observed range ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["gaussian", "outlier", "sparse", "constant"])
def test_first_batch_sets_the_range_to_the_formula(kind, bits):
    x = randn(8, 50)
    if kind == "outlier":
        x[0, 0] = 1000.0
    elif kind == "sparse":
        x = x * (x > 2)
    elif kind == "constant":
        x = torch.full((5,), 0.75)
    quantizer = ActivationQuantizer(bits, "observed", "auto")
    observe(quantizer, x)
    # The mean is accumulated in float32 there and in float64 here.
    np.testing.assert_allclose(quantizer.range.numpy(), expected_range(x, bits), rtol=1e-6)
    assert bool(quantizer.signed) == bool((x < 0).any())


def test_later_batches_move_the_range_by_a_tenth():
    quantizer = ActivationQuantizer(3, "observed", "auto")
    expected = None
    for step in range(5):
        x = (1 + step) * randn(20, 10, seed=step)
        observe(quantizer, x)
        seen = expected_range(x, 3)
        expected = seen if expected is None else expected + 0.1 * (seen - expected)
        # float32 there, float64 here.
        np.testing.assert_allclose(quantizer.range.numpy(), expected, rtol=1e-6)


def test_several_calls_in_one_step_count_by_their_mean():
    quantizer = ActivationQuantizer(3, "observed", "auto")
    batches = [scale * randn(20, 10, seed=scale) for scale in (1, 5, 9)]
    observe(quantizer, *batches)
    first = np.mean([expected_range(x, 3) for x in batches])
    np.testing.assert_allclose(quantizer.range.numpy(), first, rtol=1e-6)
    observe(quantizer, batches[0], batches[0])
    second = first + 0.1 * (expected_range(batches[0], 3) - first)
    np.testing.assert_allclose(quantizer.range.numpy(), second, rtol=1e-6)


def test_range_is_constant_within_a_training_step():
    quantizer = ActivationQuantizer(3, "observed", "signed")
    observe(quantizer, randn(20))
    largest = float(quantizer.range)
    for scale in (10, 100):
        x = scale * randn(20, seed=scale)
        assert_equal(quantizer(x, observe=True), quantized(x, 3, largest, True))
    assert float(quantizer.range) == largest


def test_bfloat16_input_is_measured_in_float32():
    x = randn(64, 100, dtype=torch.bfloat16)
    quantizer = ActivationQuantizer(2, "observed", "auto")
    observe(quantizer, x)
    assert quantizer.range.dtype == torch.float32
    # The mean is accumulated in float32 there and in float64 here; in bfloat16 it would differ in the third digit.
    np.testing.assert_allclose(quantizer.range.numpy(), expected_range(x, 2), rtol=1e-6)
    output = quantizer(x, observe=False)
    assert output.dtype == torch.bfloat16
    assert output.unique().numel() == 4


def test_empty_batch_is_no_batch():
    quantizer = ActivationQuantizer(3, "observed", "auto")
    observe(quantizer, torch.empty(0, 4))
    assert (float(quantizer.range), float(quantizer.batches)) == (0.0, 0.0)
    observe(quantizer, randn(20))
    before = float(quantizer.range)
    observe(quantizer, torch.empty(0, 4))
    assert float(quantizer.range) == before
    assert quantizer(torch.empty(0, 4), observe=False).shape == (0, 4)


def test_batch_of_zeros_gives_zeros():
    quantizer = ActivationQuantizer(3, "observed", "auto")
    observe(quantizer, torch.zeros(4))
    assert_equal(quantizer(torch.zeros(4), observe=False), torch.zeros(4))


def test_step_without_a_batch_changes_nothing():
    quantizer = ActivationQuantizer(3, "observed", "auto")
    observe(quantizer, randn(20))
    before = state_of(quantizer)
    update_ranges_([quantizer])
    assert_equal(state_of(quantizer)[:4], before[:4])


# --- Before the first update -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_batch_is_quantized_by_its_own_range_before_the_first_update(training):
    quantizer = ActivationQuantizer(3, "observed", "auto")
    for x in (randn(20), 7 * randn(20, seed=1), randn(20, seed=2).abs()):
        own = torch.tensor(expected_range(x, 3), dtype=torch.float32)
        # One unit in the last place of the range may differ, which moves no value to another level here.
        torch.testing.assert_close(
            quantizer(x, observe=training), quantized(x, 3, own, bool((x < 0).any())), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("range_mode", ["unit", "observed"])
@pytest.mark.parametrize("sign", ["unsigned", "signed"])
def test_configured_sign_holds_before_and_after_the_first_update(sign, range_mode):
    quantizer = ActivationQuantizer(3, range_mode, sign)
    x = torch.tensor([-1.0, -0.4, 0.4, 1.0])
    expected = quantized(x, 3, 1.0, sign == "signed")
    assert_equal(quantizer(x, observe=True), expected)
    update_ranges_([quantizer])
    assert_equal(quantizer(x, observe=True), expected)


def test_unit_range_with_automatic_sign_observes_only_the_sign():
    quantizer = ActivationQuantizer(2, "unit", "auto")
    positive, negative = torch.tensor([0.2, 3.0]), torch.tensor([-0.2, 3.0])
    observe(quantizer, positive)
    assert (float(quantizer.range), bool(quantizer.signed)) == (1.0, False)
    assert_equal(quantizer(negative, observe=False), quantized(negative, 2, 1.0, False))
    observe(quantizer, negative)
    assert (float(quantizer.range), bool(quantizer.signed)) == (1.0, True)
    observe(quantizer, positive)
    assert bool(quantizer.signed)


def test_quantizer_that_never_ran_in_training_still_quantizes():
    quantizer = ActivationQuantizer(2, "observed", "auto")
    update_ranges_([quantizer])
    settle_ranges_([quantizer])
    assert not quantizer.ready
    assert quantizer(randn(100), observe=False).unique().numel() == 4


def test_fixed_range_and_sign_observe_nothing():
    quantizer = ActivationQuantizer(2, "unit", "unsigned")
    assert not quantizer.observing
    assert quantizer.ready
    before = state_of(quantizer)
    observe(quantizer, 5 * randn(20))
    assert_equal(state_of(quantizer), before)
    assert quantizer.state() == {}


# --- When a batch counts ---------------------------------------------------------------------------------------------


def trained(steps=1):
    model = tiny_model()
    quantize_(model, everything(activation_bits=3))
    for step in range(steps):
        model(randn(4, 1, 8, 8, seed=step)).sum().backward()
        update_ranges_(activation_quantizers(model))
    return model


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("mode", ["eval", "no_grad", "eval and no_grad", "inference_mode"])
def test_only_training_with_gradients_changes_any_state(mode, steps):
    model = trained(steps)
    before = [state_of(quantizer) for quantizer in activation_quantizers(model)]
    model.train("eval" not in mode)
    x = 100 * randn(4, 1, 8, 8, seed=7)
    if mode == "inference_mode":
        with torch.inference_mode():
            model(x)
    else:
        with torch.set_grad_enabled("no_grad" not in mode):
            model(x)
    assert_equal([state_of(quantizer) for quantizer in activation_quantizers(model)], before)


def test_each_layer_observes_its_own_input():
    model, plain = trained(0), tiny_model()
    x = randn(4, 1, 8, 8)
    model(x)
    update_ranges_(activation_quantizers(model))
    stem = activation_quantizers(model)[0]
    np.testing.assert_allclose(stem.range.numpy(), expected_range(x, 3), rtol=1e-6)  # float32 mean
    signs = [bool(quantizer.signed) for quantizer in activation_quantizers(model)]
    assert signs == [True, False, True, False]  # conv and head follow a ReLU
    assert len(signs) == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in plain)


def test_layer_in_eval_mode_observes_nothing_while_the_model_trains():
    model = trained(0)
    model.stem.eval()
    model(randn(4, 1, 8, 8))
    assert float(activation_quantizers(model)[0].pending[1]) == 0
    assert float(activation_quantizers(model)[1].pending[1]) == 1


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_neither_gradients_nor_ranges(use_reentrant):
    plain = trained(1)
    recomputed = copy.deepcopy(plain)
    x = randn(4, 1, 8, 8, seed=5)
    for model in (plain, recomputed):
        model.zero_grad()
        given = x.clone().requires_grad_()
        if model is recomputed:
            model_output = torch.utils.checkpoint.checkpoint(model, given, use_reentrant=use_reentrant)
        else:
            model_output = model(given)
        model_output.square().sum().backward()
        update_ranges_(activation_quantizers(model))
    for (name, ours), theirs in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        assert_equal(ours.grad, theirs.grad)
    assert_equal(
        [quantizer.range for quantizer in activation_quantizers(recomputed)],
        [quantizer.range for quantizer in activation_quantizers(plain)],
    )


def test_move_to_another_device_during_inference_leaves_training_possible():
    # The sanity check of a Trainer runs first, in inference mode, on the device of the model.
    quantizer = ActivationQuantizer(2, "observed", "auto")
    with torch.inference_mode():
        quantizer(torch.empty(3, device="meta"), observe=False)
    assert not quantizer.pending.is_inference()
    assert not quantizer.range.is_inference()
    quantizer(torch.empty(3, device="meta", requires_grad=True), observe=True).sum().backward()


# --- Ranks -----------------------------------------------------------------------------------------------------------


def test_reduce_is_called_once_and_sums_ranks():
    batches = [[scale * randn(20, 10, seed=scale + rank) for rank in range(2)] for scale in (1, 5)]
    ranks = [[ActivationQuantizer(3, "observed", "auto") for _ in range(2)] for _ in range(2)]
    for rank, quantizers in enumerate(ranks):
        for quantizer, seen in zip(quantizers, batches, strict=True):
            quantizer(seen[rank], observe=True)
    total = sum(torch.stack([quantizer.pending for quantizer in quantizers]) for quantizers in ranks)
    calls = []

    def reduce(tensor):
        calls.append(tensor.shape)
        return total.clone()

    for quantizers in ranks:
        update_ranges_(quantizers, reduce)
    assert calls == [(2, 3), (2, 3)]  # once for each rank
    for index, seen in enumerate(batches):
        assert_equal(ranks[0][index].range, ranks[1][index].range)
        mean = np.mean([expected_range(x, 3) for x in seen])
        np.testing.assert_allclose(ranks[0][index].range.numpy(), mean, rtol=1e-6)  # float32 means


def test_nothing_observed_needs_no_reduction():
    def reduce(tensor):
        raise AssertionError("called")

    update_ranges_([ActivationQuantizer(3, "unit", "signed")], reduce)
    update_ranges_([], reduce)


# --- State -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_mode", ["unit", "observed"])
@pytest.mark.parametrize("sign", ["auto", "signed", "unsigned"])
def test_loaded_state_continues_as_if_never_interrupted(sign, range_mode):
    whole = ActivationQuantizer(3, range_mode, sign)
    observe(whole, randn(20))
    resumed = ActivationQuantizer(3, range_mode, sign)
    resumed.load_state(whole.state())
    for step in range(1, 4):
        for quantizer in (whole, resumed):
            observe(quantizer, (1 + step) * randn(20, seed=step))
    assert_equal(state_of(resumed)[:4], state_of(whole)[:4])
    assert_equal(resumed(randn(20), observe=False), whole(randn(20), observe=False))


def test_state_is_a_copy():
    quantizer = ActivationQuantizer(3, "observed", "auto")
    observe(quantizer, randn(20))
    state = quantizer.state()
    before = {key: value.clone() for key, value in state.items()}
    quantizer.load_state(state)
    observe(quantizer, 100 * randn(20))
    assert_equal(state, before)


def test_load_drops_what_was_pending_and_keeps_what_is_configured():
    source, target = ActivationQuantizer(3, "observed", "auto"), ActivationQuantizer(3, "observed", "unsigned")
    observe(source, randn(20))
    target(100 * randn(20), observe=True)
    target.load_state(source.state())
    assert_equal(target.pending, torch.zeros(3))
    assert target.ready
    assert not target.signed  # configured, whatever the checkpoint says
    assert_equal(target.range, source.range)


def test_settled_quantizer_equals_an_unsettled_one():
    quantizer = ActivationQuantizer(3, "observed", "auto")
    observe(quantizer, randn(20))
    assert not quantizer.ready
    x = 10 * randn(20, seed=1)
    before = quantizer(x, observe=False)
    settle_ranges_([quantizer])
    assert quantizer.ready
    assert_equal(quantizer(x, observe=False), before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, "unit", "auto"), ValueError, "`activation_bits` must be from 1 to 8"),
        ((2.5, "unit", "auto"), TypeError, "`activation_bits` must be an int from 1 to 8, got 2.5 of type float"),
        ((2, "max", "auto"), ValueError, r"`activation_range` must be one of \['observed', 'unit'\], got 'max'"),
        ((2, "unit", "both"), ValueError, r"`activation_sign` must be one of \['auto', .*\], got 'both'"),
    ],
)
def test_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ActivationQuantizer(*arguments)
