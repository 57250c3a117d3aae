"""`vaekit evaluate --anomalies`: how well a bundle finds defects. Nothing here needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vaekit.errors import SourceError, UsageError
from vaekit_cli.bundle_options import at_own_sizes, say_where
from vaekit_cli.console import print_document, progress_bar, speaker
from vaekit_cli.image_input import Unreadable, open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vaekit.diagnose.anomalies import Findings, KindReport
    from vaekit.images.parts import Chunk
    from vaekit.images.stream import ImageStream
    from vaekit.maths.anomaly import ScoreName
    from vaekit.vae import VAE

_MASKS = "ground_truth"  # beside the folder of pictures, as in MVTec's data sets
_SHOWN = 4  # of the worst misses and of the worst false alarms


@dataclass(frozen=True)
class AnomalyRequest:
    """What to measure."""

    bundle: Path
    source: str
    normal: str
    masks: Path | None
    size: tuple[int, int] | None
    """(height, width); by default the pictures' own, if the bundle allows several."""
    provider: str
    seed: int
    map_by: str | None
    score_by: ScoreName
    """The score whose misses and curves are drawn."""
    picture: Path | None
    """The file for the worst misses."""
    plot: Path | None
    """The file for ROC curves and histograms."""


@dataclass(frozen=True)
class Anomalies:
    """The result of ``evaluate --anomalies``."""

    model: str
    source: str
    normal: str
    good: int
    """The number of good images."""
    masks: str | None
    failures: int
    """The number of images that could not be read."""
    provider: str
    kinds: dict[str, KindReport]
    """By kind of defect; ``all`` is all of them together."""


def evaluate_anomalies(request: AnomalyRequest, *, as_json: bool, quiet: bool) -> None:
    """Score the pictures, and print how well that tells those with defects from the good ones.

    Raises UsageError and SourceError for what does not fit.
    """
    from vaekit.diagnose.anomalies import find_anomalies
    from vaekit.output import plots
    from vaekit.output.grid import FORMATS
    from vaekit.system.files import check_file_target
    from vaekit.vae import load

    silent = quiet or as_json
    say = speaker(silent)
    if request.picture is not None:
        check_file_target(request.picture, FORMATS)
        if not Path(request.source).is_dir():
            raise UsageError(f"--worst draws pictures of a folder, and {request.source} is none")
    if request.plot is not None:
        check_file_target(request.plot, plots.FORMATS)
        plots.new_figure(1, 1)  # fails now, before any work, if matplotlib is missing
    vae = load(request.bundle, provider=request.provider)
    if request.picture is not None or request.plot is not None:
        vae.check_score(request.score_by)
    if request.picture is not None or request.map_by is not None:
        vae.residual_statistics(request.map_by)
    own_sizes = request.size is None and vae.manifest.image.multiple_of is not None
    vae = vae if request.size is None else vae.at(*request.size)
    masks = _masks(request) if vae.manifest.residuals is not None else None
    unreadable = Unreadable(say)
    with open_stream([request.source], None, vae.image_shape, say, no_resize=False) as stream:
        _check_classes(stream, request)
        provider = say_where(vae, say, "encoder", "decoder")
        chunks = at_own_sizes(vae, stream) if own_sizes else ((vae, chunk) for chunk in stream.chunks())
        with progress_bar("scoring", len(stream), silent) as progress:
            findings = find_anomalies(
                _noted(chunks, unreadable), request.normal, masks, request.seed, request.map_by, progress
            )
    good = sum(image.kind == request.normal for image in findings.images)
    if not good or not findings.kinds():
        raise SourceError(f"no good pictures, or none with defects, could be read; the first: {unreadable.first}")
    kinds = findings.report()
    result = Anomalies(
        str(request.bundle),
        request.source,
        request.normal,
        good,
        None if masks is None else str(masks),
        unreadable.count,
        provider,
        kinds,
    )
    if request.picture is not None:
        _draw_worst(vae, findings, request, own_sizes)
        say(f"{request.picture}: the defects that score lowest by {request.score_by}, then the good that score highest")
    if request.plot is not None:
        _plot(findings, request)
        say(f"{request.plot}: ROC curves and histograms of the score {request.score_by}")
    if as_json:
        print_document(result)
        return
    for line in _table(result):
        print(line)
    say(f"the masks are those in {masks}" if masks is not None else "no masks: nothing is measured by pixel")


