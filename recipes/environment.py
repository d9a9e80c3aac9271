"""What a record says about where it was measured: versions, device and commit, and nothing about who or which host."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import lightning
import torch

import lightning_balq

ROOT = Path(__file__).parents[1]


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, commit, and a digest of the sources of the package that was measured."""
    commit = git("rev-parse", "HEAD")
    # As in `git describe --dirty`, files that git does not track do not count: a new benchmark writes its first records
    # before it is committed. Nor do records, which are written while a benchmark runs.
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return {
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "lightning_balq": lightning_balq.__version__,
        "sources": source_digest(),
        **_described(device),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def _described(device: torch.device) -> dict[str, str | None]:
    """Name of a device, and of a GPU the version of CUDA that torch was built with."""
    if device.type == "cpu":
        return {"device": "cpu"}
    return {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}


def source_digest() -> str:
    """First 16 hexadecimal digits of the SHA-256 of all Python and C++ files of ``lightning_balq``, names included.

    A record made on a dirty tree can be matched with the commit that holds the same sources.
    """
    package = Path(lightning_balq.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def git(*arguments: str) -> str | None:
    """Output of a git command in the repository; ``None`` where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
