"""Plot the latent space, and how well defects are found. Needs matplotlib (the extra ``plot``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import MissingExtraError
from vaekit.maths.detection import Curve
from vaekit.output.grid import grid
from vaekit.system.files import check_file_target, replacing_file
from vaekit.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".webp")

_LEGEND_ENTRIES = 20  # if there are more classes, all points have one colour
_UNLABELLED_COLOUR = "0.75"
_DOTS_PER_INCH = 150
_PLANE_STEPS = 16  # decoded latents along each axis
_HISTOGRAM_BINS = 40


@dataclass(frozen=True)
class Projection:
    """Latents projected to a plane."""

    points: NDArray[np.float64]
    """(N, 2), or (N, 1) if the latent has one dimension."""
    names: tuple[str, ...]
    """The axes' labels."""


def project(mu: Array, what: str = "mu") -> Projection:
    """Project mu (N, d) to its first two principal components.

    For d of 1 or 2, mu is returned unchanged. The names of components include their share of the variance. ``what``
    names the numbers in those names.
    """
    n, d = mu.shape
    if d <= 2:
        return Projection(mu.astype(np.float64), tuple(f"z{j}" if what == "mu" else f"{what}, {j}" for j in range(d)))
    centred = mu.astype(np.float64) - mu.mean(axis=0, dtype=np.float64)
    covariance = centred.T @ centred / max(1, n - 1)
    variances, directions = np.linalg.eigh(covariance)  # ascending
    shares = variances[::-1] / max(float(variances.sum()), 1e-300)
    names = tuple(f"principal component {k + 1} of {what} ({shares[k]:.0%} of its variance)" for k in range(2))
    return Projection(centred @ directions[:, :-3:-1], names)


def scatter(axes: Axes, projection: Projection, labels: Sequence[str] | None) -> None:
    """Draw points on axes, coloured by label; one dimension becomes a histogram.

    Points without a label are grey. Without labels, or with too many, all points have one colour.
    """
    groups = _groups(labels, len(projection.points))
    colours = _colours(groups)
    if projection.points.shape[1] == 1:
        values = [projection.points[rows, 0] for _, rows in groups]
        axes.hist(values, bins=60, stacked=True, color=colours, label=[_plain(name) for name, _ in groups])
        axes.set_ylabel("images")
    else:
        for (name, rows), colour in zip(groups, colours, strict=True):
            x, y = projection.points[rows].T
            axes.scatter(x, y, s=5, alpha=0.6, linewidths=0, color=colour, label=_plain(name))
        axes.set_ylabel(projection.names[1])
        axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(projection.names[0])


def legend(axes: Axes) -> None:
    """Add a legend to the right of axes, if ``scatter`` coloured several classes."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=3)


def decoded_plane(axes: Axes, decode: Callable[[Array], Array], reach: float) -> None:
    """Decode a grid of latents in [-reach, reach]² and draw the images there."""
    line = np.linspace(-reach, reach, 2 * _PLANE_STEPS + 1)[1::2]  # centres of the cells
    x, y = np.meshgrid(line, line[::-1])  # z1 points upwards
    images = decode(np.stack((x.ravel(), y.ravel()), axis=1).astype(np.float32))
    plane = grid(images, _PLANE_STEPS, padding=0)
    axes.imshow(plane, extent=(-reach, reach, -reach, reach), interpolation="nearest")
    axes.set_xlabel("z0")
    axes.set_ylabel("z1")


def detection_figure(findings: Mapping[str, Curve], scores: Mapping[str, NDArray[np.float64]], what: str) -> Figure:
    """Draw the ROC curve of each kind of defect, and beside it the histogram of each kind's scores.

    ``findings`` are the curves by kind; ``scores`` are (n,) by kind, the good images first; ``what`` names the score.
    Raises MissingExtraError without matplotlib.
    """
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    # One colour for a kind in both panels; good images have the first one.
    names = (*scores, *(name for name in findings if name not in scores))
    colours = dict(zip(names, _colours([(name, np.empty(0, np.int64)) for name in names]), strict=False))
    for kind, curve in findings.items():
        label = f"{_plain(kind)}, AUROC {curve.auroc:.3f}"
        left.plot(curve.false_alarms, curve.found, color=colours.get(kind, "black"), label=label)
    left.plot((0, 1), (0, 1), color=_UNLABELLED_COLOUR, linestyle=":", label="chance, AUROC 0.5")
    left.set(xlabel="share of good images flagged", ylabel="share of defects found", aspect="equal")
    left.legend(loc="lower right", frameon=False)
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), _HISTOGRAM_BINS)
    for kind, values in scores.items():
        right.hist(values, edges, histtype="step", color=colours.get(kind, "black"), label=_plain(kind))
    right.set(xlabel=what, ylabel="images")
    right.legend(frameon=False)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """Return a new figure, its size in inches. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing plots needs matplotlib: pip install 'vaekit[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> bool:
    """Write a figure under a temporary name and rename it.

    Returns whether the font has all characters; others, such as Chinese ones, are drawn as boxes. Raises UsageError for
    a suffix not in FORMATS.
    """
    check_file_target(path, FORMATS)
    with replacing_file(path) as temporary, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=_DOTS_PER_INCH)
    return not any(str(warning.message).startswith("Glyph ") for warning in heard)


def _groups(labels: Sequence[str] | None, count: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Return each class's name and rows; unlabelled rows come first, without a name.

    If there are no classes or too many, or one class has all the images, there is one group without a name.
    """
    names = sorted(set(labels or ()))
    if len(names) < 2 or len(set(names) - {""}) > _LEGEND_ENTRIES:
        return [("", np.arange(count))]
    array = np.asarray(labels)
    return [(name, np.flatnonzero(array == name)) for name in names]


def _colours(groups: Sequence[tuple[str, NDArray[np.int64]]]) -> list[Any]:
    import matplotlib

    unlabelled = [_UNLABELLED_COLOUR] if len(groups) > 1 and not groups[0][0] else []
    count = len(groups) - len(unlabelled)
    colours = matplotlib.colormaps["tab10" if count <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return [*unlabelled, *colours[:count]]


def _plain(name: str) -> str:
    """Escape a class name for matplotlib.

    A dollar would begin a formula, and a leading underscore would hide the name from the legend.
    """
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
