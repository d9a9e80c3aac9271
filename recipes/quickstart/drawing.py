"""Matplotlib without its global state: figures in, SVG for a web page out, whose text is text in the page's colours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from recipes.quickstart.methods import METHODS, Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2328", "#59636f", "#d0d7df"
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": False,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "font.size": 12,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning_balq",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def variable(method: Method) -> str:
    """CSS variable that holds the colour of a method."""
    return f"--method-{METHODS.index(method)}"


# Matplotlib draws in colours; the page, which is light or dark, replaces them by its variables.
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {m.colour: variable(m) for m in METHODS}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw within this."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def figure(width: int, height: int, **margins: float) -> "Figure":
    """Empty figure; sizes, those of fonts included, are in pixels of the page, margins in shares of the figure."""
    from matplotlib.figure import Figure

    empty = Figure((width / 72, height / 72))
    empty.subplots_adjust(**margins)
    return empty


def svg(drawn: "Figure", description: str) -> str:
    """The figure as an ``<svg>`` element for HTML, which needs neither namespaces nor unused ids."""
    buffer = StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r' (width|height)="([\d.]+)pt"', r' \1="\2"', text)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    # The family is the page's. Older releases of matplotlib write `font: 12px 'DejaVu Sans', ..`.
    text = re.sub(r"font: [\w ]*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var({name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
