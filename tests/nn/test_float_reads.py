"""Weights that are read past their layer are found in the graph of a loss."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_balq import quantize_
from lightning_balq.nn import quantized_layers
from lightning_balq.nn.float_reads import FloatReads
from tests.helpers import assert_equal, everything, randn


def found_in(loss_of, model):
    """Names of the layers whose weights ``loss_of(model)`` reads as float."""
    quantize_(model, everything())
    names, states = {}, []
    for name, layer, state in quantized_layers(model):
        names[layer] = name
        states.append(state)
    reads = states[0].schedule.reads = FloatReads()
    reads.search(loss_of(model))
    states[0].schedule.reads = None
    return [(names[layer], weight) for layer, weight in reads.found]


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


READS = {
    "product": lambda m: (m(randn(2, 4)) @ m[0].weight).square().sum(),
    "convolved": lambda m: torch.conv1d(m(randn(2, 4))[:, None], m[0].weight[:, None]).sum(),
    "activated": lambda m: m(randn(2, 4)).sum() + m[0].weight.tanh().sum(),
    "handed to a checkpoint": lambda m: checkpoint(
        lambda x, w: (x @ w).sum(), m(randn(2, 4)), m[0].weight, use_reentrant=True
    ),
    "before a checkpoint": lambda m: checkpoint(
        lambda x: x.exp().sum(), m(randn(2, 4)) @ m[0].weight, use_reentrant=True
    ),
    "looked up": lambda m: nn.functional.embedding(torch.tensor([1]), m[0].weight).exp().sum() + m(randn(2, 4)).sum(),
}
NO_READS = {
    "layers alone": lambda m: m(randn(2, 4)).square().sum(),
    "penalty": lambda m: m(randn(2, 4)).relu().sum() + 0.1 * m[0].weight.pow(2).sum().sqrt(),
    "penalty on a difference": lambda m: m(randn(2, 4)).sum() + (m[0].weight - m[1].weight).abs().mean(),
    "bias": lambda m: (m(randn(2, 4)) * m[0].bias).exp().sum(),
    "detached": lambda m: (m(randn(2, 4)) @ m[0].weight.detach()).sum(),
    "no graph": lambda m: m(randn(2, 4)).detach().sum(),
}


@pytest.mark.parametrize("kind", READS)
def test_read_past_the_layer_is_found(kind):
    assert found_in(READS[kind], two_layers()) == [("0", "weight")]


@pytest.mark.parametrize("kind", NO_READS)
def test_own_reads_and_penalties_are_not_found(kind):
    assert found_in(NO_READS[kind], two_layers()) == []


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), nn.GRUCell(4, 4), nn.MultiheadAttention(4, 2)], ids=str)
def test_layers_of_several_weights_read_their_own(layer):
    def loss(m):
        x = randn(3, 4) if isinstance(layer, nn.GRUCell) else randn(3, 2, 4)
        out = m[0](x, x, x) if isinstance(layer, nn.MultiheadAttention) else m[0](x)
        return (out[0] if isinstance(out, tuple) else out).square().sum()

    assert found_in(loss, nn.Sequential(layer)) == []


def test_search_changes_neither_values_nor_gradients():
    results = []
    for reads in (None, FloatReads()):
        model = two_layers()
        quantize_(model, everything())
        next(state for _, _, state in quantized_layers(model)).schedule.reads = reads
        out = model(randn(2, 4))
        if reads is not None:
            reads.search(out.sum())
        out.square().sum().backward()
        results.append((out.detach(), [parameter.grad for parameter in model.parameters()]))
    assert_equal(*results)
