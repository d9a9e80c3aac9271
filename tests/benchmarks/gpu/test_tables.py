"""Tables of a GPU, from made-up records, and how records reach them."""

import json
from pathlib import Path

import pytest

from benchmarks import make_tables
from benchmarks.gpu import ablations, cifar10, collect, cost, imagenette, penn_treebank, published, tables
from recipes.compare.records import Results
from recipes.statistics import format_p, holm, paired_test
from tests.recipes.compare.test_tables import record as some_record

GPU = {"device": "Some GPU", "torch": "2.13.0+cu130", "cuda": "13.0"}
ACCURACIES = {"float": (91.0, 91.5, 91.2), "uniform_max": (80.0, 80.9, 80.1), "lsq": (88.0, 88.4, 88.9),
              "balanced_learned": (88.9, 89.0, 89.9)}  # fmt: skip


def record(method, seed, accuracy, *, width="W2A2", recipe="cifar10_resnet20_float", **changes):
    made = some_record(method, "float" if method == "float" else width, seed, accuracy / 100)
    return made | {"recipe": recipe, "cell": f"{recipe}-{method}-{seed}"} | GPU | changes


@pytest.fixture
def records():
    return [record(method, seed, value) for method, values in ACCURACIES.items() for seed, value in enumerate(values)]


def cells(table, label):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if label in row[:2]]
    return row


def test_a_row_has_spread_seeds_and_tests_against_each_baseline(records):
    table = tables.study_table(cifar10.STUDY, records)
    header = table.splitlines()[0]
    assert header.endswith("| against float | against uniform_max | against lsq |")
    row = cells(table, "balanced_learned")
    assert row[2] == "89.27 ± 0.55 (3)"
    for column, other in ((-2, "uniform_max"), (-1, "lsq")):
        pairs = zip(ACCURACIES["balanced_learned"], ACCURACIES[other], strict=True)
        test = paired_test([ours - theirs for ours, theirs in pairs])
        # Two rows are compared with each baseline: the third is the baseline itself.
        third = "lsq" if other == "uniform_max" else "uniform_max"
        pairs = zip(ACCURACIES[third], ACCURACIES[other], strict=True)
        p = holm([test.p, paired_test([ours - theirs for ours, theirs in pairs]).p])[0]
        assert row[column].startswith(f"{test.mean:+.2f} (") and f"p = {format_p(p)}" in row[column]
    assert "Device: Some GPU, threads: 1; torch 2.13.0+cu130, CUDA 13.0, lightning 3" in table


def test_published_rows_stand_beside_ours_with_their_sources(records):
    table = tables.study_table(cifar10.STUDY, records)
    assert cells(table, "PACT") == ["PACT", "89.7", "91.1", "91.3", "91.6"]
    assert cells(table, "APoT")[1] == "91.0?"
    assert cells(table, "ours, balanced_learned") == [
        "ours, balanced_learned", "89.3 (3)", "not measured", "not measured", "91.2 (3)",
    ]  # fmt: skip
    assert "The settings differ: " in table and "PACT: arXiv:1805.06085" in table


def test_each_recipe_has_columns_of_its_own():
    made = [record("float", 0, 0, recipe="ptb_gru_float", metric="test_perplexity", test={"test_perplexity": 92.0})]
    table = tables.study_table(penn_treebank.STUDY, made)
    header = next(line for line in table.splitlines() if "LSTM W2A2" in line)
    assert header.count("LSTM ") == header.count("GRU ") == 5
    assert cells(table, "Xu 2018, alternating")[5:7] == ["89.8", "101.2"]
    ours = cells(table, "ours, uniform_max")
    assert ours[1:6] == ["not measured"] * 5 and ours[-1] == "92.0 (1)"


def test_a_run_that_diverged_is_no_mean():
    made = [record("lsq", 0, 0, diverged=True, metric=None, test={}, best={})]
    assert cells(tables.study_table(cifar10.STUDY, made), "ours, lsq")[1] == "diverged"


def test_studies_of_one_recipe_keep_their_rows_apart(records):
    made = [*records, record("defaults", 0, 85.0), record("scale_mean", 0, 86.0)]
    ours, theirs = tables.study_table(cifar10.STUDY, made), tables.study_table(ablations.STUDY, made)
    assert "scale_mean" not in ours and "lsq" not in theirs
    assert cells(theirs, "scale_mean")[-1] == "+1.00, not tested (n = 1)"


def test_without_records_the_tables_say_so():
    for module in (penn_treebank, cifar10):
        table = tables.study_table(module.STUDY, [])
        assert table.startswith(tables.NOT_MEASURED) and "not measured" in table
    for module in (imagenette, ablations):  # of which nobody else reports anything
        assert tables.study_table(module.STUDY, []) == tables.NOT_MEASURED
    assert tables.cost_table([]) == tables.NOT_MEASURED


def test_published_numbers_are_of_recipes_and_widths_of_the_study():
    studies = {module.STUDY.name: module.STUDY for module in (penn_treebank, cifar10, imagenette, ablations)}
    for name, known in published.published().items():
        widths = {"float", *(str(width) for width in studies[name].columns)}
        for row in known["rows"]:
            assert row.keys() - {"name", "source"} <= set(studies[name].recipes), row
            for recipe in studies[name].recipes:
                assert set(row.get(recipe, {})) <= widths, row


# ---- cost ------------------------------------------------------------------------------------------------------------


