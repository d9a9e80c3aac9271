"""Change one operation of the code at a time, and see whether the tests of that file notice.

A change that no test notices (a survivor) is one that makes no difference, or a test that is missing. docs/mutation.md
has the counts, and says of each survivor which it is.

Run: python -m tests.mutation [--sample N] [--seed S] [--jobs J] [--modules NAME ..]   (goes on where it stopped)
     python -m tests.mutation --again        (runs the survivors once more, after tests were added)

No file is changed. pytest collects the doctests of a file and the tests that belong to it once; then each mutant gets a
fork of that process, in which the functions of the file take the changed code, and the tests run until one fails. Needs
an operating system that forks.
"""

import argparse
import ast
import copy
import hashlib
import importlib
import itertools
import json
import os
import random
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

Record: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

MIRRORED: dict[str, tuple[str, ...]] = {
    "functional/_checks.py": ("functional/test_checks.py",),
    "functional/_rows.py": ("functional/test_rows.py", "functional/test_checks.py", "functional/test_scale.py"),
    "functional/_tracing.py": ("functional/test_tracing.py", "functional/test_grid.py"),
    "functional/activation.py": ("functional/test_activation.py", "nn/test_activation.py"),
    "functional/balanced.py": ("functional/test_balanced.py",),
    "functional/grid.py": ("functional/test_grid.py",),
    "functional/lsq.py": ("functional/test_lsq.py", "functional/test_checks.py"),
    "functional/pact.py": ("functional/test_pact.py",),
    "functional/recurrent.py": ("functional/test_recurrent.py", "kernels/test_recurrent.py"),
    "functional/scale.py": ("functional/test_scale.py", "functional/test_checks.py"),
    "functional/statistics.py": ("functional/test_statistics.py", "functional/test_checks.py"),
    "functional/uniform.py": ("functional/test_uniform.py", "functional/test_grid.py"),
    "nn/swap.py": ("nn/test_swap.py",),
}
"""Files that are changed, below ``lightning_balq``, and the tests of each, below ``tests``."""

LEFT_OUT = "not large_linear_layer and not number_of_threads and not million and not fresh_process and not compile"
"""Tests that take most of the time: large tensors, a process of their own, and torch.compile."""

OPTIONS = ("-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", LEFT_OUT, "--hypothesis-profile=mutation")

SWAPPED: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Div,),
    ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
}  # fmt: skip
NAMESPACES = {"torch", "nn", "F", "math", "forward_ad", "ctx"}
GENERICS = {"Callable", "Literal", "dict", "list", "tuple", "type"}


class Mutant(NamedTuple):
    """A file with one operation changed."""

    module: str
    line: int
    operator: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """Digest of the file and the change."""
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()[:16]


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """The file unchanged, which must pass, then every mutant; texts, annotations and messages stay as they are."""
    tree = ast.parse(source)
    yield Mutant(module, 0, "unchanged", "", "", ast.unparse(tree))
    for owner, field, index, node in _slots(tree):
        for operator, other in _alternatives(node):
            _put(owner, field, index, other)
            changed = ast.unparse(ast.fix_missing_locations(tree))
            _put(owner, field, index, node)
            shown = [ast.unparse(_condition_or(shown)) for shown in (node, other)]
            yield Mutant(module, node.lineno, operator, *shown, changed)


