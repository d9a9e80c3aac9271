import pytest
import torch

from benchmarks import bench_scaling
from benchmarks.bench_scaling import run
from benchmarks.program import Options


@pytest.mark.usefixtures("no_compiler")
def test_the_sweeps_measure_time_and_memory_of_every_point(monkeypatch):
    monkeypatch.setattr(bench_scaling, "WEIGHTS", (1000,))
    monkeypatch.setattr(bench_scaling, "WEIGHTS_BITS", (2,))
    monkeypatch.setattr(bench_scaling, "BITS", (1,))
    monkeypatch.setattr(bench_scaling, "BITS_WEIGHTS", 1000)
    monkeypatch.setattr(bench_scaling, "LAYERS", (4,))
    monkeypatch.setattr(bench_scaling, "LAYERS_WEIGHTS", 1000)
    groups = list(run(Options(torch.device("cpu"), 1)))
    assert [tuple(group[0]["parameters"].values()) for group in groups] == [
        ("weights", 1000, 2, 1), ("bits", 1000, 1, 1),
        ("layers", 1000, 4, 4),
    ]  # fmt: skip
    for group in groups:
        assert [record["case"] for record in group] == [
            "uniform, compiled", "balanced mean", "balanced median", "uniform",
        ]  # fmt: skip
        assert all(record["peak_bytes"] >= 4 * record["parameters"]["weights"] for record in group)
