"""Options shared by several commands, and parsers of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaekit.errors import UsageError

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print only results and errors.")]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**64 - 1, help="Seed of the random latents. The same seed gives the same images.")
]
ModelOption = Annotated[
    Path,
    typer.Option(
        "-m",
        "--model",
        envvar="VAEKIT_MODEL",
        metavar="BUNDLE",
        help="The bundle, a folder or a .zip file; demo is one that comes with vaekit.",
    ),
]
ProviderOption = Annotated[
    str,
    typer.Option(
        envvar="VAEKIT_PROVIDER",
        metavar="NAME",
        help="The provider that runs the graphs: auto, cpu, cuda, tensorrt, openvino, directml, coreml, migraphx, "
        "webgpu, qnn, xnnpack, or one of ONNX Runtime's own names. A named provider runs every node or fails.",
    ),
]
ProviderOptionsOption = Annotated[
    list[str] | None,
    typer.Option("--provider-option", metavar="KEY=VALUE", help="An option for the provider; may be repeated."),
]
FallbackOption = Annotated[
    bool,
    typer.Option("--allow-fallback", help="Let the CPU run nodes that the named provider cannot. vaekit reports them."),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Number of threads that run the graphs.", show_default="the usable processors")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Rows that a graph processes at a time.")]

ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="N|HxW|own",
        help="Size of the images, for a bundle that allows several sizes; own keeps the pictures' size.",
        show_default="the bundle's",
    ),
]
TileOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="PIXELS",
        help="Compute large images in tiles with sides of this many pixels; 0 computes them whole.",
        show_default="512 above 1,048,576 pixels, if the result is the same",
    ),
]

UntrustedOption = Annotated[
    bool,
    typer.Option(
        "--untrusted",
        help="Run a bundle from a stranger in processes of their own, with limits, on the CPU. Linux only.",
    ),
]
MemoryLimitOption = Annotated[
    float | None,
    typer.Option(metavar="GB", help="With --untrusted: memory that each graph may take.", show_default="4"),
]
TimeLimitOption = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="With --untrusted: time that each batch may take.", show_default="60"),
]

OWN_SIZE = "own"
"""The value of --size that keeps the pictures' own size."""

PriorOption = Annotated[
    str | None,
    typer.Option(
        metavar="flow|mixture|normal",
        help="flow, learned from the encoded training images; mixture, fitted to them; or normal, which is N(0, I).",
        show_default="the first of these that the bundle has",
    ),
]

DEFAULT_MODEL = Path("vae-onnx")
_ALL = "all"


def chosen_names(given: list[str], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given names, each once; ``all`` stands for all names, unless one of them is called so."""
    return names if names and _ALL in given and _ALL not in names else tuple(dict.fromkeys(given))


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Parse (height, width) from ``N`` or ``HxW``. Raises UsageError for anything else."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--size {text} is not a size: give N, or HxW for height and width, such as 64 or 48x64")
    return int(sides[0]), int(sides[-1])


def parse_sigma(text: str) -> float | None:
    """Parse a positive standard deviation, or ``optimal`` to None. Raises UsageError otherwise."""
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
    """Parse provider options, ``key=value`` each. Raises UsageError for anything else."""
    options = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--provider-option {text} is not of the form KEY=VALUE")
        options[key] = value
    return options
