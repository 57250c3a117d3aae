"""`vaekit score`: compute how unlikely each image is under the model."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from vaekit.errors import SourceError, UsageError
from vaekit_cli.bundle_options import Runtime, at_own_sizes, runs_a_bundle, say_where
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
from vaekit_cli.scoring import MapBy, ScoreBy, Scoring, rows, save_map, surprises, threshold, usual_scores

if TYPE_CHECKING:
    from vaekit.images.stream import Chunk
    from vaekit.types import Array
    from vaekit.vae import VAE
    from vaekit_cli.on_flag import OnFlag


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
            metavar="pN|NATS", help="Flag scores above a percentile of the held-out scores, or above a number."
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Flag images such that this share of usual ones is; needs --calibration."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scores of good images that the model has not seen, by an earlier -o FILE."),
    ] = None,
    score_by: Annotated[
        ScoreBy,
        typer.Option(
            help="-ELBO, one of its two terms, the mean of the highest hundredth of the map or its peak (for defects), "
            "or the distance of mu from that of held-out images."
        ),
    ] = ScoreBy.ELBO,
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
            help="What is usual: the errors of held-out images at the same pixel, or at pixels as steep or bright; or "
            "the contrasts at pixels as bright and as far from the border.",
            show_default="pixel for images of one size, contrast for models of crops, else gradient",
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Score each picture that appears in a folder, until SIGTERM or Ctrl-C. JSON lines are added to "
            "-o FILE; after a restart, pictures in it are not scored again.",
        ),
    ] = None,
    on_flag: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="With --watch: a program to run for each flagged picture, without a shell. Its last argument is the "
            "picture's path, and its input the JSON line.",
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
    from vaekit_cli.on_flag import OnFlag

    flags = flag_above is not None or false_alarms is not None
    _check_watch(watch, maps, on_flag, flags=flags, others=bool(images) or from_file is not None or skip_errors)
    say = speaker(quiet)
    runner = None if on_flag is None else OnFlag(on_flag, say)
    if output is not None:
        check_file_target(output)
    if maps is not None and watch is None:
        check_new_folder(maps)
    elif maps is None and map_by is not None and not score_by.from_maps:
        raise UsageError("--map-by only applies to --maps and --score-by map or peak")
    vae, own_sizes = runtime.load_for_each(images or (), spinning=False)
    vae.check_score(score_by.value)
    by = None if map_by is None else map_by.value
    if maps is not None or by is not None:
        vae.residual_statistics(by)  # fails now, before any work
    default_map = not score_by.from_maps or map_by is None
    percentiles = vae.manifest.statistics_of(score_by.value, own_sizes=own_sizes) if default_map else None
    limit = None if flag_above is None else threshold(flag_above, percentiles)
    usual = usual_scores(false_alarms, calibration, flag_above, score_by.value)
    scoring = Scoring(score_by.value, seed, by, limit, usual)
    if watch is not None:
        _watch(vae, own_sizes, watch, scoring, output, maps, runner, say, resize=not no_resize)
        return
    flagged = scored = 0
    with (
        open_stream(images, from_file, vae.image_shape, say, no_resize=no_resize) as stream,
        _target(output) as file,
        nullcontext() if maps is None else replacing_folder(maps) as folder,
    ):
        provider = say_where(vae, say, "encoder", "decoder")
        unreadable = Unreadable(say)
        write = _writer(file, scoring, as_json)
        with progress_bar("scoring", len(stream), quiet or output is None) as progress:
            for model, chunk in at_own_sizes(vae, stream) if own_sizes else ((vae, c) for c in stream.chunks()):
                unreadable.note(chunk)
                if not chunk.paths:
                    continue
                found = _maps(model, chunk, scoring, folder, scored)
                for row in rows(model, chunk.images, chunk.paths, scoring, found):
                    write(row)
                    flagged += bool(row["flagged"])
                scored += len(chunk.paths)
                progress(scored + unreadable.count)
        total = len(stream)
        if not scored:
            raise SourceError(f"none of the {total:,} images could be read; the first: {unreadable.first}")
    done = f"{scored:,} images scored"
    say(f"{output or 'stdout'}: {done}{scoring.described(provider, flagged, flag_above)}")
    if maps is not None:
        say(f"{maps}: a map and a picture of each image, in standard deviations above the usual error")
    if flag_above is None and usual is None and images and percentiles is not None:
        again = (
            *(("", name, None) for name in images[:3]),
            ("--score-by", score_by.value, ScoreBy.ELBO.value),
            ("--flag-above", "p99", None),
            *runtime.again,
        )
        say(f"next: {command_line('vaekit score', *again)}")
    unreadable.end(total, done, skip_errors=skip_errors)


def _check_watch(folder: Path | None, maps: Path | None, on_flag: str | None, *, flags: bool, others: bool) -> None:
    """Raise UsageError for options that do not go with ``--watch``, and for those that need it.

    ``flags`` is whether pictures are flagged, and ``others`` whether there are options about other images.
    """
    from vaekit.system.files import check_writable

    if on_flag is not None and (folder is None or not flags):
        raise UsageError("--on-flag needs --watch, and --flag-above or --false-alarms, which say what is flagged")
    if folder is None:
        return
    if others:
        raise UsageError("--watch takes its pictures from one folder: leave out IMAGES, --from-file and --skip-errors")
    if maps is not None:
        check_writable(maps)
        if os.path.lexists(maps) and not os.path.isdir(maps):
            raise UsageError(f"cannot write maps to {maps}: it is a file, not a folder")
        if os.path.isdir(folder) and os.path.isdir(maps) and folder.samefile(maps):
            raise UsageError("--maps needs another folder than --watch: its pictures would be scored too")


def _watch(
    vae: VAE,
    own_sizes: bool,
    folder: Path,
    scoring: Scoring,
    output: Path | None,
    maps: Path | None,
    runner: OnFlag | None,
    say: Callable[[str], None],
    *,
    resize: bool,
) -> None:
    from vaekit.images.watch import FolderWatch
    from vaekit_cli.score_record import ScoreRecord
    from vaekit_cli.watching import Watching, watch

    with FolderWatch(folder) as pictures:
        record = ScoreRecord(output, say)
        if maps is not None:
            maps.mkdir(parents=True, exist_ok=True)
        say_where(vae, say, "encoder", "decoder")
        work = Watching(vae, own_sizes, folder, resize, scoring, record, maps, runner)
        watch(work, pictures, say)
    say(f"{output or 'stdout'}: {work.described()}")


def _maps(vae: VAE, chunk: Chunk, scoring: Scoring, folder: Path | None, first: int) -> Array | None:
    """Compute the maps of a chunk if they are needed, and write them if there is a folder for them.

    Files are numbered from ``first``.
    """
    if folder is None and not scoring.needs_maps:
        return None
    images = chunk.images
    decoded, found = surprises(vae, images, scoring)
    if folder is not None:
        each = zip(chunk.paths, images, decoded, found, strict=True)
        for number, (path, image, other, values) in enumerate(each, first):
            name = f"{number:06}-{Path(os.fsdecode(path)).stem}".replace(os.sep, "_")
            save_map(folder / name, image, other, values)
    return found


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


def _writer(file: TextIO, scoring: Scoring, as_json: bool) -> Callable[[dict[str, Any]], object]:
    if as_json:
        return lambda row: file.write(json.dumps(row) + "\n")
    writer = csv.DictWriter(file, scoring.fields, lineterminator="\n")
    writer.writeheader()
    return writer.writerow
