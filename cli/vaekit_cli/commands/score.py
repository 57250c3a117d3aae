"""`vaekit score`: how strange each image is to the model."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from vaekit.errors import SourceError
from vaekit_cli.bundle_options import Runtime, Unreadable, open_stream, runs_a_bundle, say_where
from vaekit_cli.console import command_line, progress_bar, speaker
from vaekit_cli.options import (
    FromFileOption,
    ImagesArgument,
    NoResizeOption,
    QuietOption,
    SkipErrorsOption,
)

if TYPE_CHECKING:
    from vaekit.images.stream import Chunk
    from vaekit.vae import VAE

_FIELDS = ("path", "score", "reconstruction", "kl", "flagged")

Row = tuple[str, float, float, float, bool | None]


@runs_a_bundle
def score(
    runtime: Runtime,
    images: ImagesArgument = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file for the scores.", show_default="stdout")
    ] = None,
    flag_above: Annotated[
        str | None,
        typer.Option(metavar="pN|NATS", help="Flag scores above a percentile of the held-out scores, or above nats."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of the one noise vector that all images share.")] = 0,
    from_file: FromFileOption = None,
    no_resize: NoResizeOption = False,
    skip_errors: SkipErrorsOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, one object an image, instead of CSV.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Score images: -ELBO in nats, kl - reconstruction, the higher the stranger.

    One Monte Carlo sample an image (L = 1), with the same noise for all.
    """
    from vaekit.bundle.manifest import threshold
    from vaekit.system.files import check_file_target

    say = speaker(quiet)
    if output is not None:
        check_file_target(output)
    vae = runtime.load(spinning=False)
    vae.check_elbo()
    limit = None if flag_above is None else threshold(flag_above, vae.manifest.scores)
    flagged = scored = 0
    with open_stream(images, from_file, vae.image_shape, no_resize=no_resize) as stream, _target(output) as file:
        provider = say_where(vae, say, "encoder", "decoder")
        unreadable = Unreadable(say)
        write = _writer(file, as_json)
        with progress_bar("scoring", len(stream), quiet or output is None) as progress:
            for chunk in stream.chunks():
                unreadable.note(chunk)
                for row in _rows(vae, chunk, seed, limit):
                    write(row)
                    flagged += bool(row[-1])
                scored += len(chunk.paths)
                progress(scored + unreadable.count)
        total = len(stream)
        if not scored:
            raise SourceError(f"none of the {total:,} images could be read; the first: {unreadable.first}")
    done = f"{scored:,} images scored"
    above = "" if limit is None else f", {flagged:,} of them above {flag_above} ({limit:.1f} nats)"
    say(f"{output or 'stdout'}: {done} on {provider}{above}; nats an image, L = 1, seed {seed}")
    if flag_above is None and images:
        again = (
            *(("", name, None) for name in images[:3]),
            ("--flag-above", "p99", None),
            *runtime.again,
        )
        say(f"next: {command_line('vaekit score', *again)}")
    unreadable.end(total, done, skip_errors=skip_errors)


@contextmanager
def _target(output: Path | None) -> Iterator[TextIO]:
    """Where scores go: stdout, or a file that appears whole or not at all. Paths keep the bytes that they have."""
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
        return lambda row: file.write(json.dumps(dict(zip(_FIELDS, row, strict=True))) + "\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_FIELDS)
    return writer.writerow


def _rows(vae: VAE, chunk: Chunk, seed: int, limit: float | None) -> Iterator[Row]:
    terms = vae.elbo_terms(chunk.images, seed=seed)
    for path, reconstruction, kl in zip(chunk.paths, terms.reconstruction.tolist(), terms.kl.tolist(), strict=True):
        value = kl - reconstruction
        yield os.fsdecode(path), value, reconstruction, kl, None if limit is None else value > limit
