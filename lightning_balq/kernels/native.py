"""Compile the C++ code of this package at first use, once for each machine and compiler, and load it.

``LIGHTNING_BALQ_KERNELS=0`` turns compiled code off. ``CXX`` names the compiler (default: ``c++``, ``g++`` or
``clang++``), ``LIGHTNING_BALQ_CACHE`` the folder where the result is kept (default: ``lightning_balq`` in
``$XDG_CACHE_HOME`` or ``~/.cache``). Compiling takes a few seconds; a program that finds the result there loads it in
a few milliseconds.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "recurrent.cpp"))
SWITCH = "LIGHTNING_BALQ_KERNELS"
CACHE = "LIGHTNING_BALQ_CACHE"

_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# In order of preference: a compiler may know neither the processor nor OpenMP.
_EXTRAS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
_TIMEOUT = 300


class BuildError(RuntimeError):
    """The code could not be compiled or loaded; the message says why."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled code; ``None``, after one warning that says why, where there is none."""
    try:
        return _load()
    except BuildError as error:
        warnings.warn(
            f"lightning_balq runs without compiled CPU kernels, which are 10 to 100 times faster: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _load() -> ctypes.CDLL:
    if os.environ.get(SWITCH, "1") == "0":
        raise BuildError(f"they are turned off by {SWITCH}=0; unset it to turn them on")
    compiler = _compiler()
    torch.get_num_threads()  # starts the OpenMP runtime that torch brings, which the code then shares
    errors = []
    for extras in _EXTRAS:
        try:
            return _open(compiler, (*_FLAGS, *extras))
        except (BuildError, OSError) as error:  # noqa: PERF203  # what fails here takes seconds
            errors.append(str(error))
    raise BuildError(f"{compiler} failed; set CXX to name another compiler. It said: {errors[0]}")


def _open(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    path = _build(compiler, flags)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # a disk that was full, say, when it was written
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_build(compiler, flags)))


def _compiler() -> str:
    named = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [named] if named else ["c++", "g++", "clang++"])), None)
    if found is None:
        raise BuildError(f"no C++ compiler {named or '(c++, g++ or clang++)'} was found; install one or set CXX")
    return found


def _build(compiler: str, flags: tuple[str, ...]) -> Path:
    """Path of the compiled code, compiled now unless it was before."""
    # What the compiler predefines names its version and, with -march=native, the instructions of this machine.
    known = _run([compiler, *flags, "-x", "c++", "-dM", "-E", os.devnull])
    code = [source.read_text() for source in SOURCES]
    digest = hashlib.sha256("\0".join([known, *flags, *code]).encode()).hexdigest()[:16]
    path = _folder() / f"cpu-{digest}.so"
    if not path.exists():
        # Processes may compile at the same time: each writes a file of its own and moves it into place at once.
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            result = Path(scratch) / path.name
            _run([compiler, *flags, *map(str, SOURCES), "-o", str(result)])
            result.replace(path)
    return path


def _folder() -> Path:
    named = os.environ.get(CACHE)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(root) / "lightning_balq"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return _private_folder()


@functools.cache
def _private_folder() -> Path:
    """Make a folder for this process alone, where no cache can be written."""
    return Path(tempfile.mkdtemp(prefix="lightning_balq-"))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise BuildError(lines[0]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error
    return done.stdout
