"""The built-in data set: coloured shapes on a pale background, with known factors.

Each image is a function of its index and a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.images.factors import Factors
from vaekit.maths.noise import uniforms, words

SHAPE_NAMES = ("circle", "square", "triangle")
FACTOR_NAMES = ("shape", "hue", "size", "rotation", "x", "y", "background_hue")

_FACTOR_WORDS = 8  # seven factors, rounded up to Philox's four words a count
_CHUNK_PIXELS = 2_000_000  # drawn at a time, so that temporary arrays take less than a hundred megabytes


@dataclass(frozen=True)
class Shapes:
    """Drawn images and their factors."""

    images: NDArray[np.uint8]
    """(N, 3, H, W)."""
    factors: NDArray[np.float64]
    """(N, 7), with the columns FACTOR_NAMES.

    shape: 0, 1 or 2 (SHAPE_NAMES). hue, background_hue, rotation: turns in [0, 1). size: radius of the circle of equal
    area, as a share of the image's shorter side. x, y: the centre, as shares of width and height from the top left.
    """


def draw_shapes(count: int, size: tuple[int, int] = (32, 32), *, start: int = 0, seed: int = 0) -> Shapes:
    """Draw ``count`` shapes of a seed, beginning with number ``start``.

    ``size`` is (height, width) in pixels.
    """
    factors = draw_factors(count, start=start, seed=seed)
    return Shapes(render(factors, size), factors)


def draw_factors(count: int, *, start: int = 0, seed: int = 0) -> NDArray[np.float64]:
    """Draw the factors of those shapes, (count, 7): see ``Shapes.factors``."""
    u = uniforms(words(seed, start, count, _FACTOR_WORDS))[:, : len(FACTOR_NAMES)]
    u[:, 0] = np.floor(u[:, 0] * len(SHAPE_NAMES))
    u[:, 2] = 0.13 + 0.11 * u[:, 2]
    u[:, 4:6] = 0.3 + 0.4 * u[:, 4:6]
    return u


def known_factors(factors: NDArray[np.float64]) -> Factors:
    """Name the factors (N, 7) of shapes with their periods.

    Squares look the same after a quarter of a turn and triangles after a third, so their rotations are two factors.
    """
    columns = dict(zip(FACTOR_NAMES, factors.T, strict=True))
    square, triangle = (columns["shape"] == SHAPE_NAMES.index(name) for name in ("square", "triangle"))
    named = {
        "hue": (1.0, columns["hue"]),
        "size": (0.0, columns["size"]),
        "square rotation": (1 / 4, np.where(square, columns["rotation"], np.nan)),
        "triangle rotation": (1 / 3, np.where(triangle, columns["rotation"], np.nan)),
        "x": (0.0, columns["x"]),
        "y": (0.0, columns["y"]),
        "background hue": (1.0, columns["background_hue"]),
    }
    periods, values = zip(*named.values(), strict=True)
    return Factors(tuple(named), periods, np.stack(values, 1))


def render(factors: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw images (N, 3, H, W) from factors (N, 7)."""
    images = np.empty((len(factors), 3, *size), np.uint8)
    chunk = max(1, _CHUNK_PIXELS // (size[0] * size[1]))
    for first in range(0, len(factors), chunk):
        images[first : first + chunk] = _render(factors[first : first + chunk], size)
    return images


def _render(factors: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw images (n, 3, H, W) from factors (n, 7).

    Each pixel mixes the shape's colour and the background by how much of it the shape covers.
    """
    coverage = _coverage(factors, size)[:, None]  # (n, 1, H, W)
    ink = _rgb(factors[:, 1], saturation=0.85, value=0.8)[:, :, None, None]
    paper = _rgb(factors[:, 6], saturation=0.22, value=0.95)[:, :, None, None]
    return np.rint(255.0 * (paper + (ink - paper) * coverage)).astype(np.uint8)


def _coverage(factors: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return how much of each pixel the shape covers, (n, H, W) in [0, 1].

    It falls from 1 to 0 over one pixel of distance across the shape's outline.
    """
    height, width = size
    scale = min(height, width)
    shape, size_factor, rotation, centre_x, centre_y = (
        factors[:, FACTOR_NAMES.index(name), None, None].astype(np.float32)
        for name in ("shape", "size", "rotation", "x", "y")
    )
    x = np.arange(width, dtype=np.float32) + 0.5 - centre_x * width
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5 - centre_y * height
    turn, radius = 2 * np.pi * rotation, size_factor * scale
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    # Signed distance in pixels, negative inside. Half sides and inner radii are those of equal area, pi r².
    circle = np.hypot(x, y) - radius
    square = np.maximum(np.abs(along), np.abs(across)) - radius * np.float32(np.sqrt(np.pi) / 2)
    slopes = np.maximum(np.float32(np.sqrt(3) / 2) * np.abs(along) - across / 2, across)
    triangle = slopes - radius * np.float32(np.sqrt(np.pi / (3 * np.sqrt(3))))
    distance = np.choose(shape.astype(np.int64), (circle, square, triangle))
    return np.clip(0.5 - distance, 0.0, 1.0)


def _rgb(hue: NDArray[np.float64], *, saturation: float, value: float) -> NDArray[np.float32]:
    """Convert hues in turns to RGB (n, 3) in [0, 1], at one saturation and value (HSV)."""
    sector = (np.array([5.0, 3.0, 1.0]) + hue[:, None] * 6.0) % 6.0
    ramp = np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0)
    return (value * (1.0 - saturation * ramp)).astype(np.float32)
