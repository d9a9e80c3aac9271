from pathlib import Path

import pytest

from benchmarks import bench_activations, bench_weights, make_tables, weights
from benchmarks.records import Record, append
from tests.benchmarks.study import example


@pytest.fixture
def records() -> list[Record]:
    return example()


@pytest.fixture
def results(tmp_path: Path, records: list[Record]) -> Path:
    for line in records:
        append(tmp_path / make_tables.STUDY, line)
    return tmp_path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run compiled forms uncompiled: the same values, without the seconds."""
    for module in (bench_activations, bench_weights, weights):
        monkeypatch.setattr(module, "compiled", lambda function, bits, values: function)
