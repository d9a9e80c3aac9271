"""Compiling: once for a machine, safely, and the plain form with one warning where it cannot be done."""

import json
import shutil
import stat

import pytest

from lightning_balq.kernels import native
from tests.helpers import run_python

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load the library as a process does that has not done so before, with a cache of its own."""
    monkeypatch.setenv(native.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)

    def load(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return native.library.__wrapped__()

    return load


@pytest.fixture
def script(tmp_path):
    """Write a stand-in for a compiler."""

    def write(text):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return write


@needs_compiler
def test_code_is_compiled_once_for_all_processes(load, script, tmp_path):
    log = tmp_path / "calls"
    compiler = script(f'echo "$@" >> {log}\nexec {COMPILER} "$@"')
    for _ in range(2):
        assert load(CXX=compiler) is not None
    assert len([call for call in log.read_text().splitlines() if " -o " in call]) == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({native.SWITCH: "0"}, "turned off by LIGHTNING_BALQ_KERNELS=0"),
        ({"CXX": "no-such-compiler"}, "no C\\+\\+ compiler no-such-compiler was found"),
    ],
    ids=["turned off", "no compiler"],
)
def test_there_is_no_library_and_a_warning_says_why(load, environment, reason):
    with pytest.warns(RuntimeWarning, match=reason):
        assert load(**environment) is None


def test_compiler_that_fails_is_quoted_in_the_warning(load, script):
    with pytest.warns(RuntimeWarning, match="set CXX to name another compiler. It said: out of cheese"):
        assert load(CXX=script("echo 'out of cheese' >&2\nexit 3")) is None


@needs_compiler
def test_compiler_without_openmp_and_native_instructions_will_do(load, script):
    refuse = 'for flag in "$@"; do case "$flag" in -fopenmp|-m*=native) echo "unknown $flag" >&2; exit 1;; esac; done'
    assert load(CXX=script(f'{refuse}\nexec {COMPILER} "$@"')) is not None


@needs_compiler
def test_cache_that_cannot_be_written_is_done_without(load, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    assert load() is not None


@needs_compiler
def test_broken_file_in_the_cache_is_replaced(load, tmp_path):
    (tmp_path / "cache").mkdir()
    intact = native._build(COMPILER, (*native._FLAGS, *native._EXTRAS[0]))
    size = intact.stat().st_size
    intact.write_bytes(b"not a library")
    assert load(CXX=COMPILER) is not None
    assert intact.stat().st_size == size
    assert list((tmp_path / "cache").iterdir()) == [intact]


def test_turned_off_everything_runs_in_the_plain_form_after_one_warning():
    script = """
import json, os, warnings
os.environ["LIGHTNING_BALQ_KERNELS"] = "0"
import torch
from lightning_balq import BalancedQuantizer, functional
from lightning_balq.nn import ActivationQuantizer

weight = torch.linspace(-1, 1, 1000) ** 3
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for bits in (2, 8):
        assert torch.equal(BalancedQuantizer(bits)(weight), functional.balanced_fake_quantize(weight, bits))
        assert torch.equal(BalancedQuantizer(bits).codes(weight), functional.balanced_codes(weight, bits))
    ActivationQuantizer(2, "observed", "auto")(weight, observe=True)
print(json.dumps([str(warning.message) for warning in caught]))
"""
    (warned,) = json.loads(run_python(script))
    assert "LIGHTNING_BALQ_KERNELS=0" in warned
