import pytest

from benchmarks import bench_input
from benchmarks.records import read
from tests.recipes.pictures import write_folders, write_parquet

CASES = [
    "training", "evaluation", "training, cached at 256", "evaluation, cached at 256", "training, cached at 160",
    "decoding alone",
]  # fmt: skip


@pytest.mark.usefixtures("own_datasets")
@pytest.mark.parametrize("write", [write_folders, write_parquet])
def test_every_way_is_measured_and_no_path_is_recorded(tmp_path, write, capsys, monkeypatch):
    monkeypatch.setattr(bench_input.torch, "set_num_threads", lambda threads: None)
    files = {"files": 1} if write is write_parquet else {}
    root = write(tmp_path / "secret", train=3, validation=1, **files)
    output = tmp_path / "records.jsonl"
    bench_input.main(["--path", str(root), "--images", "2", "--repeats", "2", "--output", str(output)])
    lines = read(output)
    assert [line["case"] for line in lines] == CASES
    assert {line["n"] for line in lines} == {2}
    parameters = lines[0]["parameters"]
    assert (parameters["images"], parameters["width"], parameters["height"]) == (2, 12, 10)
    assert 0 < parameters["bytes"] < 200
    assert "secret" not in output.read_text()
    assert "training, cached at 160" in capsys.readouterr().out


def test_the_table_gives_images_per_second():
    size = {"images": 100, "width": 500, "height": 375, "bytes": 110_000}
    record = {
        "bench": "bench_input", "run": "2026", "case": "training", "n": 5, "seconds": [0.4, 0.5, 0.8], "device": "cpu",
        "torch": "2.13.0", "pillow": "13.0", "parameters": size,
    }  # fmt: skip
    table = bench_input.input_table([record | {"run": "2025", "seconds": [9, 9, 9]}, record])
    assert "| training | 200 (125-250) | 5.00 |" in table.splitlines()
    assert table.count("\n| training") == 1 and "100 images of 500x375 pixels and 110 kB on average" in table
