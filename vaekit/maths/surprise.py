"""Maps of surprise: where an image differs from its reconstruction more than is usual there.

A model reconstructs some places badly in every image, such as edges and fine textures. So the squared error of each
pixel is compared with that of held-out images: at the same pixel, if all images are framed alike, or, if they are not,
at pixels where the reconstruction is as steep, or as bright.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vaekit.types import Array

MapKind = Literal["pixel", "gradient", "brightness"]
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)

BINS = 16
"""Classes of gradients, and of brightness, with equally many pixels of the held-out images in each."""
_WIDTH = 3.0  # standard deviations of the Gaussian on each side of its kernel
_NARROWEST = 0.1  # pixels
_LEAST_SHARE = 0.1  # of the deviation of all pixels: where nothing ever happens, a grey level is no great surprise
_NO_DEVIATION = 1e-12


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

    def __post_init__(self) -> None:
        if self.pixel_mean.ndim != 2 or self.pixel_std.shape != self.pixel_mean.shape:
            raise ValueError("the statistics of pixels are not two maps of one size")
        parts = [self.pixel_mean, self.pixel_std]
        for edges, mean, std in self.classes.values():
            if mean.ndim != 1 or std.shape != mean.shape or edges.shape != (len(mean) - 1,):
                raise ValueError("the statistics of classes do not have one number for each class")
            parts += [edges, mean, std]
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
        padded, length = np.pad(maps, padding, "symmetric"), maps.shape[axis]
        maps = np.zeros_like(maps)
        for first, weight in enumerate(kernel.astype(np.float32)):
            maps += weight * np.take(padded, range(first, first + length), axis)
    return maps


def measure(images: Array, decoded: Array, smooth: float) -> ResidualStatistics:
    """Compute the statistics of held-out images and their reconstructions, each (N, C, H, W)."""
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
    )


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
    pixels of the same class of ``gradient`` or ``brightness``, which the statistics must have. A standard deviation
    counts at least as a tenth of that of all pixels.
    """
    errors = smoothed_errors(images, decoded, statistics.smooth)
    usual, deviation = statistics.pixel_mean, statistics.pixel_std
    if by != "pixel":
        edges, mean, std = statistics.classes[by]
        values = gradients(decoded, statistics.smooth) if by == "gradient" else brightness(decoded)
        classes = np.searchsorted(edges, values, side="right")
        usual, deviation = mean[classes], std[classes]
    of_all = float(np.sqrt(np.square(statistics.pixel_std, dtype=np.float64).mean()))
    least = np.float32(max(_LEAST_SHARE * of_all, _NO_DEVIATION))
    return np.asarray((errors - usual) / np.maximum(deviation, least), np.float32)
