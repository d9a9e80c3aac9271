"""What the package promises as a whole: its version, its light import, its layers, its pinned environment."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lightning_balq

PACKAGE = Path(lightning_balq.__file__).parent
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
OPTIONAL = {
    "datasets",
    "jsonargparse",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pytest",
    "safetensors",
    "scipy",
    "sklearn",
}


def test_version_is_the_version_in_the_metadata():
    assert lightning_balq.__version__ == version("lightning-balq")


def test_import_loads_no_optional_package_and_starts_no_gpu():
    # The dependencies come first: what Lightning and torchmetrics load when it is there is their choice.
    script = """
import jsonargparse, lightning.pytorch, rich, sys, torch, torchmetrics
before = set(sys.modules)
import lightning_balq
print(*{name.partition(".")[0] for name in set(sys.modules) - before}, torch.cuda.is_initialized())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stderr
    *loaded, gpu = run.stdout.split()
    assert "lightning_balq" in loaded
    assert OPTIONAL.intersection(loaded) == set()
    assert gpu == "False"


@pytest.mark.parametrize(
    ("layer", "allowed"),
    [
        ("functional", {"torch", "lightning_balq.functional"}),
        ("kernels", {"lightning_balq.functional", "lightning_balq.kernels", "torch", "triton"}),
        (
            "nn",
            {
                "lightning_balq.functional",
                "lightning_balq.kernels",
                "lightning_balq.nn",
                "rich",
                "torch",
                "torchmetrics",
            },
        ),
        (
            "export",
            {
                "lightning_balq.__version__",
                "lightning_balq.export",
                "lightning_balq.functional",
                "lightning_balq.nn",
                "torch",
            },
        ),
        (".", {"jsonargparse", "lightning", "lightning_balq", "numpy", "rich", "torch", "torchmetrics", "triton"}),
    ],
    ids=["functional", "kernels", "nn", "export", "package"],
)
def test_layer_imports_only_dependencies_and_what_lies_below_it(layer, allowed):
    sources = sorted((PACKAGE / layer).rglob("*.py"))
    assert sources, f"no Python file in {PACKAGE / layer}"
    wrong = [
        f"{source.relative_to(PACKAGE)}:{line} {name}"
        for source in sources
        for line, name in imported_names(source)
        if name.partition(".")[0] not in sys.stdlib_module_names and not is_within(name, allowed)
    ]
    assert wrong == []


def test_package_uses_no_private_module_or_function_of_torch():
    wrong = [
        f"{source.relative_to(PACKAGE)}:{line} {name}"
        for source in sorted(PACKAGE.rglob("*.py"))
        for line, name in [*imported_names(source), *torch_attributes(source)]
        if re.match(r"torch\.(ao\b|_C\b|(\w+\.)*_[a-z])", name)
    ]
    assert wrong == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_pin_each_requirement_to_one_version_that_it_admits(python):
    pins = pinned_versions(python_version=python, python_full_version=f"{python}.9")
    assert "torch" in pins
    extras = ["", *metadata("lightning-balq").get_all("Provides-Extra", [])]
    for requirement in map(Requirement, requires("lightning-balq")):
        places = [{"extra": extra, "python_version": python, "python_full_version": f"{python}.9"} for extra in extras]
        if requirement.marker is None or any(map(requirement.marker.evaluate, places)):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_constraints_pin_everything_that_the_extra_dev_installs():
    pins = pinned_versions()
    if version("torch").partition("+")[0] != pins["torch"]:
        pytest.skip(f"torch {version('torch')} is not the pinned one, {pins['torch']}")
    assert installed_with(Requirement("lightning-balq[dev]")) - {"lightning-balq"} - pins.keys() == set()


def imported_names(source: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything that ``source`` imports, inside functions too."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno} relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def torch_attributes(source: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every attribute of ``torch`` that ``source`` reads."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith("torch."):
            yield node.lineno, name


def is_within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def pinned_versions(**environment: str) -> dict[str, str]:
    """Version of each package in constraints.txt for this Python or for ``environment``."""
    pins: dict[str, str] = {}
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment):
            assert re.fullmatch(r"==[\d.]+", str(pin.specifier)), f"not an exact version: {line}"
            assert canonicalize_name(pin.name) not in pins, f"a second pin for one Python: {line}"
            pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return pins


def installed_with(root: Requirement) -> set[str]:
    """Names of the installed packages that ``root`` needs, directly or through others."""
    seen: set[tuple[str, str]] = set()
    names: set[str] = set()
    todo = [(root.name, extra) for extra in ("", *root.extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needed = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:  # for another platform, or not wanted
            continue
        names.add(canonicalize_name(name))
        for child in needed:
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                todo += [(child.name, more) for more in ("", *child.extras)]
    return names
