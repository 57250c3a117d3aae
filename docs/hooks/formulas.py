"""Formulas of the documentation as MathML, made when the site is built: pages need no scripts of other hosts."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Return a page's HTML with MathML in place of the LaTeX that arithmatex marked."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    formula: str = convert(html.unescape(found[2]).strip(), display=display)
    return f'<{found[1]} class="arithmatex">{formula}</{found[1]}>'
