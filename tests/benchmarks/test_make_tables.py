import pytest

from benchmarks import make_tables
from benchmarks.bars import NOT_MEASURED
from benchmarks.records import append
from benchmarks.suite import BENCHMARKS
from tests.benchmarks.speed import scaling

SCALING = "bench_scaling--cpu--torch2.13.0.jsonl"


def test_update_writes_between_the_markers_and_only_there(results, tmp_path):
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- table: study_defaults_networks -->\nold\n<!-- /table -->\nafter\n")
    assert make_tables.update([document], results) == [document]
    text = document.read_text()
    assert text.startswith("before\n<!-- table: study_defaults_networks -->\n\n| scale")
    assert text.endswith("|\n\n<!-- /table -->\nafter\n")
    assert "old" not in text
    assert make_tables.update([document], results) == []


def test_check_fails_on_a_stale_file_and_leaves_it(tmp_path, capsys):
    document = tmp_path / "document.md"
    stale = "<!-- table: study_defaults -->\n<!-- /table -->\n"
    document.write_text(stale)
    assert make_tables.main(["--check", str(document)]) == 1
    assert document.read_text() == stale
    assert "out of date: " in capsys.readouterr().out
    assert make_tables.main([str(document)]) == 0
    assert make_tables.main(["--check", str(document)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nothing -->\n<!-- /table -->", "one of .*'study_defaults'.*, got 'nothing'"),
        ("<!-- table: study_defaults -->\n", "needs a .*, got 1 and 0"),
    ],
)
def test_fill_refuses_a_document_it_cannot_fill(text, message):
    with pytest.raises(ValueError, match=message):
        make_tables.fill(text)


def test_a_table_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'study_defaults' needs the records 'study_defaults--cpu"):
        make_tables.table("study_defaults", tmp_path)


def test_committed_documents_are_up_to_date_with_the_committed_records():
    documents = make_tables.documents()
    assert {path.parent.name for path in documents} >= {"benchmarks"}
    assert make_tables.update(documents, check=True) == []
    assert make_tables.update_figures(check=True) == []


@pytest.mark.parametrize("name", sorted(make_tables.MAY_BE_EMPTY))
def test_a_table_without_records_says_so(name, tmp_path):
    assert "No records yet. Measure: " in make_tables.table(name, tmp_path)


def test_the_bars_read_every_benchmark_of_speed_and_no_other(tmp_path):
    for name in (*BENCHMARKS, "bench_input", "bench_quickstart", "bench_recording", "study_defaults"):
        (tmp_path / f"{name}--cpu--torch2.13.0.jsonl").touch()
        (tmp_path / f"{name}--nvidia-h100--torch2.13.0.jsonl").touch()
    patterns = make_tables.TABLES["bars"][0].split()
    found = {path.name.partition("--")[0] for pattern in patterns for path in tmp_path.glob(pattern)}
    assert found == set(BENCHMARKS)


def test_a_figure_is_linked_from_where_its_document_stands(tmp_path, monkeypatch):
    text = "<!-- figure: scaling_time -->\n<!-- /figure -->\n"
    monkeypatch.setattr(make_tables, "DRAWINGS", tmp_path / "benchmarks" / "figures")
    document = tmp_path / "docs" / "speed.md"
    assert NOT_MEASURED in make_tables.fill(text, tmp_path, document)
    append(tmp_path / SCALING, scaling("balanced mean", 1000, 0.001))
    filled = make_tables.fill(text, tmp_path, document)
    assert "\n![scaling time](../benchmarks/figures/scaling_time.svg)\n" in filled
    assert make_tables.fill(filled, tmp_path, document) == filled


def test_figures_are_drawn_when_their_data_changed_and_only_then(tmp_path):
    folder = tmp_path / "figures"
    assert make_tables.update_figures(folder, tmp_path) == []
    append(tmp_path / SCALING, scaling("balanced mean", 1000, 0.001))
    both = [folder / f"{name}.svg" for name in make_tables.FIGURES]
    assert make_tables.update_figures(folder, tmp_path, check=True) == both
    assert not folder.exists()
    assert make_tables.update_figures(folder, tmp_path) == both
    assert make_tables.update_figures(folder, tmp_path, check=True) == []
    append(tmp_path / SCALING, scaling("balanced mean", 3000, 0.003))
    assert make_tables.update_figures(folder, tmp_path, check=True) == both


def test_an_unknown_figure_is_refused():
    with pytest.raises(ValueError, match=r"one of .*'scaling_time'.*, got 'nothing'"):
        make_tables.fill("<!-- figure: nothing -->\n<!-- /figure -->")
