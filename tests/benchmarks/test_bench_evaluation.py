import torch
from torch import nn

from benchmarks import bench_evaluation
from benchmarks.bench_evaluation import MLP, forward, run
from benchmarks.networks import NETWORKS, Network
from benchmarks.program import Options


def test_float_and_quantized_forwards_are_measured(monkeypatch):
    seen = []
    monkeypatch.setitem(NETWORKS, MLP, Network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (2, 1, 2, 2), 3))
    monkeypatch.setattr(bench_evaluation, "forward", lambda model, inputs: seen.append((model, forward(model, inputs))))
    (group,) = run(Options(torch.device("cpu"), 1, quick=True))
    assert [record["case"] for record in group] == ["float", "balanced W4"]
    (plain, one), (quantized, other) = seen[0], seen[1]
    assert not plain.training and not quantized.training
    assert one.grad_fn is None
    assert not torch.equal(one, other)
