import pytest
import torch

from benchmarks import bench_weights
from benchmarks.bench_weights import run
from benchmarks.program import Options

CPU = torch.device("cpu")


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_case_is_measured_at_every_width_and_granularity(monkeypatch):
    monkeypatch.setattr(bench_weights, "SHAPE", (4, 8, 3, 3))
    groups = list(run(Options(CPU, 1)))
    assert [(g[0]["parameters"]["granularity"], g[0]["parameters"]["bits"]) for g in groups] == [
        (granularity, bits) for granularity in ("per_tensor", "per_channel") for bits in (2, 3, 4, 8)
    ]
    for group in groups:
        cases = {record["case"] for record in group}
        assert cases >= {
            "uniform, compiled", "uniform, op by op", "uniform", "balanced mean", "balanced median",
            "balanced, functional", "balanced, scatter_add", "balanced, sort",
        }  # fmt: skip
        assert ("balanced, comparisons compiled" in cases) == (group[0]["parameters"]["bits"] <= 4)
        assert {record["reference"] for record in group} == {"uniform, compiled"}


@pytest.mark.usefixtures("no_compiler")
def test_a_quick_run_measures_a_part_of_the_same_cases(monkeypatch):
    monkeypatch.setattr(bench_weights, "SHAPE", (4, 8, 3, 3))
    groups = list(run(Options(CPU, 1, quick=True)))
    assert [group[0]["parameters"]["bits"] for group in groups] == [2, 4]
    assert [record["case"] for record in groups[0]] == [
        "uniform, compiled", "balanced mean", "balanced median", "uniform", "uniform, op by op",
        "balanced, comparisons compiled",
    ]  # fmt: skip
