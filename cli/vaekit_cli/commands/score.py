"""`vaekit score`: compute how unlikely each image is under the model."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from vaekit.errors import SourceError, UsageError
from vaekit_cli.bundle_options import Runtime, at_own_sizes, runs_a_bundle, say_where
from vaekit_cli.calibration import Calibration, read_calibration
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
    from vaekit.maths.anomaly import ScoreName
    from vaekit.types import Array
    from vaekit.vae import VAE


class ScoreBy(StrEnum):
    """What an image is scored by."""

    ELBO = "elbo"
    RECONSTRUCTION = "reconstruction"
    KL = "kl"
    MAP = "map"
    MAHALANOBIS = "mahalanobis"


@dataclass(frozen=True)
class Scoring:
    """How images are scored and flagged."""

    by: ScoreName
    seed: int
    map_by: str | None
    limit: float | None
    """Higher scores are flagged."""
    calibration: Calibration | None
    """Low p-values are flagged."""

    @property
    def unit(self) -> str:
        """Return the unit of the scores."""
        from vaekit.maths.anomaly import ELBO_SCORES

        return "nats" if self.by in ELBO_SCORES else "standard deviations"

    @property
    def fields(self) -> list[str]:
        """Return the columns of the output. The ELBO's terms are in nats, and empty if the model has none."""
        fields = ["path", "score", "reconstruction", "kl", "flagged"]
        return fields + ["p_value"] * (self.calibration is not None) + ["score_by"] * (self.by != "elbo")

    def described(self, provider: str, flagged: int, limit: str | None) -> str:
        """Describe how images were scored, after their number. ``limit`` is the threshold as it was given."""
        kind = "" if self.by == "elbo" else f" by {self.by}"
        above = "" if self.limit is None else f", {flagged:,} of them above {limit} ({self.limit:.1f} {self.unit})"
        if self.calibration is not None:
            good = f"{len(self.calibration.scores):,} good images"
            above = f", {flagged:,} of them flagged at a rate of {self.calibration.rate:g} false alarms, by {good}"
        drawn = f", L = 1, seed {self.seed}" if self.unit == "nats" else ""
        return f"{kind} on {provider}{above}; in {self.unit} per image{drawn}"


class MapBy(StrEnum):
    """What a pixel's error is compared with."""

    PIXEL = "pixel"
    GRADIENT = "gradient"
    BRIGHTNESS = "brightness"


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
            help="-ELBO, one of its two terms, the mean of the highest hundredth of the map (for defects), or the "
            "distance of mu from that of held-out images."
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
            help="What is usual: the errors of held-out images at the same pixel, or at pixels as steep or bright.",
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
    elif map_by is not None and score_by != ScoreBy.MAP:
        raise UsageError("--map-by only applies to --maps and --score-by map")
    vae, own_sizes = runtime.load_for_each(images or (), spinning=False)
    vae.check_score(score_by.value)
    by = None if map_by is None else map_by.value
    if maps is not None or by is not None:
        vae.residual_statistics(by)  # fails now, before any work
    default_map = score_by != ScoreBy.MAP or map_by is None
    percentiles = vae.manifest.statistics_of(score_by.value) if default_map and not own_sizes else None
    limit = None if flag_above is None else threshold(flag_above, percentiles)
    usual = _calibration(false_alarms, calibration, flag_above, score_by.value)
    scoring = Scoring(score_by.value, seed, by, limit, usual)
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
                for row in _rows(model, chunk, scoring, found):
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


def _calibration(rate: float | None, path: Path | None, flag_above: str | None, by: ScoreName) -> Calibration | None:
    """Return what ``--false-alarms`` compares with, or None without that option."""
    if rate is None and path is None:
        return None
    if rate is None or path is None:
        raise UsageError("--false-alarms and --calibration go together: a rate, and the scores of good images")
    if flag_above is not None:
        raise UsageError("--false-alarms and --flag-above both flag images: give one of them")
    return read_calibration(path, by, rate)


def _maps(vae: VAE, chunk: Chunk, scoring: Scoring, folder: Path | None, first: int) -> Array | None:
    """Compute the maps of a chunk if they are needed, and write them if there is a folder for them.

    Files are numbered from ``first``.
    """
    if folder is None and scoring.by != "map":
        return None
    import numpy as np

    from vaekit.maths.surprise import surprise
    from vaekit.output.grid import save_picture
    from vaekit.output.heat import overlay

    images = chunk.images
    decoded = vae.reconstruct(images)
    found = surprise(images, decoded, *vae.residual_statistics(scoring.map_by))
    if folder is None:
        return found
    for number, (path, image, other, values) in enumerate(zip(chunk.paths, images, decoded, found, strict=True), first):
        name = f"{number:06}-{Path(os.fsdecode(path)).stem}".replace(os.sep, "_")
        np.save(folder / f"{name}.npy", values)
        save_picture(overlay(image, other, values), folder / f"{name}.png")
    return found


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
            "this bundle has no held-out scores of this kind and size, so there are no percentiles: give a number "
            "(in nats for -ELBO)"
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


def _writer(file: TextIO, scoring: Scoring, as_json: bool) -> Callable[[dict[str, Any]], object]:
    if as_json:
        return lambda row: file.write(json.dumps(row) + "\n")
    writer = csv.DictWriter(file, scoring.fields, lineterminator="\n")
    writer.writeheader()
    return writer.writerow


def _rows(vae: VAE, chunk: Chunk, scoring: Scoring, maps: Array | None) -> Iterator[dict[str, Any]]:
    """Yield a line of the output for each image of a chunk. ``maps`` are its maps, if the score is taken from them."""
    from vaekit.maths.anomaly import ELBO_SCORES, p_values, scores_of_terms, top_mean

    columns: dict[str, list[Any]] = {"path": [os.fsdecode(path) for path in chunk.paths]}
    terms = None if vae.manifest.why_no_elbo else vae.elbo_terms(chunk.images, seed=scoring.seed)
    if scoring.by == "map" and maps is not None:
        scores = top_mean(maps)
    elif scoring.by in ELBO_SCORES and terms is not None:
        scores = scores_of_terms(terms)[scoring.by]
    else:
        scores = vae.score(chunk.images, by=scoring.by)
    columns["score"] = scores.tolist()
    for name in ("reconstruction", "kl"):
        columns[name] = [None] * len(scores) if terms is None else getattr(terms, name).tolist()
    if scoring.calibration is not None:
        found = p_values(scores, scoring.calibration.scores)
        columns |= {"p_value": found.tolist(), "flagged": (found <= scoring.calibration.rate).tolist()}
    else:
        flags = [None] * len(scores) if scoring.limit is None else (scores > scoring.limit).tolist()
        columns["flagged"] = flags
    columns["score_by"] = [scoring.by] * len(scores)
    for number in range(len(scores)):
        yield {field: columns[field][number] for field in scoring.fields}
