"""Runs the other tests of this folder in Triton's interpreter, which wants a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

from tests.helpers import ROOT

triton = pytest.importorskip("triton", "3.2", reason="the kernels need triton 3.2")
NEEDS_OLD_NUMPY = Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter")
@pytest.mark.skipif(NEEDS_OLD_NUMPY, reason="interpreters before triton 3.7 need NumPy before 2.4")
@pytest.mark.parametrize("file", ["test_weights.py", "test_activations.py"])
def test_kernels_pass_their_tests_in_the_interpreter(file):
    # No settings of this run of pytest, such as its workers, may reach the other.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
