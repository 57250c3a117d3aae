"""Maps of surprise: where an image differs from its reconstruction more than is usual there.

A model reconstructs some places badly in every image, such as edges and fine textures. So the squared error of each
pixel is compared with that of held-out images: at the same pixel, if all images are framed alike, or, if they are not,
at pixels where the reconstruction is as steep, or as bright. By contrast, the error is relative to the brightness, and
the usual one is that of pixels that are as bright and as far from the picture's border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vaekit.types import Array

MapKind = Literal["pixel", "gradient", "brightness", "contrast"]
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)

BINS = 16
"""Classes of gradients, and of brightness, with equally many pixels of the held-out images in each."""
DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Distances from the border, in pixels, that separate the classes of distance."""
_OFFSET = np.float32(0.02)  # added to both sides of a ratio: five of 255 grey levels, so that black is no division by 0
_WIDTH = 3.0  # standard deviations of the Gaussian on each side of its kernel
_NARROWEST = 0.1  # pixels
_LEAST_SHARE = 0.1  # of the deviation of all pixels: where nothing ever happens, a grey level is no great surprise
_NO_DEVIATION = 1e-12
_SORTED = 4_000_000  # values that quantiles of brightness are taken from, about


@dataclass(frozen=True)
class ResidualStatistics:
    """Mean and standard deviation of held-out images' smoothed squared errors."""

    smooth: float
    """Standard deviation of the Gaussian that smoothed them, in pixels."""
    pixel_mean: Array
    """(H, W), at each pixel."""
    pixel_std: Array
    edges: Array
    """The ``BINS`` − 1 gradients between classes, increasing."""
    gradient_mean: Array
    """(BINS,), in each class."""
    gradient_std: Array
    levels: Array | None = None
    """The ``BINS`` − 1 levels of brightness between classes, increasing; None if there are no such statistics."""
    brightness_mean: Array | None = None
    """(BINS,), in each class."""
    brightness_std: Array | None = None
    contrast_levels: Array | None = None
    """As ``levels``, for the classes of contrast; None if there are no such statistics."""
    distances: Array | None = None
    """The distances from the border between classes, increasing, in pixels."""
    contrast_mean: Array | None = None
    """(levels + 1, distances + 1), mean of the smoothed squared logarithms of ratios in each class."""
    contrast_std: Array | None = None

    def __post_init__(self) -> None:
        if self.pixel_mean.ndim != 2 or self.pixel_std.shape != self.pixel_mean.shape:
            raise ValueError("the statistics of pixels are not two maps of one size")
        parts = [self.pixel_mean, self.pixel_std]
        for edges, mean, std in self.classes.values():
            if mean.ndim != 1 or std.shape != mean.shape or edges.shape != (len(mean) - 1,):
                raise ValueError("the statistics of classes do not have one number for each class")
            parts += [edges, mean, std]
        if self.contrast is not None:
            levels, distances, mean, std = self.contrast
            if mean.shape != std.shape or (*levels.shape, *distances.shape) != tuple(n - 1 for n in mean.shape):
                raise ValueError("the statistics of contrast do not have one number for each class")
            parts += [levels, distances, mean, std]
        if not all(np.isfinite(part).all() and (part >= 0).all() for part in parts) or not 0 <= self.smooth < np.inf:
            raise ValueError("the statistics of residuals are not finite, or negative")

    @property
    def classes(self) -> dict[MapKind, tuple[Array, Array, Array]]:
        """Return the edges of classes, and the mean and standard deviation in each, by what separates the classes."""
        found: dict[MapKind, tuple[Array, Array, Array]] = {
            "gradient": (self.edges, self.gradient_mean, self.gradient_std)
        }
        if self.levels is not None and self.brightness_mean is not None and self.brightness_std is not None:
            found["brightness"] = (self.levels, self.brightness_mean, self.brightness_std)
        return found

    @property
    def contrast(self) -> tuple[Array, Array, Array, Array] | None:
        """Return the levels, the distances, and the mean and standard deviation in each class; None without them."""
        parts = (self.contrast_levels, self.distances, self.contrast_mean, self.contrast_std)
        levels, distances, mean, std = parts
        if levels is None or distances is None or mean is None or std is None:
            return None
        return levels, distances, mean, std

    @property
    def kinds(self) -> tuple[MapKind, ...]:
        """Return the kinds of maps that the statistics suffice for."""
        return ("pixel", *self.classes, *(("contrast",) if self.contrast is not None else ()))


