"""`vaekit score`: compute how unlikely each image is under the model."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TextIO

import typer

from vaekit.errors import SourceError, UsageError
from vaekit_cli.bundle_options import Runtime, runs_a_bundle, say_where
from vaekit_cli.console import command_line, progress_bar, speaker
from vaekit_cli.image_input import (
    FromFileOption,
    ImagesArgument,
    NoResizeOption,
    SkipErrorsOption,
    Unreadable,
    open_stream,
)
from vaekit_cli.options import QuietOption

if TYPE_CHECKING:
    from vaekit.bundle.manifest import ScoreStatistics
    from vaekit.images.stream import Chunk
    from vaekit.vae import VAE


class Row(NamedTuple):
    """One image's line of the output. Terms are in nats."""

    path: str
    score: float
    reconstruction: float
    kl: float
    flagged: bool | None
    """Whether the score is above ``--flag-above``; None without that option."""


class MapBy(StrEnum):
    """What a pixel's error is compared with."""

    PIXEL = "pixel"
    GRADIENT = "gradient"


@runs_a_bundle
def score(
    runtime: Runtime,
    images: ImagesArgument = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write.", show_default="stdout")
    ] = None,
    flag_above: Annotated[
        str | None,
        typer.Option(
            metavar="pN|NATS", help="Flag scores above a percentile of the held-out scores, or a number of nats."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**64 - 1, help="Seed of the noise vector that all images share.")
    ] = 0,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder for maps of where each image is surprising: numbers as .npy, pictures as .png.",
        ),
    ] = None,
    map_by: Annotated[
        MapBy | None,
        typer.Option(
            help="What is usual: the errors of held-out images at the same pixel, or where the image is as steep.",
            show_default="pixel for images of one size, else gradient",
        ),
    ] = None,
    from_file: FromFileOption = None,
    no_resize: NoResizeOption = False,
    skip_errors: SkipErrorsOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON lines, one object per image, instead of CSV.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Score images by -ELBO = kl - reconstruction, in nats. A higher score is less likely under the model.

    Each score uses one Monte Carlo sample (L = 1). All images share its noise.
    """
    from vaekit.system.files import check_file_target, check_new_folder, replacing_folder

    say = speaker(quiet)
    if output is not None:
        check_file_target(output)
    if maps is not None:
        check_new_folder(maps)
    elif map_by is not None:
        raise UsageError("--map-by only applies to --maps")
    vae = runtime.load(images or (), spinning=False)
    vae.check_elbo()
    by = None if map_by is None else map_by.value
    if maps is not None:
        vae.residual_statistics(by)  # fails now, before any work
    limit = None if flag_above is None else threshold(flag_above, vae.manifest.scores)
    flagged = scored = 0
    with (
        open_stream(images, from_file, vae.image_shape, say, no_resize=no_resize) as stream,
        _target(output) as file,
        nullcontext() if maps is None else replacing_folder(maps) as folder,
    ):
        provider = say_where(vae, say, "encoder", "decoder")
        unreadable = Unreadable(say)
        write = _writer(file, as_json)
        with progress_bar("scoring", len(stream), quiet or output is None) as progress:
            for chunk in stream.chunks():
                unreadable.note(chunk)
                for row in _rows(vae, chunk, seed, limit):
                    write(row)
                    flagged += bool(row.flagged)
                if folder is not None:
                    _write_maps(vae, chunk, by, folder, scored)
                scored += len(chunk.paths)
                progress(scored + unreadable.count)
        total = len(stream)
        if not scored:
            raise SourceError(f"none of the {total:,} images could be read; the first: {unreadable.first}")
    done = f"{scored:,} images scored"
    above = "" if limit is None else f", {flagged:,} of them above {flag_above} ({limit:.1f} nats)"
    say(f"{output or 'stdout'}: {done} on {provider}{above}; in nats per image, L = 1, seed {seed}")
    if maps is not None:
        say(f"{maps}: a map and a picture of each image, in standard deviations above the usual error")
    if flag_above is None and images and vae.manifest.scores is not None:
        again = (
            *(("", name, None) for name in images[:3]),
            ("--flag-above", "p99", None),
            *runtime.again,
        )
        say(f"next: {command_line('vaekit score', *again)}")
    unreadable.end(total, done, skip_errors=skip_errors)


def _write_maps(vae: VAE, chunk: Chunk, by: str | None, folder: Path, first: int) -> None:
    """Write the map and the picture of each image of a chunk, numbered from ``first``."""
    import numpy as np

    from vaekit.maths.surprise import surprise
    from vaekit.output.grid import save_picture
    from vaekit.output.heat import overlay

    images = chunk.images
    decoded = vae.reconstruct(images)
    found = surprise(images, decoded, *vae.residual_statistics(by))
    for number, (path, image, other, values) in enumerate(zip(chunk.paths, images, decoded, found, strict=True), first):
        name = f"{number:06}-{Path(os.fsdecode(path)).stem}".replace(os.sep, "_")
        np.save(folder / f"{name}.npy", values)
        save_picture(overlay(image, other, values), folder / f"{name}.png")


def threshold(text: str, statistics: ScoreStatistics | None) -> float:
    """Parse ``--flag-above`` to a score in nats.

    It is a number, or a percentile of held-out scores such as ``p99``. Raises UsageError for anything else, and for a
    percentile if the bundle has no scores.
    """
    is_percentile = text.lower().startswith("p")
    try:
        value = float(text[1:] if is_percentile else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (is_percentile and not 0 <= value <= 100):
        raise UsageError(
            f"{text!r} is not a threshold: give a percentile of the held-out scores, p0 to p100, such as p99, or nats"
        )
    if not is_percentile:
        return value
    if statistics is None:
        raise UsageError(
            "this bundle has no held-out scores at this size, so there are no percentiles: give a number of nats"
        )
    return statistics.percentile(value)


@contextmanager
def _target(output: Path | None) -> Iterator[TextIO]:
    """Open stdout, or a file that is written under a temporary name and renamed."""
    # With surrogateescape, paths that are not valid UTF-8 keep their bytes.
    from vaekit.system.files import replacing_file

    if output is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    with (
        replacing_file(output) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


def _writer(file: TextIO, as_json: bool) -> Callable[[Row], object]:
    if as_json:
        return lambda row: file.write(json.dumps(row._asdict()) + "\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    return writer.writerow


def _rows(vae: VAE, chunk: Chunk, seed: int, limit: float | None) -> Iterator[Row]:
    terms = vae.elbo_terms(chunk.images, seed=seed)
    parts = (-terms.elbo, terms.reconstruction, terms.kl)
    for path, value, reconstruction, kl in zip(chunk.paths, *(part.tolist() for part in parts), strict=True):
        yield Row(os.fsdecode(path), value, reconstruction, kl, None if limit is None else value > limit)
