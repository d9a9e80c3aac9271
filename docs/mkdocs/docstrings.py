"""Docstrings of lightning_balq as Markdown: roles become code with links, formulas MathML."""

import re
import textwrap
from html import escape
from typing import Any

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod|obj):`~?(?P<target>[^`]+)`")
FORMULA = re.compile(r":math:`(?P<formula>[^`]+)`")
BLOCK = re.compile(r"^(?P<indent> *)\.\. math:: (?P<formula>.+(?:\n(?P=indent) +\S.*)*)", re.MULTILINE)


class MarkdownDocstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.is_module:  # says how its files are divided, which the pages replace
            obj.docstring = None
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Rewrite what Markdown does not know of."""
    text = BLOCK.sub(lambda found: textwrap.indent(_formula(found["formula"], "block"), found["indent"]), text)
    # Without the span, Markdown takes one at the beginning of a line for a paragraph.
    text = FORMULA.sub(lambda found: f"<span>{_formula(found['formula'], 'inline')}</span>", text)
    text = ROLE.sub(lambda found: _link(found["target"]), text)
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


def _formula(formula: str, display: str) -> str:
    return convert(" ".join(formula.split()), display=display)


def _link(target: str) -> str:
    """Link to what the reference has; the name alone for anything else."""
    name = escape(target).replace("_", "&#95;")
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'
