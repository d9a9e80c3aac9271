import os

import pytest

from recipes.compare.records import Results, read


def test_a_record_is_whole_or_not_there(tmp_path, monkeypatch):
    results = Results(tmp_path)
    results.write("a", {"status": "failed"})

    def killed(*names):
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        for cell in ("a", "b"):
            with pytest.raises(KeyboardInterrupt, match="killed"):
                results.write(cell, {"status": "finished"})
    assert results.record("a") == {"status": "failed"} and results.record("b") is None
    assert results.read() == read(tmp_path) == [{"status": "failed"}]
    results.write("a", {"status": "finished"})
    assert results.record("a") == {"status": "finished"}


def test_what_is_due_is_what_has_no_record_and_on_demand_what_failed(tmp_path):
    results = Results(tmp_path)
    results.write("failed", {"status": "failed"})
    results.write("finished", {"status": "finished"})
    cells = ("failed", "finished", "missing")
    assert [cell for cell in cells if results.is_due(cell, retry=False)] == ["missing"]
    assert [cell for cell in cells if results.is_due(cell, retry=True)] == ["failed", "missing"]


def test_a_record_holds_no_number_that_json_has_not(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        Results(tmp_path).write("a", {"loss": float("nan")})
    assert Results(tmp_path).record("a") is None
