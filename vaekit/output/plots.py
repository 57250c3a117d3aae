"""Plot the latent space. Needs matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import MissingExtraError
from vaekit.output.grid import grid
from vaekit.system.files import check_file_target, replacing_file
from vaekit.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".webp")

_LEGEND_ENTRIES = 20  # more classes than this are drawn in one colour
_DOTS_PER_INCH = 150
_PLANE_STEPS = 16  # decoded latents along each axis


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
    """Draw points coloured by label, or a histogram for one dimension."""
    groups = _groups(labels, len(projection.points))
    if projection.points.shape[1] == 1:
        values = [projection.points[rows, 0] for _, rows in groups]
        axes.hist(values, bins=60, stacked=True, color=_colours(len(groups)), label=[name for name, _ in groups])
        axes.set_ylabel("images")
    else:
        for (name, rows), colour in zip(groups, _colours(len(groups)), strict=True):
            x, y = projection.points[rows].T
            axes.scatter(x, y, s=5, alpha=0.6, linewidths=0, color=colour, label=name)
        axes.set_ylabel(projection.names[1])
        axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(projection.names[0])


def legend(axes: Axes, labels: Sequence[str] | None) -> None:
    """Draw a legend to the right, unless there are too few or many classes."""
    if 1 < len(set(labels or ())) <= _LEGEND_ENTRIES:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=3)


def decoded_plane(axes: Axes, decode: Callable[[Array], Array], reach: float) -> None:
    """Decode a regular grid of latents in [-reach, reach]² and draw the images there."""
    line = np.linspace(-reach, reach, 2 * _PLANE_STEPS + 1)[1::2]  # centres of the cells
    x, y = np.meshgrid(line, line[::-1])  # z1 points upwards
    images = decode(np.stack((x.ravel(), y.ravel()), axis=1).astype(np.float32))
    plane = grid(images, _PLANE_STEPS, padding=0)
    axes.imshow(plane, extent=(-reach, reach, -reach, reach), interpolation="nearest")
    axes.set_xlabel("z0")
    axes.set_ylabel("z1")


def new_figure(width: float, height: float) -> Figure:
    """Return a new figure, its size in inches. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing plots needs matplotlib: pip install 'vaekit[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure under a temporary name and rename it.

    Raises UsageError for a suffix not in FORMATS.
    """
    check_file_target(path, FORMATS)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=_DOTS_PER_INCH)


def _groups(labels: Sequence[str] | None, count: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Return (name, row numbers) of each class.

    Without labels, or with too many classes, there is one group with an empty name.
    """
    names = sorted(set(labels or ()))
    if not 1 < len(names) <= _LEGEND_ENTRIES:
        return [("", np.arange(count))]
    array = np.asarray(labels)
    return [(name, np.flatnonzero(array == name)) for name in names]


def _colours(count: int) -> list[Any]:
    import matplotlib

    return list(matplotlib.colormaps["tab10" if count <= 10 else "tab20"].colors[:count])  # type: ignore[attr-defined]
