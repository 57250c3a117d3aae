"""`vaekit reconstruct`: show images and their reconstructions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import SourceError
from vaekit_cli.bundle_options import Runtime, own_size, runs_a_bundle, say_where, tiles_shown
from vaekit_cli.console import command_line, print_document, speaker
from vaekit_cli.image_input import (
    FromFileOption,
    ImagesArgument,
    NoResizeOption,
    SkipErrorsOption,
    Unreadable,
    open_stream,
)
from vaekit_cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaekit.images.stream import ImageStream
    from vaekit.vae import VAE

_COLUMNS = 8
_LEAST_ERROR = 1e-12  # mean squared error; keeps the PSNR finite


@dataclass(frozen=True)
class Pair:
    """An image, and the PSNR of its reconstruction."""

    path: str
    psnr: float
    """In dB."""


@dataclass(frozen=True)
class Reconstructed:
    """The result of ``reconstruct``."""

    output: str
    images: list[Pair]
    psnr: float
    """Mean over the images, in dB."""
    failures: int
    """The number of images that could not be read."""
    provider: str
    model: str


@runs_a_bundle
def reconstruct(
    runtime: Runtime,
    images: ImagesArgument = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .png, .jpg or .webp.")] = Path(
        "pairs.png"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many images, evenly spaced.")] = 32,
    from_file: FromFileOption = None,
    no_resize: NoResizeOption = False,
    skip_errors: SkipErrorsOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show originals above their reconstructions, decoded from mu, with the PSNR of each.

    A single picture keeps its own size, if the bundle allows it.
    """
    import numpy as np

    from vaekit.images.pixels import to_uint8
    from vaekit.maths.psnr import psnr
    from vaekit.output.grid import FORMATS, save_picture
    from vaekit.system.files import check_file_target

    say = speaker(quiet or as_json)
    check_file_target(output, FORMATS)
    vae = runtime.load(images or ())
    if runtime.size is None and vae.manifest.image.multiple_of is not None:
        vae = _at_size_of_one_picture(vae, images or (), from_file)
    with open_stream(images, from_file, vae.image_shape, say, no_resize=no_resize) as stream:
        total = len(stream)
        unreadable = Unreadable(say)
        originals, paths = _chosen(stream, limit, unreadable)
    provider = say_where(vae, say, "encoder", "decoder")
    with tiles_shown(vae, quiet or as_json):
        decoded = vae.reconstruct(originals)
    errors = [
        float(np.square(image - other).mean(dtype=np.float64)) for image, other in zip(originals, decoded, strict=True)
    ]
    decibels = [psnr(max(error, _LEAST_ERROR)) for error in errors]
    save_picture(_layout(to_uint8(originals), to_uint8(decoded), decibels), output)
    mean = math.fsum(decibels) / len(decibels)
    done = f"{output} shows {len(paths)} images and their reconstructions"
    if as_json:
        pairs = [Pair(path, value) for path, value in zip(paths, decibels, strict=True)]
        print_document(Reconstructed(str(output), pairs, mean, unreadable.count, provider, str(runtime.model)))
    else:
        of = f" of {total:,}" if total > len(paths) else ""
        say(f"{output}: {len(paths)}{of} images above their reconstructions, mean PSNR {mean:.1f} dB, on {provider}")
        named = (("", name, None) for name in (images or paths)[:3])
        then = "vaekit encode" if vae.manifest.why_no_elbo else "vaekit score"
        say(f"next: {command_line(then, *named, *runtime.again)}")
    unreadable.end(total, done, skip_errors=skip_errors)


def _at_size_of_one_picture(vae: VAE, images: Sequence[str], from_file: str | None) -> VAE:
    """Return the model for images of the picture's own size, if there is one picture and it is large enough.

    A large picture that cannot be computed in tiles could take all memory, so it is resized.
    """
    from vaekit.images.source import open_part
    from vaekit.vae import LARGE_IMAGE

    if len(images) != 1 or from_file is not None or len(open_part(images[0])) != 1:
        return vae
    (height, width), image = own_size(images), vae.manifest.image
    too_small = min(height, width) < (image.multiple_of or 1)
    too_large = height * width > LARGE_IMAGE and image.context is None
    return vae if too_small or too_large else vae.at(height, width)


def _chosen(stream: ImageStream, limit: int, unreadable: Unreadable) -> tuple[NDArray[np.float32], list[str]]:
    """Read up to ``limit`` images of a stream, evenly spaced, and their paths."""
    import numpy as np

    chunks = list(stream.chunks(every=max(1, len(stream) // limit)))  # up to twice the limit
    for chunk in chunks:
        unreadable.note(chunk)
    images = np.concatenate([chunk.images for chunk in chunks])
    paths = [os.fsdecode(path) for chunk in chunks for path in chunk.paths]
    if not paths:
        raise SourceError(f"none of the {len(stream):,} images could be read; the first: {unreadable.first}")
    shown = min(limit, len(paths))
    chosen = np.arange(shown) * len(paths) // shown
    return images[chosen], [paths[number] for number in chosen]


def _layout(originals: NDArray[np.uint8], decoded: NDArray[np.uint8], decibels: list[float]) -> NDArray[np.uint8]:
    """Arrange rows of originals, each above the row of their reconstructions."""
    import numpy as np

    from vaekit.output.grid import grid

    count = len(originals)
    columns = min(_COLUMNS, count)
    blank = np.full((-count % columns, *originals.shape[1:]), 255, np.uint8)
    rows = [np.concatenate((part, blank)).reshape(-1, columns, *originals.shape[1:]) for part in (originals, decoded)]
    pairs = np.stack(rows, axis=1).reshape(-1, *originals.shape[1:])
    texts = [f"{value:.1f} dB" for value in decibels] + [""] * len(blank)
    captions = [line for at in range(0, len(texts), columns) for line in [""] * columns + texts[at : at + columns]]
    return grid(pairs, columns, captions=captions, row_titles=("original", "decoded") * (len(pairs) // columns // 2))
