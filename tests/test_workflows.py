"""The workflows run nothing but targets of the Makefile, so that everybody can run what they run."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
INSTALLS_MAKE = "choco install make --no-progress --yes"


def _commands(workflow: dict[str, Any]) -> list[str]:
    """Commands of all jobs, once for each target that a job is made of."""
    commands = []
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        targets = [entry["target"] for entry in matrix.get("include", [])] or matrix.get("target", [""])
        for step in job["steps"]:
            commands += [step["run"].replace("${{ matrix.target }}", target) for target in targets if "run" in step]
    return commands


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_only_targets_of_the_makefile(path: Path) -> None:
    commands = [command for command in _commands(yaml.safe_load(path.read_text())) if command != INSTALLS_MAKE]

    assert commands
    for command in commands:
        make, target, *variables = command.split()
        assert make == "make" and target in TARGETS
        assert all("=" in variable for variable in variables)


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")
def test_workflows_check_licences_vulnerabilities_coverage_and_the_oldest_versions() -> None:
    commands = [command for path in WORKFLOWS for command in _commands(yaml.safe_load(path.read_text()))]

    made = {command.split()[1] for command in commands if command.startswith("make ")}
    assert {"test", "test-all", "test-oldest", "check", "coverage"} <= made


def test_the_oldest_versions_are_the_lower_bounds_of_the_package() -> None:
    pins = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    package = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    bounds = re.findall(r'"([a-z-]+)>=([\d.]+),<', package) + re.findall(r'"(pytorch-lightning)>=([\d.]+),<', text)

    assert {name for name, _ in bounds} == {
        "jsonargparse", "lightning", "pytorch-lightning", "rich", "torch", "torchmetrics",
    }  # fmt: skip
    for name, bound in bounds:
        assert re.search(rf"^{name}=={re.escape(bound)}(\.0)*$", pins, re.MULTILINE), name
