"""What the commands that need PyTorch share: their options, and how they read a source."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit_cli.console import no_bar, stderr

if TYPE_CHECKING:
    from vaekit.images.dataset import Images


class Device(StrEnum):
    """Where PyTorch computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Binarize(StrEnum):
    """How pixels become 0 or 1, with the grey value as probability."""

    NONE = "none"
    FIXED = "fixed"
    DYNAMIC = "dynamic"


DeviceOption = Annotated[Device, typer.Option(help="auto takes cuda, then mps, then cpu.")]

SOURCE_HELP = "Images: a folder, a picture or glob, .npy, .npz, IDX, hf:NAME, or shapes, fashion-mnist, mnist."


def read_source(source: str, size: tuple[int, int] | None, quiet: bool) -> Images:
    """Open a source with a progress bar."""
    from rich.progress import Progress

    from vaekit.images.dataset import open_source

    with Progress(console=stderr(), transient=True, disable=no_bar(quiet)) as bar:
        task = bar.add_task(f"reading {source}", total=None)
        return open_source(
            source, size=size, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


def read_validation(val: str | None, shape: tuple[int, int, int], quiet: bool) -> Images | None:
    """Open the source that ``--val`` names, resized to the training images; None where it is a share, or nothing."""
    from vaekit.errors import SourceError
    from vaekit.images.dataset import share_of

    if val is None or share_of(val) is not None:
        return None
    images = read_source(val, shape[1:], quiet)
    if images.shape != shape:
        colours = {1: "grey", 3: "RGB"}
        raise SourceError(
            f"--val {val} has {colours[images.shape[0]]} images, the images to train on are {colours[shape[0]]}: "
            "convert one of them"
        )
    return images
