import pytest
import torch
from torch import nn

from benchmarks import bench_steps
from benchmarks.bench_steps import PLANS, RESNET18, Plan, cases, run
from benchmarks.networks import NETWORKS, Network
from benchmarks.program import Options

CPU = torch.device("cpu")


def tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.filterwarnings("ignore")
def test_a_network_is_measured_in_float_and_quantized(monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", Network(tiny, (4, 3, 2, 2), 3))
    monkeypatch.setattr(bench_steps, "PLANS", {"tiny": Plan(((2, None), (2, 2)), all_layers=True, warm_up=1, steps=2)})
    (group,) = run(Options(CPU, 2))
    assert [record["case"] for record in group] == [
        "float", "balanced W2", "uniform W2", "balanced W2A2", "uniform W2A2",
    ]  # fmt: skip
    assert all(record["n"] == 2 and record["reference"] == "float" for record in group)


def test_cases_make_new_callbacks_that_record_nothing():
    made = cases(Plan(((4, 8),), all_layers=True, warm_up=1, steps=1))
    (first,), (second,) = made["balanced W4A8"](), made["balanced W4A8"]()
    assert first is not second
    assert (first.weight_bits, first.activation_bits, first.quantize_first_last) == (4, 8, True)
    assert first.record_every_n_steps == 0
    assert made["float"]() == []


def test_a_quick_run_leaves_out_the_slowest_network(monkeypatch):
    monkeypatch.setattr(bench_steps, "time_network", lambda name, plan, options: name)
    assert list(run(Options(CPU, 1, quick=True))) == [name for name in PLANS if name != RESNET18]
    assert list(run(Options(CPU, 1))) == list(PLANS)