def _slots(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every place in the tree at which code stands that may be changed, from the top down."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "exc"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr) and not _is_type(child):
                yield node, field, index, child
                yield from _slots(child)


def _is_type(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in GENERICS


def _reads(node: ast.AST, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def _put(owner: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(owner, field, node)
    else:
        getattr(owner, field)[index] = node


def _changed(node: ast.AST, **fields: Any) -> Any:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _condition_or(node: Any) -> Any:
    return node.test if isinstance(node, ast.If) else node


def _alternatives(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """What may stand in place of a node, and the name of the change."""
    match node:
        case ast.Compare():
            for index, found in enumerate(node.ops):
                for other in SWAPPED[type(found)]:
                    yield "comparison", _changed(node, ops=[*node.ops[:index], other(), *node.ops[index + 1 :]])
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign():
            for other in SWAPPED.get(type(node.op), ()):
                yield "boolean" if isinstance(node, ast.BoolOp) else "arithmetic", _changed(node, op=other())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield "not" if isinstance(node.op, ast.Not) else "sign", node.operand
        case ast.Constant(value=bool()):
            yield "constant", ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield "constant", ast.Constant(node.value + 1)
            yield "constant", ast.Constant(node.value - 1)
        case ast.If() | ast.IfExp():
            if not isinstance(node.test, ast.Compare | ast.UnaryOp):  # else the same as another change
                yield "condition", _changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Call(func=ast.Attribute(value=held)) if not isinstance(held, ast.Constant):
            name = ast.unparse(held)
            if name.split(".")[0] not in NAMESPACES and not name.startswith("super("):
                yield "call", held
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return", ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield "statement", ast.Pass()
        case ast.Assign(targets=[ast.Name(id=name)]) if _reads(node.value, name):
            yield "statement", ast.Pass()
        case _:
            pass


class MutantLoop:
    """Takes the place of the loop over the tests that pytest collected: a fork for each mutant, which runs them."""

    def __init__(self, mutants: Sequence[Mutant], jobs: int, seconds: int, write: Callable[[Record], None]) -> None:
        self.mutants, self.jobs, self.seconds, self.write = mutants, jobs, seconds, write
        self.imported = {name: importlib.import_module(name) for name in {_name(mutant.module) for mutant in mutants}}
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests must be importable before anything is changed")
        if any(sys.modules[name] is not module for name, module in self.imported.items()):
            raise RuntimeError("pytest must not import a module a second time: changes would not reach the tests")
        running: dict[int, tuple[Mutant, int, float]] = {}
        waiting = list(self.mutants)
        while waiting or running:
            if waiting and len(running) < self.jobs:
                mutant = waiting.pop(0)
                child, pipe = self._fork(session, mutant)
                running[child] = mutant, pipe, time.monotonic()
                continue
            child, status = os.wait()
            if child in running:
                self.write(self._record(*running.pop(child), status))
        return True

    def _fork(self, session: pytest.Session, mutant: Mutant) -> tuple[int, int]:
        ours, theirs = os.pipe()
        child = os.fork()
        if child:
            os.close(theirs)
            return child, ours
        try:
            import resource  # not on Windows, which cannot fork either

            resource.setrlimit(resource.RLIMIT_CPU, (self.seconds, self.seconds))  # whatever else the machine does
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            os.write(theirs, self._first_failure(session, mutant).encode())
        finally:
            os._exit(0)

    def _first_failure(self, session: pytest.Session, mutant: Mutant) -> str:
        try:
            apply(mutant)
        except Exception as error:
            return f"import: {type(error).__name__}"
        for item, following in itertools.zip_longest(session.items, session.items[1:]):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return self.failed
        return "survived"

    def _record(self, mutant: Mutant, pipe: int, begin: float, status: int) -> Record:
        with os.fdopen(pipe) as file:
            by = file.read()
        if not by:
            by = "time is over" if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGSEGV else "crash"
        outcome = "survived" if by == "survived" else "killed"
        if mutant.operator == "unchanged" and outcome == "killed":
            raise RuntimeError(f"the tests of {mutant.module} must pass before anything is changed, got {by}")
        named = {name: getattr(mutant, name) for name in ("key", "module", "line", "operator", "before", "after")}
        return {**named, "outcome": outcome, "by": by, "seconds": round(time.monotonic() - begin, 1)}


def apply(mutant: Mutant) -> None:
    """Give the functions of the module, which other modules hold already, the code of the mutant."""
    name = _name(mutant.module)
    module = importlib.import_module(name)
    namespace: dict[str, Any] = {"__name__": name, "__file__": module.__file__}
    exec(compile(mutant.source, str(module.__file__), "exec"), namespace)
    _apply_to(module, namespace, str(module.__file__))


def _name(module: str) -> str:
    return f"lightning_balq.{module.removesuffix('.py').replace('/', '.')}"


def _apply_to(owner: Any, namespace: Mapping[str, Any], path: str) -> None:
    for name, value in namespace.items():
        plain = getattr(value, "__func__", value)  # of a static method
        old = getattr(owner, name, None)
        if isinstance(plain, types.FunctionType) and plain.__code__.co_filename == path:
            old.__code__, old.__defaults__ = plain.__code__, plain.__defaults__
            old.__kwdefaults__ = plain.__kwdefaults__
        elif isinstance(value, type) and value.__module__ == namespace.get("__name__"):
            _apply_to(old, vars(value), path)
        elif isinstance(value, int | float | tuple):
            setattr(owner, name, value)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of earlier runs, none if there were none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def prepare() -> None:
    """Choose the plain form, which is what is changed and what tests compare compiled code with, and short tests."""
    os.environ.update(LIGHTNING_BALQ_KERNELS="0", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=25,
        phases=(Phase.explicit, Phase.generate),  # a failure is enough: no smaller example is looked for
        suppress_health_check=[HealthCheck.too_slow],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left of the sample; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="number of mutants, drawn from all; default: all")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the sample; a larger sample contains a smaller one"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seconds", type=int, default=60, help="of one core, after which a mutant is killed")
    parser.add_argument("--modules", nargs="*", default=list(MIRRORED), choices=list(MIRRORED), help="default: all")
    parser.add_argument("--again", action="store_true", help="run the survivors of the record once more")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/mutation--cpu--torch*.jsonl")
    parser.add_argument("--list", action="store_true", help="print how many mutants there are, and run none")
    options = parser.parse_args(arguments)
    every = [m for module in MIRRORED for m in mutants_of(module, (ROOT / "lightning_balq" / module).read_text())]
    if options.list:
        for module in options.modules:
            print(f"{sum(mutant.module == module for mutant in every):5} {module}")
        return 0
    prepare()
    version = torch.__version__.partition("+")[0]
    path = options.output or RESULTS / f"mutation--cpu--torch{version}.jsonl"
    last = {record["key"]: record for record in read_records(path)}
    changed = [mutant for mutant in every if mutant.operator != "unchanged"]
    if options.again:
        chosen = [mutant for mutant in changed if last.get(mutant.key, {}).get("outcome") == "survived"]
    else:
        drawn = random.Random(options.seed).sample(changed, len(changed))[: options.sample]
        chosen = [mutant for mutant in drawn if mutant.key not in last]
    concerned = {mutant.module for mutant in chosen}
    with path.open("a") as file:

        def write(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()
            where = f"{record['module']}:{record['line']}"
            print(f"{record['outcome']}: {where} {record['before']} -> {record['after']} ({record['by']})", flush=True)

        for module in (name for name in options.modules if name in concerned):
            own = [mutant for mutant in every if mutant.module == module and mutant.operator == "unchanged"]
            own += [mutant for mutant in chosen if mutant.module == module]
            loop = MutantLoop(own, options.jobs, options.seconds, write)
            tests = [ROOT / "lightning_balq" / module, *(ROOT / "tests" / name for name in MIRRORED[module])]
            status = pytest.main([*OPTIONS, *map(str, tests)], plugins=[loop])
            if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                return int(status)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
