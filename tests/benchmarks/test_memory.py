from pathlib import Path

import pytest
import torch

from benchmarks.memory import Memory, held, measure_memory, resident_growth
from tests.helpers import run_python

CPU = torch.device("cpu")
BUFFER = 4 * 100_000


def test_held_follows_the_level():
    assert held([10, 20, -10, 5, -20]) == Memory(peak=30, kept=5)
    assert held([]) == Memory(0, 0)


def test_peak_counts_buffers_alive_together_and_kept_only_the_result():
    x = torch.rand(100_000)
    assert measure_memory(lambda: x.neg().exp().log(), CPU)[:2] == (2 * BUFFER, BUFFER)
    memory = measure_memory(lambda: x.neg().sum(), CPU)
    assert (memory.peak // BUFFER, memory.kept) == (1, 4)
    assert measure_memory(lambda: x, CPU)[:2] == (0, 0)


def test_what_the_backward_waits_for_is_kept():
    x = torch.rand(100_000, requires_grad=True)
    assert measure_memory(lambda: x.exp().log(), CPU).kept == 2 * BUFFER


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is known on Linux only")
def test_memory_outside_of_torch_shows_as_resident():
    # In a process of its own: one that has freed much before may give memory back while it is measured.
    size = 100 * 2**20
    printed = run_python(
        f"""
import torch
from benchmarks.memory import measure_memory, resident_growth
print(resident_growth(lambda: bytearray({size})))
memory = measure_memory(lambda: len(bytearray({size})), torch.device("cpu"))
print(memory.peak, memory.resident)
"""
    )
    growth, peak, resident = map(int, printed.split())
    assert (growth, resident) == (pytest.approx(size, rel=0.1), pytest.approx(size, rel=0.1))
    assert peak == 0


def test_resident_memory_is_read_from_the_status_of_the_process(tmp_path):
    def case() -> None:
        (tmp_path / "status").write_text("VmHWM:\t 300 kB\nVmRSS:\t 250 kB\n")

    (tmp_path / "status").write_text("VmHWM:\t 900 kB\nVmRSS:\t 200 kB\n")
    assert resident_growth(case, tmp_path) == 100 * 1024
    assert resident_growth(case, tmp_path / "missing") is None
