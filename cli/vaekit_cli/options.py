"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaekit.errors import UsageError

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but results and errors.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Image k of a seed is always the same.")]
ModelOption = Annotated[
    Path,
    typer.Option(
        "-m", "--model", envvar="VAEKIT_MODEL", metavar="BUNDLE", help="The bundle: a folder, or a .zip of it."
    ),
]
ProviderOption = Annotated[
    str,
    typer.Option(
        envvar="VAEKIT_PROVIDER",
        metavar="NAME",
        help="What runs the graphs: auto, cpu, cuda, tensorrt, openvino, directml, coreml, migraphx, webgpu, qnn, "
        "xnnpack, or a name of ONNX Runtime's own. A named one runs every node or fails.",
    ),
]
ProviderOptionsOption = Annotated[
    list[str] | None,
    typer.Option("--provider-option", metavar="KEY=VALUE", help="An option of the provider's; may be given again."),
]
FallbackOption = Annotated[
    bool, typer.Option("--allow-fallback", help="Let the CPU run what the named provider does not, and say so.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads for the graphs.", show_default="the processors that may be used")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Rows that go through a graph at a time.")]

ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="N|HxW", help="Of the images, where the bundle leaves it free.", show_default="its usual"
    ),
]

PriorOption = Annotated[
    str | None,
    typer.Option(
        metavar="mixture|normal",
        help="mixture, fitted to the encoded training images, or normal, N(0, I).",
        show_default="mixture where the bundle has one",
    ),
]

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


def parse_provider_options(texts: list[str] | None) -> dict[str, str]:
    """Options of a provider from ``key=value`` each. Raises UsageError for anything else."""
    options = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--provider-option {text} is not of the form KEY=VALUE")
        options[key] = value
    return options
