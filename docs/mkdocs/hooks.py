"""What MkDocs does for this site besides: it takes pages from outside of docs/, and knows where links out of it lead.

Pages are written to be read in the repository as well, so that their links are paths there.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
BESIDE_DOCS = ("CHANGELOG.md", "benchmarks/README.md", "benchmarks/figures/*.svg")
"""What becomes part of the site under its path in the repository."""

STYLE = "mkdocs/style.css"
MOVED = {"README.md": "index.md"}
"""Where links to a file lead that is not part of the site."""

LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages, figures and styles that do not lie in docs/."""
    for path in sorted(path for pattern in BESIDE_DOCS for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, STYLE, abs_src_path=str(ROOT / "docs" / STYLE)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files, **_: Any) -> str:
    """Let links lead to pages of the site; one to any other file of the repository keeps its text alone."""
    here = Path(page.file.abs_src_path or "").parent

    def moved(found: re.Match[str]) -> str:
        path, _, anchor = found["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        target = Path(os.path.normpath(here / path))
        if not target.exists():
            return found[0]  # MkDocs says so
        inside = target.relative_to(ROOT).as_posix()
        uri = MOVED.get(inside, inside.removeprefix("docs/"))
        if target.is_dir() and f"{uri}/README.md" in files.src_uris:
            uri = f"{uri}/README.md"
        if uri not in files.src_uris:
            return found["text"]
        relative = PurePosixPath(os.path.relpath(uri, PurePosixPath(page.file.src_uri).parent)).as_posix()
        return f"{found['image']}[{found['text']}]({relative}{'#' * bool(anchor)}{anchor})"

    # A fence is code: its brackets are no links.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)
