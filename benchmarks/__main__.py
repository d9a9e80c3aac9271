"""Run the micro benchmarks and every benchmark of speed and memory; arguments are passed on to the latter.

Run: python -m benchmarks [--quick] [--device cuda] ..
"""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.suite import BENCHMARKS

MICRO = Path(__file__).parent / "test_micro.py"


def main() -> int:
    """Run each in a process of its own, so that none finds caches warm; return 1 if one failed."""
    micro = ["pytest", str(MICRO), "-q", "--benchmark-only", "--benchmark-columns=median,iqr,rounds"]
    programs = [micro, *([f"benchmarks.{name}", *sys.argv[1:]] for name in BENCHMARKS)]
    failed = []
    for program in programs:
        print(f"== {' '.join(program)}", flush=True)
        begin = time.perf_counter()
        if subprocess.run([sys.executable, "-m", *program]).returncode:
            failed.append(program[0])
        print(f"== {time.perf_counter() - begin:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
