"""Evidence of training is found where there is some, and only there."""

import pytest
import torch
from torch import nn

from lightning_balq.nn import quantize_
from lightning_balq.nn.pretrained import evidence_of_training
from tests.helpers import everything, randn, tiny_model

FRESH = {
    "tiny": tiny_model,
    "batch norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
    "batch norm without statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "zero bias": lambda: nn.init.zeros_((layer := nn.Linear(4, 4)).bias) is None or layer,
    "no bias": lambda: nn.Linear(4, 4, bias=False),
    "constant bias": lambda: nn.init.constant_((layer := nn.Linear(4, 4)).bias, 7.0) is None or layer,
    "grouped convolution": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "no layer": nn.ReLU,
    "no outputs": lambda: nn.Linear(4, 0),
}


@pytest.mark.parametrize("kind", FRESH)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
def test_fresh_model_shows_none(kind, seed):
    torch.manual_seed(seed)
    assert evidence_of_training(FRESH[kind]()) == ""


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_model_shows_none():
    assert evidence_of_training(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(2))) == ""


def test_batch_norm_tells_how_many_batches_it_saw():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    for seed in range(3):
        model(randn(5, 4, seed=seed))
    assert evidence_of_training(model) == "batch norm '1' has seen 3 batches"


@pytest.mark.parametrize("name", ["stem", "head"])
def test_bias_outside_its_initial_range_tells(name):
    model = tiny_model()
    bias, weight = model.get_submodule(name).bias, model.get_submodule(name).weight
    with torch.no_grad():
        bias[0] = 1.02 / weight[0].numel() ** 0.5
    assert evidence_of_training(model) == f"the bias of {name!r} lies outside its initial range"


def test_quantized_model_shows_what_the_float_one_shows():
    model = tiny_model()
    quantize_(model, everything())
    assert evidence_of_training(model) == ""
    model.head.bias.data[0] = 9.0
    assert "'head'" in evidence_of_training(model)
