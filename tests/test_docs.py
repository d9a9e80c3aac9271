"""The pages of docs/ are true: what they show runs, what they name exists, and their tables lack nothing."""

import importlib.util
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

import lightning_balq
import lightning_balq.export
import lightning_balq.nn
from lightning_balq import callback
from lightning_balq.cli import main as command

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *PAGES]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:python -m|make|balq) [^`]+)`")


def _blocks(path: Path, *languages: str) -> list[str]:
    return [found["code"] for found in FENCE.finditer(path.read_text()) if found["language"] in languages]


def _programs(path: Path) -> list[str]:
    """Python of each block, with empty lines before it, so that errors name the line of the page."""
    text = path.read_text()
    found = [block for block in FENCE.finditer(text) if block["language"] == "python"]
    return ["\n" * text.count("\n", 0, block.start("code")) + block["code"] for block in found]


def _commands(path: Path) -> list[list[str]]:
    """Words of each command of interest, in shell blocks and in the text; continued lines are one."""
    lines = [line for block in _blocks(path, "", "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = []
    inline = [line + " --help" * (len(line.split()) == 2) for line in INLINE.findall(path.read_text())]
    for line in [*lines, *inline]:
        words = shlex.split(line, comments=True) if re.search(r"\b(python|make|balq|torchrun)\b", line) else []
        starts = [i for i, word in enumerate(words) if word in ("python", "make", "balq", "torchrun")]
        found += [words[start:] for start in starts[:1]]
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _programs(page)], ids=lambda page: page.relative_to(DOCS).as_posix()
)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for program in _programs(page):
        exec(compile(program, str(page), "exec"), names)


def test_every_page_that_is_written_is_in_the_contents_of_the_site() -> None:
    text = (DOCS / "mkdocs" / "mkdocs.yml").read_text()
    entries = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", text, re.MULTILINE)
    beside = {"CHANGELOG.md", "benchmarks/README.md"}

    assert set(entries) - beside == {page.relative_to(DOCS).as_posix() for page in PAGES}
    assert len(entries) == len(set(entries))
    assert all((ROOT / path).exists() for path in beside)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_that_are_shown_exist(path: Path) -> None:
    for program, *words in _commands(path):
        if program == "make":
            assert next(word for word in words if "=" not in word) in TARGETS, words
        elif program == "balq":
            with pytest.raises(SystemExit, match="0") if words[1:] == ["--help"] else nullcontext():
                command.parse(words)
        elif "-m" in words:
            module = words[words.index("-m") + 1]
            assert importlib.util.find_spec(module) is not None, words


def test_commands_are_found() -> None:
    shown = [command[0] for path in TEXTS for command in _commands(path)]

    assert {"python", "make", "balq", "torchrun"} <= set(shown)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipes_and_files_that_are_linked_or_run_exist(path: Path) -> None:
    text = path.read_text()
    named = re.findall(r"\brecipes/[\w/]+\.yaml", text)
    linked = [link for link in re.findall(r"\]\(([^()\s#]+)[^()\s]*\)", FENCE.sub("", text)) if ":" not in link]

    assert [name for name in named if not (ROOT / name).exists()] == []
    outside = ("benchmarks/README.md",)  # in docs/, the site has these pages beside its own
    assert [link for link in linked if not (path.parent / link).exists() and link not in outside] == []


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("callbacks", callback),
        ("models", lightning_balq.nn),
        ("functional", lightning_balq.functional),
        ("export", lightning_balq.export),
        ("metrics", lightning_balq.metrics),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reference_shows_each_public_module(page: str, module: ModuleType) -> None:
    text = (DOCS / "api" / f"{page}.md").read_text()
    hidden = [name for name in getattr(module, "__all__", []) if _is_module(f"{module.__name__}.{name}")]

    assert f"::: {module.__name__}\n" in text
    for name in hidden:  # functions with the name of a file, for which tools that read files take them
        assert f"::: {getattr(module, name).__module__}.{name}\n" in text


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent is a file
        return False


def test_the_site_holds_its_own_style() -> None:
    text = (DOCS / "mkdocs" / "mkdocs.yml").read_text()
    (path,) = re.findall(r"^extra_css:\n  - (\S+)\n", text, re.MULTILINE)

    assert (DOCS / path).is_file()
    # The folder of settings is left out of the site; left out as a whole, it would take the style along.
    assert f"exclude_docs: |\n  /mkdocs/*\n  !/{path}\n" in text
