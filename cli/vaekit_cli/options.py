"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaekit.errors import UsageError

ModelOption = Annotated[
    Path,
    typer.Option(
        "-m", "--model", envvar="VAEKIT_MODEL", metavar="BUNDLE", help="The bundle: a folder, or a .zip of it."
    ),
]
ProviderOption = Annotated[str, typer.Option(metavar="auto|cpu", help="What runs the graphs; auto is the CPU.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads for the graphs.", show_default="the processors that may be used")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Rows that go through a graph at a time.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Image k of a seed is always the same.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]

DEFAULT_MODEL = Path("vae-onnx")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from ``N`` or ``HxW``. Raises UsageError for anything else."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--size {text} is not a size: give N, or HxW for height and width, such as 64 or 48x64")
    return int(sides[0]), int(sides[-1])


def parse_sigma(text: str) -> float | None:
    """A fixed standard deviation, or None for ``optimal``. Raises UsageError for anything else."""
    if text == "optimal":
        return None
    try:
        sigma = float(text)
    except ValueError:
        sigma = 0.0
    if not 0 < sigma < float("inf"):
        raise UsageError(f"--sigma {text} is neither `optimal` nor a positive number")
    return sigma