def _plot(findings: Findings, request: AnomalyRequest) -> None:
    from vaekit.diagnose.anomalies import ALL
    from vaekit.maths.anomaly import unit_of
    from vaekit.output.plots import detection_figure, save_figure

    assert request.plot is not None
    kinds = findings.kinds()
    curves = {kind: findings.curve(kind, request.score_by) for kind in (*kinds, *([ALL] if len(kinds) > 1 else []))}
    scores = {kind: findings.of(kind, request.score_by) for kind in (findings.normal, *kinds)}
    what = f"score {request.score_by}, {unit_of(request.score_by)}"
    save_figure(detection_figure(curves, scores, what), request.plot)


def _masks(request: AnomalyRequest) -> Path | None:
    """Return the folder of masks: the one that was named, or the usual one if it is there."""
    if request.masks is not None:
        if not request.masks.is_dir():
            raise SourceError(f"there is no folder of masks {request.masks}")
        return request.masks
    usual = Path(request.source).resolve().parent / _MASKS
    return usual if Path(request.source).is_dir() and usual.is_dir() else None


def _check_classes(stream: ImageStream, request: AnomalyRequest) -> None:
    from vaekit.diagnose.anomalies import ALL

    names = stream.class_names
    if names is None:
        raise SourceError(
            f"{request.source} has no classes: put the pictures into a folder for each kind, such as good and scratch"
        )
    if request.normal not in names:
        raise UsageError(
            f"{request.source} has no class {request.normal!r}, but {', '.join(names)}: name the good one by --normal"
        )
    if ALL in names and request.normal != ALL:
        raise UsageError(f"{request.source} has a class {ALL!r}, which stands for all kinds together: rename it")
    if len(names) < 2:
        raise UsageError(f"{request.source} has only the class {request.normal!r}, so there is nothing to find")


def _noted(chunks: Iterator[tuple[VAE, Chunk]], unreadable: Unreadable) -> Iterator[tuple[VAE, Chunk]]:
    for vae, chunk in chunks:
        unreadable.note(chunk)
        yield vae, chunk


def _table(result: Anomalies) -> list[str]:
    from vaekit.output.table import text_table

    rows = [["kind", "images", "score", "AUROC", "average precision", "false alarms at 95 % found"]]
    for kind, report in result.kinds.items():
        for name, found in report.scores.items():
            figures = (found.auroc, found.average_precision, found.false_alarms_at_95)
            rows.append([kind, f"{report.images:,}", name, *(f"{figure:.3f}" for figure in figures)])
    lines = text_table(rows)
    if result.masks is not None:
        pixels = [["kind", "pixel AUROC", "PRO to 0.3"]]
        pixels += [[kind, f"{report.pixel_auroc:.3f}", f"{report.pro:.3f}"] for kind, report in result.kinds.items()]
        lines += ["", *text_table(pixels)]
    return [f"{result.good:,} good images", "", *lines]


def _draw_worst(vae: VAE, findings: Findings, request: AnomalyRequest, own_sizes: bool) -> None:
    """Draw the worst misses and false alarms below each other, each with its map."""
    import numpy as np

    from vaekit.diagnose.anomalies import worst
    from vaekit.images.picture import read_image
    from vaekit.maths.surprise import surprise
    from vaekit.output.grid import save_picture
    from vaekit.output.heat import overlay

    assert request.picture is not None
    panels = []
    for image in worst(findings, request.score_by, _SHOWN):
        channels, *size = vae.image_shape
        pixels = read_image(image.path, channels, None if own_sizes else (size[0], size[1]))[None]
        model = vae.at(*pixels.shape[2:]) if own_sizes else vae
        array = pixels.astype(np.float32) / np.float32(255)
        decoded = model.reconstruct(array)
        panels.append(
            overlay(array[0], decoded[0], surprise(array, decoded, *model.residual_statistics(request.map_by))[0])
        )
    width = max(panel.shape[1] for panel in panels)
    padded = [np.pad(panel, ((0, 8), (0, width - panel.shape[1]), (0, 0)), constant_values=255) for panel in panels]
    save_picture(np.concatenate(padded), request.picture)
