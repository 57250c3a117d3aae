"""Format text and tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """Return text of one line without control characters.

    Names in files of strangers may hold some, and a terminal would obey them.
    """
    return text.translate(_CONTROL)


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines without control characters, with columns aligned and two spaces apart."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
