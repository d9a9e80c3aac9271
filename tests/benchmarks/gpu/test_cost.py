"""What is measured on a GPU, measured on a CPU with small networks."""

import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import cost, kernels, quantizers, steps
from benchmarks.program import Options
from benchmarks.records import append, read
from lightning_balq.nn import quantized_layers
from recipes.compare.runs import SOME_FAILED, SOME_LEFT

CPU = torch.device("cpu")
OPTIONS = Options(CPU, 2, quick=True)


def tiny():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3)
    )


@pytest.fixture
def small(monkeypatch):
    """Networks small enough for a test, and no compiler."""
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_in_place(module, backend="eager"))
    monkeypatch.setattr(steps, "build", lambda name, classes: tiny())
    monkeypatch.setattr(quantizers, "MODELS", {"tiny": tiny})
    monkeypatch.setattr(torch, "randint", partial(_labels, torch.randint))


def _labels(randint, high, shape, **options):
    return randint(min(high, 3), shape, **options)


def cases(records):
    return {record["case"]: record for record in records}


def test_quantizers_are_measured_against_a_copy_and_the_floor(small):
    found = cases(quantizers.run("tiny", 4, OPTIONS))
    assert found.keys() >= {"copy", "balanced mean", "balanced median", "uniform", "uniform, op by op"}
    assert any(case.startswith("torch ") for case in found)
    assert found["balanced mean"]["parameters"] == {
        "model": "tiny",
        "bits": 4,
        "weights": 108 + 144 + 192,
        "tensors": 3,
    }
    # Five reads and a write, or two reads and a write, against a read and a write.
    assert {case: found[case]["floor"] for case in ("balanced mean", "uniform", "copy")} == {
        "balanced mean": 3.0, "uniform": 1.5, "copy": None,
    }  # fmt: skip
    assert all(record["launches"] is None and record["reference"] == "copy" for record in found.values())


def test_a_quantizer_that_is_measured_quantizes_every_weight():
    weights = [torch.randn(4, 3, 3, 3), torch.randn(5, 7)]
    made = quantizers.cases(weights, 2)
    for case in ("balanced mean", "balanced median", "uniform", "uniform, op by op"):
        levels = made[case]()
        assert [len(level.unique()) for level in levels] == [4, 4], case
    copied = made["copy"]()
    assert torch.equal(copied, torch.cat([weight.flatten() for weight in weights]))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [2, 4])
def test_launches_on_a_gpu_do_not_grow_with_the_number_of_weights(bits):
    counts = []
    for count in (3, 30):
        made = quantizers.cases([torch.randn(64, 64, 3, 3, device="cuda") for _ in range(count)], bits)
        made["balanced mean"]()  # compiles, and uploads tables
        counts.append(quantizers.launches(made["balanced mean"], torch.device("cuda")))
    assert counts[0] == counts[1] <= 2 * bits + 8  # a launch for each bit, and what clears their counters


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_train_float_and_quantized_networks(small, compiled):
    torch._dynamo.reset()
    found = cases(steps.run("ResNet-18", steps.Size(4, 8), OPTIONS, compiled=compiled))
    assert list(found) == ["float", "uniform W4A4", "balanced W4A4"]
    for record in found.values():
        assert record["parameters"] == {"network": "ResNet-18", "batch": 4, "side": 8, "compiled": compiled}
        assert record["images_per_second"] == pytest.approx(4 / record["seconds"][1])
        assert record["peak_allocated"] is None


@pytest.mark.parametrize("case", steps.METHODS)
def test_a_step_changes_weights_and_ranges(small, case):
    model = steps.network("ResNet-18", case, CPU, compiled=False)
    layers = list(quantized_layers(model))
    assert len(layers) == (0 if case == "float" else 1)  # the first and the last one stay float
    before = [parameter.detach().clone() for parameter in model.parameters()]
    call = steps.step(model, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
    call()
    ranges = [state.inputs["input"].range.clone() for _, _, state in layers]
    call()
    assert all(not torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert all(state.inputs["input"].ready and range_ > 0 for (_, _, state), range_ in zip(layers, ranges, strict=True))


def test_a_profile_names_what_takes_longest_and_adds_up_the_rest(small, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "SHOWN", 3)
    record = kernels.run("ResNet-18", steps.Size(4, 8), OPTIONS, tmp_path / "some")
    seconds = [kernel["seconds"] for kernel in record["kernels"]]
    assert len(seconds) == 4 and seconds[:3] == sorted(seconds[:3], reverse=True)
    assert record["kernels"][3]["name"].endswith(" others")
    assert (tmp_path / "some" / "profile.json").stat().st_size > 1000
    picture = (tmp_path / "some" / "profile.svg").read_text()
    assert record["kernels"][0]["name"] in picture and "ResNet-18, balanced W4A4, one training step" in picture


def test_annotations_are_no_kernels():
    with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.profiler.record_function("what holds others"):
        torch.ones(100).sum()
    names = {kernel.name for kernel in kernels.longest(profiler, CPU)}
    assert "aten::sum" in names and "what holds others" not in names


def test_groups_are_recorded_once_and_the_budget_is_kept(small, tmp_path, capsys):
    assert cost.run(tmp_path, 0.0, time.monotonic() - 1, dry_run=True) == SOME_LEFT
    assert "4 groups are left; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / cost.FILE).exists()
    assert cost.main(["--results", str(tmp_path), "--dry-run"]) == 0
    records = read(tmp_path / "dry_run" / cost.FILE)
    assert [record["bench"] for record in records].count("gpu_steps") == 3
    assert {record["device"] for record in records} == {"cpu"} and all("/" not in record["group"] for record in records)
    assert cost.main(["--results", str(tmp_path), "--dry-run", "--budget", "0"]) == 0
    assert read(tmp_path / "dry_run" / cost.FILE) == records


def test_a_group_that_fails_is_recorded_and_does_not_stop_the_others(small, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(steps, "build", None)
        patch.setattr(cost, "_recurrent", lambda options: [{"case": "some"}])
        for _ in range(2):  # the second time, nothing is measured
            assert cost.run(tmp_path, None, 0.0, dry_run=True) == SOME_FAILED
    records = read(tmp_path / cost.FILE)
    errors = {record["bench"]: record["error"] for record in records if "error" in record}
    assert errors == dict.fromkeys(["gpu_steps", "gpu_kernels"], "TypeError: 'NoneType' object is not callable")
    assert [record["bench"] for record in records].count("gpu_steps") == 1 and len(records) > 5
    assert capsys.readouterr().out.count("2 groups have failed; `--retry` measures them again") == 2
    assert cost.run(tmp_path, None, 0.0, dry_run=True, retry=True) == 0
    assert [record.get("case") for record in read(tmp_path / cost.FILE)][-4:] == [*steps.METHODS, "balanced W4A4"]


def test_other_sources_are_measured_anew(tmp_path):
    where = {"device": "a gpu", "torch": "2", "sources": "abc"}
    group, path = cost.Group("bench", "label", list), tmp_path / cost.FILE
    append(path, {"bench": "bench", "group": "label"} | where)
    assert cost._recorded(group, path, where)
    assert not cost._recorded(group, path, where | {"sources": "def"})
    assert not cost._recorded(cost.Group("bench", "other", list), path, where)


def test_all_groups_of_a_full_run_are_named(tmp_path):
    found = list(cost.groups(OPTIONS, tmp_path, steps.Size(), dry_run=False))
    names = [f"{group.bench}: {group.label}" for group in found]
    assert len(set(names)) == len(names) == 4 + 2 + 8 + 1
    assert names[0] == "gpu_steps: ResNet-18, eager"
