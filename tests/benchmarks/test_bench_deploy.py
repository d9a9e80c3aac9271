import pytest
import torch
from torch import nn

from benchmarks import bench_deploy
from benchmarks.bars import NOT_MEASURED, bars
from benchmarks.bench_deploy import BAR, COMPILED, INT8, REFERENCE, RESNET18, RESNET20, RUNTIME, run
from benchmarks.program import Options
from benchmarks.speed_tables import deploy_table
from lightning_balq.export.deploy_layers import IntegerConv
from tests.benchmarks.speed import record
from tests.benchmarks.study import cells


def build(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


@pytest.mark.parametrize("installed", [True, False])
def test_every_case_runs_the_same_network(monkeypatch, installed, capsys):
    compiled = []
    monkeypatch.setitem(bench_deploy.NETWORKS, RESNET20, bench_deploy.Deployed(build, 3, 8))
    monkeypatch.setattr(bench_deploy, "compile_deploy", lambda model: compiled.append(model) or model)  # takes a minute
    monkeypatch.setattr(
        bench_deploy, "runtime", lambda model, image, folder: (lambda: model(image)) if installed else None
    )
    (group,) = run(Options(torch.device("cpu"), 1, quick=True))
    assert [line["case"] for line in group] == [REFERENCE, COMPILED, INT8] + [RUNTIME] * installed
    assert group[0]["parameters"]["int8_layers"] == 1
    assert ("left out: ONNX Runtime" in capsys.readouterr().out) != installed
    plain, deployed = compiled
    assert isinstance(deployed[3], IntegerConv) and isinstance(plain[3], nn.Conv2d)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(plain(x), deployed(x))
    torch.testing.assert_close(plain(x), deployed(x), rtol=0, atol=1.0)  # 4 bits of the same weights


@pytest.mark.slow
def test_onnx_runtime_runs_the_float_network(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model, x = build(3).eval(), torch.randn(1, 3, 8, 8)
    (output,) = bench_deploy.runtime(model, x, tmp_path)()
    torch.testing.assert_close(torch.tensor(output), bench_deploy.forward(model, x), rtol=0, atol=1e-5)


def records():
    parameters = {"network": RESNET18, "threads": 2, "int8_layers": 19, "instructions": "AVX2"}
    times = {REFERENCE: [4.0, 8.0], RUNTIME: [2.0, 4.0], INT8: [1.0, 2.0]}
    return [record("bench_deploy", case, seconds, **parameters) for case, seconds in times.items()]


def test_the_table_says_how_many_times_as_fast_as_float():
    table = deploy_table(records())
    row = next(line for line in table.splitlines() if f"| {INT8} |" in line)
    assert row == f"| {RESNET18} | 2 | {INT8} | 1500.0 | 4.00 (4.00-4.00) |  | 2.00 (2.00-2.00) | 2 |"
    assert "19 layers in int8; AVX2." in table
    assert cells(table)["network"]
    assert deploy_table([]) == NOT_MEASURED


def test_the_bar_is_met_from_1_3_times_as_fast_on():
    (bar,) = [bar for bar in bars() if bar.what.endswith(f"{INT8} against {RUNTIME}")]
    assert bar.value(records()).median == 0.5 <= bar.limit == BAR == round(1 / 1.3, 3)