def timed(bench, group, case, times, *, reference, run="1", parameters, **fields):
    return {
        "bench": bench, "group": group, "case": case, "reference": reference, "run": run, "parameters": parameters,
        "n": len(times), "seconds": [times[0]] * 3, "times": list(times), "lightning": "3", "commit": "0123456789",
        "dirty": False, "sources": "abc", "threads": 1, **GPU, **fields,
    }  # fmt: skip


def cost_records():
    model, layer = {"model": "ResNet-18", "bits": 2}, {"layer": "LSTM"}
    step = {"network": "ResNet-18", "batch": 256, "side": 224, "compiled": True}
    where = timed("", "", "", [1.0], reference="", parameters={})
    kernels = [{"name": "conv|kernel", "seconds": 0.3, "calls": 20}, {"name": "1 others", "seconds": 0.1, "calls": 7}]
    profiled = {"bench": "gpu_kernels", "group": "d", "parameters": {"network": "ResNet-18"}, "kernels": kernels}

    def quantizers(case, seconds, floor, launches):
        options = {"floor": floor, "launches": launches, "parameters": model}
        return timed("gpu_quantizers", "a", case, [seconds] * 2, reference="copy", **options)

    def steps(case, seconds, images, peak):
        options = {"images_per_second": images, "peak_allocated": peak, "parameters": step}
        return timed("gpu_steps", "b", case, [seconds] * 2, reference="float", **options)

    return [
        quantizers("copy", 1e-4, None, 1), quantizers("balanced mean", 3e-4, 2.0, 3),
        steps("float", 0.1, 2560.0, 2**31), steps("balanced W4A4", 0.11, 2327.3, 3 * 2**30),
        timed("bench_recurrent", "c", "float", [1e-3] * 2, reference="float", parameters=layer),
        timed("bench_recurrent", "c", "balanced mean W2", [2e-3] * 2, reference="float", parameters=layer),
        where | profiled,
    ]  # fmt: skip


def test_costs_are_ratios_with_what_they_are_measured_against():
    table = tables.cost_table(cost_records())
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("|")]
    flat = [" ".join(row).strip("| ") for row in rows]
    assert "ResNet-18 2 balanced mean 0.300 3.00 (3.00-3.00) 1.50 3 2" in flat
    assert "ResNet-18, batch 256 compiled balanced W4A4 110.0 1.100 (1.100-1.100) 2,327 3.00 2" in flat
    assert "LSTM balanced mean W2 2.00 2.00 (2.00-2.00) 2" in flat
    assert "ResNet-18 `conv\\|kernel` 20 75.0 %" in flat
    assert "Device: Some GPU, threads: 1; torch 2.13.0+cu130, CUDA 13.0" in table


def test_a_group_that_was_measured_again_counts_once():
    again = [one | {"run": "2", "launches": 5} for one in cost_records()[:2]]
    table = tables.cost_table([*cost_records(), *again])
    assert table.count("| balanced mean |") == 1 and "| 1.50 | 5 |" in table


def test_a_group_that_failed_is_named():
    failed = {"bench": "gpu_steps", "group": "ResNet-50", "error": "OutOfMemoryError: too much", "run": "3"}
    failed |= {name: cost_records()[0][name] for name in ("device", "torch", "threads", "lightning", "commit", "dirty")}
    table = tables.cost_table([*cost_records(), failed | {"sources": "abc"}])
    assert table.endswith("Failed: gpu_steps, ResNet-50 (OutOfMemoryError: too much).")


# ---- from the results of a run to documents --------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    made = {name: tmp_path / name for name in ("run", "results", "figures")}
    for folder in made.values():
        folder.mkdir()
    return made


def test_only_records_of_a_gpu_reach_the_tables(folders, records, monkeypatch, capsys):
    run, results = Results(folders["run"]), folders["results"]
    monkeypatch.setattr(collect, "collect", lambda folder: _collect(folder, folders))
    run.write("here", record("lsq", 5, 12.0, device="cpu"))
    assert collect.main(["--results", str(run.folder)]) == 1
    assert "there are no records of a GPU: nothing is written" in capsys.readouterr().out
    assert not list(results.iterdir())
    for one in records:
        run.write(one["cell"], one)
    (run.folder / cost.FILE).write_text("".join(json.dumps(one) + "\n" for one in cost_records()))
    (run.folder / "profile-resnet-18").mkdir()
    (run.folder / "profile-resnet-18" / "profile.svg").write_text("<svg/>")
    assert collect.main(["--results", str(run.folder)]) == 0
    names = {path.name for path in results.iterdir()}
    assert names == {f"{kind}--some-gpu--torch2.13.0.jsonl" for kind in ("gpu_tables", "gpu_cost")}
    assert (folders["figures"] / "gpu_profile-resnet-18.svg").read_text() == "<svg/>"
    table = make_tables.table("gpu_cifar10", results)
    assert table == tables.study_table(cifar10.STUDY, sorted(records, key=lambda one: one["cell"]))
    assert make_tables.table("gpu_cost", results) == tables.cost_table(cost_records())
    assert "12.00" not in table


_collect_into = collect.collect


def _collect(folder: Path, folders: dict[str, Path]) -> list[Path]:
    return _collect_into(folder, folders["results"], folders["figures"])


def test_what_a_dry_run_records_is_not_collected(folders, records):
    dry = Results(folders["run"] / "dry_run")
    for one in records:
        dry.write(one["cell"], one)
    assert _collect(folders["run"], folders) == []
