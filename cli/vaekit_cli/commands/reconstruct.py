"""`vaekit reconstruct`: originals beside what the model makes of them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import SourceError
from vaekit_cli.bundle_options import Runtime, Unreadable, open_stream, runs_a_bundle, say_where
from vaekit_cli.console import command_line, speaker
from vaekit_cli.options import (
    FromFileOption,
    ImagesArgument,
    JsonOption,
    NoResizeOption,
    QuietOption,
    SkipErrorsOption,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaekit.images.stream import ImageStream

_COLUMNS = 8


@runs_a_bundle
def reconstruct(
    runtime: Runtime,
    images: ImagesArgument = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .png, .jpg or .webp.")] = Path(
        "pairs.png"
    ),
    limit: Annotated[int, typer.Option(min=1, help="How many images are shown, evenly spread over them all.")] = 32,
    from_file: FromFileOption = None,
    no_resize: NoResizeOption = False,
    skip_errors: SkipErrorsOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show originals above their reconstructions, decoded from mu, with the PSNR of each."""
    import numpy as np

    from vaekit.output.grid import FORMATS, save_picture
    from vaekit.system.files import check_file_target

    say = speaker(quiet or as_json)
    check_file_target(output, FORMATS)
    vae = runtime.load()
    with open_stream(images, from_file, vae.image_shape, no_resize=no_resize) as stream:
        total = len(stream)
        unreadable = Unreadable(say)
        originals, paths = _chosen(stream, limit, unreadable)
    provider = say_where(vae, say, "encoder", "decoder")
    decoded = vae.reconstruct(originals)
    errors = np.square(originals.astype(np.float64) - decoded).reshape(len(paths), -1).mean(axis=1)
    psnr = [_decibels(error) for error in errors]
    save_picture(_layout(originals, decoded, psnr), output)
    mean = math.fsum(psnr) / len(psnr)
    done = f"{output} shows {len(paths)} images and their reconstructions"
    if as_json:
        rows = [{"path": path, "psnr": value} for path, value in zip(paths, psnr, strict=True)]
        document = {"output": str(output), "images": rows, "psnr": mean, "failures": unreadable.count}
        print(json.dumps(document | {"provider": provider, "model": str(runtime.model)}))
    else:
        of = f" of {total:,}" if total > len(paths) else ""
        say(f"{output}: {len(paths)}{of} images above their reconstructions, mean PSNR {mean:.1f} dB, on {provider}")
        named = (("", name, None) for name in (images or paths)[:3])
        then = "vaekit encode" if vae.manifest.why_no_elbo else "vaekit score"
        say(f"next: {command_line(then, *named, *runtime.again)}")
    unreadable.end(total, done, skip_errors=skip_errors)


def _chosen(stream: ImageStream, limit: int, unreadable: Unreadable) -> tuple[NDArray[np.float32], list[str]]:
    """Up to ``limit`` images of a stream, evenly spread, and their paths."""
    import numpy as np

    chunks = list(stream.chunks(every=max(1, len(stream) // limit)))  # up to twice as many
    for chunk in chunks:
        unreadable.note(chunk)
    images = np.concatenate([chunk.images for chunk in chunks])
    paths = [os.fsdecode(path) for chunk in chunks for path in chunk.paths]
    if not paths:
        raise SourceError(f"none of the {len(stream):,} images could be read; the first: {unreadable.first}")
    shown = min(limit, len(paths))
    chosen = np.arange(shown) * len(paths) // shown
    return images[chosen], [paths[number] for number in chosen]


def _decibels(mse: float) -> float:
    """PSNR of images in [0, 1]; the rounding of 8-bit pixels is as equal as images get."""
    return 10 * math.log10(1 / max(mse, 1e-12))


def _layout(originals: NDArray[np.float32], decoded: NDArray[np.float32], psnr: list[float]) -> NDArray[np.uint8]:
    """Rows of originals, each above the row of their reconstructions."""
    import numpy as np

    from vaekit.output.grid import grid

    count = len(originals)
    columns = min(_COLUMNS, count)
    blank = np.ones((-count % columns, *originals.shape[1:]), np.float32)
    rows = [np.concatenate((part, blank)).reshape(-1, columns, *originals.shape[1:]) for part in (originals, decoded)]
    pairs = np.stack(rows, axis=1).reshape(-1, *originals.shape[1:])
    texts = [f"{value:.1f} dB" for value in psnr] + [""] * len(blank)
    captions = [line for at in range(0, len(texts), columns) for line in [""] * columns + texts[at : at + columns]]
    return grid(pairs, columns, captions=captions, row_titles=("original", "decoded") * (len(pairs) // columns // 2))