def default_kind(statistics: ResidualStatistics, *, fixed: bool) -> MapKind:
    """Return the kind of map that is taken unless another is asked for; ``fixed`` is whether images have one size."""
    if fixed:
        return "pixel"
    return "gradient" if statistics.contrast is None else "contrast"


def smoothed_errors(images: Array, decoded: Array, smooth: float) -> Array:
    """Return the smoothed squared error of each pixel, averaged over channels: (N, C, H, W) → (N, H, W)."""
    return blurred(np.square(images - decoded).mean(axis=1), smooth)


def gradients(decoded: Array, smooth: float) -> Array:
    """Return the smoothed gradient's length at each pixel of reconstructions: (N, C, H, W) → (N, H, W)."""
    grey = decoded.mean(axis=1)
    down, across = (np.gradient(grey, axis=axis) if grey.shape[axis] > 1 else np.zeros_like(grey) for axis in (1, 2))
    return blurred(np.hypot(down, across).astype(np.float32), smooth)


def brightness(decoded: Array) -> Array:
    """Return the mean over channels at each pixel of reconstructions: (N, C, H, W) → (N, H, W)."""
    return np.asarray(decoded.mean(axis=1))


def blurred(maps: Array, smooth: float) -> Array:
    """Blur maps (N, H, W) with a Gaussian of standard deviation ``smooth`` pixels, reflecting at the edges.

    Below a tenth of a pixel, nothing is blurred.
    """
    if smooth < _NARROWEST:
        return maps
    reach = int(np.ceil(_WIDTH * smooth))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / smooth) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        padding = [(0, 0), (0, 0), (0, 0)]
        padding[axis] = (reach, reach)
        padded, length = np.moveaxis(np.pad(maps, padding, "symmetric"), axis, 0), maps.shape[axis]
        maps = np.zeros_like(maps)
        target = np.moveaxis(maps, axis, 0)
        for first, weight in enumerate(kernel.astype(np.float32)):
            target += weight * padded[first : first + length]
    return maps


def smoothed_contrast(images: Array, decoded: Array, smooth: float) -> Array:
    """Return the smoothed squared logarithm of the ratio at each pixel: (N, C, H, W) → (N, H, W).

    The logarithm is log((image + 0.02) / (decoded + 0.02)), and its square is averaged over channels.
    """
    return blurred(np.square(np.log((images + _OFFSET) / (decoded + _OFFSET))).mean(axis=1), smooth)


def distance_classes(shape: tuple[int, ...], distances: Array) -> NDArray[np.int64]:
    """Return the class of each pixel's distance from the border of a picture (H, W); that of the outermost is 0."""
    down, across = (np.minimum(np.arange(side), np.arange(side)[::-1]) for side in shape)
    return np.searchsorted(distances, np.minimum(down[:, None], across[None]), side="right")


def measure(
    images: Array, decoded: Array, smooth: float, wholes: Sequence[tuple[Array, Array]] | None = None
) -> ResidualStatistics:
    """Compute the statistics of held-out images and their reconstructions, each (N, C, H, W).

    If images are crops, ``wholes`` are whole held-out pictures, each (1, C, h, w) at its own size, and their
    reconstructions. The statistics of contrast, which depend on the border, come from them; there are none without
    pictures.
    """
    pairs = ((images, decoded),) if wholes is None else wholes
    errors = smoothed_errors(images, decoded, smooth)
    edges, gradient_mean, gradient_std = _statistics_of_classes(gradients(decoded, smooth), errors)
    levels, brightness_mean, brightness_std = _statistics_of_classes(brightness(decoded), errors)
    return ResidualStatistics(
        smooth,
        pixel_mean=errors.mean(axis=0, dtype=np.float64).astype(np.float32),
        pixel_std=errors.std(axis=0, dtype=np.float64).astype(np.float32),
        edges=edges,
        gradient_mean=gradient_mean,
        gradient_std=gradient_std,
        levels=levels,
        brightness_mean=brightness_mean,
        brightness_std=brightness_std,
        **(_statistics_of_contrast(pairs, smooth) if pairs else {}),
    )


