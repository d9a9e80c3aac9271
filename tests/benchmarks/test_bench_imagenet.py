import pytest

from benchmarks import bench_imagenet
from benchmarks.records import read
from tests.recipes.pictures import write_folders


def test_a_recipe_that_fails_says_why(tmp_path):
    root = write_folders(tmp_path / "three classes", train=2, validation=0)
    with pytest.raises(
        RuntimeError, match=r"imagenet_resnet18_w2a2 failed:(.|\n)*`classes` of the model must be that of"
    ):
        next(bench_imagenet.run(str(root), batch_size=2, steps=1, rounds=1, only=["imagenet_resnet18_w2a2"]))


def test_every_recipe_has_a_record_of_its_steps(tmp_path, monkeypatch):
    calls = []

    def measured(recipe, path, batch_size, steps):
        calls.append(recipe)
        seconds = 0.5 if recipe.endswith("float") else 1.0
        return {"step_seconds": [seconds] * steps, "peak_bytes": 2**20 * len(calls)}

    monkeypatch.setattr(bench_imagenet, "_in_a_process", measured)
    output = tmp_path / "records.jsonl"
    bench_imagenet.main(["--path", "secret", "--rounds", "2", "--steps", "3", "--output", str(output)])
    records = read(output)
    assert calls[:12] == calls[12:] and len(set(calls)) == len(records) == 12
    first = records[0]
    assert (first["recipe"], first["steps"], first["images_per_second"]) == ("imagenet_alexnet_float", 6, 16.0)
    assert first["peak_bytes"] == 13 * 2**20  # the larger of the two rounds
    assert "secret" not in output.read_text()
    table = bench_imagenet.imagenet_table(records).splitlines()
    assert table[2] == "| `imagenet_alexnet_float` | 16.0 | 1.00 | 13 |"
    assert table[3].startswith("| `imagenet_alexnet_w2a2` | 8.0 | 2.00 |")


def test_without_records_the_table_says_how_to_make_them():
    assert "python -m benchmarks.bench_imagenet" in bench_imagenet.imagenet_table([])


def test_the_clock_counts_steps_and_nothing_else(monkeypatch):
    times = iter([1.0, 1.5, 7.0, 9.0])
    monkeypatch.setattr(bench_imagenet.time, "perf_counter", lambda: next(times))
    clock = bench_imagenet.Clock()
    loss = type("Loss", (), {"item": lambda self: 0.0})()
    for _ in range(2):
        clock.on_train_batch_start(None, None, None, 0)
        clock.on_train_batch_end(None, None, {"loss": loss}, None, 0)
    assert clock.seconds == [0.5, 2.0]
