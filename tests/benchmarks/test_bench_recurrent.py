import pytest
import torch

from benchmarks import bench_recurrent
from benchmarks.bench_recurrent import LAYERS, modules, run
from benchmarks.program import Options
from lightning_balq.nn import quantized_layers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, size in {"UNITS": 4, "BATCH": 2, "STEPS": 3}.items():
        monkeypatch.setattr(bench_recurrent, name, size)


def test_every_case_of_both_layers_is_measured():
    groups = list(run(Options(CPU, 1)))
    assert [group[0]["parameters"]["layer"] for group in groups] == list(LAYERS)
    for group in groups:
        cases = [record["case"] for record in group]
        assert cases[0] == "float" and {"balanced mean W2", "balanced mean W2A2", "uniform W2A2"} <= set(cases)


@pytest.mark.parametrize("name", LAYERS)
def test_ways_to_quantize_states_compute_the_same(name):
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    made = modules(name, CPU)
    ours, plain, cells = (made[f"balanced mean W2A2{form}"]() for form in ("", ", plain loop", ", loop of cells"))
    expected = ours(x)[0]
    # Up to the rounding of products and exponentials, far from any border between two levels here.
    torch.testing.assert_close(plain(x)[0], expected, rtol=0, atol=1e-5)
    assert cells(x)[0].shape == expected.shape  # its range is that of a single step, so that levels differ


def test_cases_differ_in_what_is_quantized():
    made = modules("LSTM", CPU)
    assert not list(quantized_layers(made["float"]()))
    ((_, _, weights_only),) = quantized_layers(made["balanced median W2"]())
    assert not weights_only.inputs and {q.center for q in weights_only.weights.values()} == {"median"}
    ((_, _, both),) = quantized_layers(made["uniform W2A2"]())
    assert sorted(both.inputs) == ["input", "state_l0"]
