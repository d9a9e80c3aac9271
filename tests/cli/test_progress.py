"""A bar of steps is shown on a terminal, and nowhere else."""

import io

import pytest
from rich.console import Console

from lightning_balq.cli.progress import progress
from tests.cli.commands import TINY, run


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_are_counted_where_somebody_looks(terminal):
    shown = io.StringIO()
    with progress(2, Console(file=shown, force_terminal=terminal, width=80)) as begin:
        begin("reading")
        first = shown.getvalue()
        begin("writing")
        second = shown.getvalue()[len(first) :]
    last = shown.getvalue()[len(first + second) :]
    counts = [[count for count in ("0/2", "1/2", "2/2") if count in part] for part in (first, second, last)]
    if terminal:
        assert "reading" in first and "writing" in second
        assert counts == [["0/2"], ["1/2"], ["2/2"]]
    else:
        assert first + second + last == ""


def test_an_error_ends_the_bar_and_passes():
    shown = io.StringIO()

    def fail():
        with progress(2, Console(file=shown, force_terminal=True)) as begin:
            begin("reading")
            raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        fail()
    assert "0/2" in shown.getvalue() and "1/2" not in shown.getvalue()


def test_commands_show_their_steps_on_standard_error(fitted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    _, checkpoint = fitted("plain")
    packed = tmp_path / "m.safetensors"
    for arguments, steps in {
        ("pack", checkpoint, packed): ["making the model", "quantizing its weights", "writing", "3/3"],
        ("verify", packed, checkpoint, "--shape", "2,1,8,8"): ["making the model", "loading", "comparing", "3/3"],
        ("export", checkpoint, tmp_path / "m.pt2", "--shape", "2,1,8,8"): ["making the model", "exporting", "2/2"],
        ("inspect", checkpoint): ["reading", "quantizing its weights", "2/2"],
    }.items():
        capsys.readouterr()
        assert run(*arguments, "--model", TINY, "--json") == 0
        output, shown = capsys.readouterr()
        assert [step for step in steps if step not in shown] == []
        assert output.startswith("{")