def _statistics_of_contrast(pairs: Sequence[tuple[Array, Array]], smooth: float) -> dict[str, Array]:
    """Return the statistics of contrast of images and their reconstructions, by the names of their fields.

    A class without pixels has the statistics of all pixels as bright, or of all.
    """
    step = max(1, sum(decoded.size for _, decoded in pairs) // _SORTED)
    sample = np.concatenate([brightness(decoded).ravel()[::step] for _, decoded in pairs])
    levels = np.quantile(sample, np.linspace(0, 1, BINS + 1)[1:-1]).astype(np.float32)
    distances = np.array(DISTANCES, np.float32)
    shape = BINS, len(DISTANCES) + 1
    sums = np.zeros((3, *shape))  # of 1, the errors and their squares
    for images, decoded in pairs:
        errors = smoothed_contrast(images, decoded, smooth).ravel().astype(np.float64)
        classes = _contrast_classes(decoded, levels, distances).ravel()
        for power in range(3):
            sums[power] += np.bincount(classes, errors**power, sums[0].size).reshape(shape)
    for least in (sums.sum(axis=1, keepdims=True), sums.sum(axis=(1, 2), keepdims=True)):
        sums = np.where(sums[0] > 0, sums, least)
    mean = sums[1] / sums[0]
    variance = np.maximum(sums[2] / sums[0] - mean**2, 0)
    both = {"contrast_mean": mean.astype(np.float32), "contrast_std": np.sqrt(variance).astype(np.float32)}
    return {"contrast_levels": levels, "distances": distances, **both}


def _contrast_classes(decoded: Array, levels: Array, distances: Array) -> NDArray[np.int64]:
    """Return the class of each pixel of reconstructions: (N, C, H, W) → (N, H, W)."""
    bright = np.searchsorted(levels, brightness(decoded), side="right")
    return bright * (len(distances) + 1) + distance_classes(decoded.shape[2:], distances)


def _statistics_of_classes(values: Array, errors: Array) -> tuple[Array, Array, Array]:
    """Sort pixels into classes by their values, and return the classes' edges, means and standard deviations."""
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]).astype(np.float32)
    classes = np.searchsorted(edges, values, side="right").ravel()
    flat, counts = errors.ravel().astype(np.float64), np.maximum(np.bincount(classes, minlength=BINS), 1)
    mean = np.bincount(classes, flat, BINS) / counts
    variance = np.bincount(classes, (flat - mean[classes]) ** 2, BINS) / counts
    return edges, mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def surprise(images: Array, decoded: Array, statistics: ResidualStatistics, by: MapKind) -> Array:
    """Return how many standard deviations each pixel's error lies above the usual: (N, C, H, W) → float32 (N, H, W).

    ``by`` says what is usual: the errors at the same ``pixel``, where images must have the statistics' size, or at
    pixels of the same class of ``gradient`` or ``brightness``. By ``contrast`` the error is another one, see
    ``smoothed_contrast``, and classes are those of brightness and of the distance from the border. The statistics must
    have the classes. A standard deviation counts at least as a tenth of that of all pixels.
    """
    if by == "contrast":
        assert statistics.contrast is not None
        levels, distances, mean, std = statistics.contrast
        classes = _contrast_classes(decoded, levels, distances)
        usual, deviation = mean.ravel()[classes], std.ravel()[classes]
        return _above(smoothed_contrast(images, decoded, statistics.smooth), usual, deviation, std)
    errors = smoothed_errors(images, decoded, statistics.smooth)
    usual, deviation = statistics.pixel_mean, statistics.pixel_std
    if by != "pixel":
        edges, mean, std = statistics.classes[by]
        values = gradients(decoded, statistics.smooth) if by == "gradient" else brightness(decoded)
        classes = np.searchsorted(edges, values, side="right")
        usual, deviation = mean[classes], std[classes]
    return _above(errors, usual, deviation, statistics.pixel_std)


def _above(errors: Array, usual: Array, deviation: Array, all_deviations: Array) -> Array:
    of_all = float(np.sqrt(np.square(all_deviations, dtype=np.float64).mean()))
    least = np.float32(max(_LEAST_SHARE * of_all, _NO_DEVIATION))
    return np.asarray((errors - usual) / np.maximum(deviation, least), np.float32)
