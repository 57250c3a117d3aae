"""Paths through the latent space. Latents are float arrays (d,) or (c, h, w); results are float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import UsageError

MODES = ("linear", "slerp")

Latent = NDArray[np.floating[Any]]

_PARALLEL = 1e-6  # radians; closer to 0 or pi than this, two directions count as parallel


def interpolate(a: Latent, b: Latent, steps: int, mode: str = "linear") -> NDArray[np.float32]:
    """Interpolate between two latents of equal shape: float32 (steps, …).

    Both ends are included. ``linear`` follows a straight line. ``slerp`` follows the great circle between the two
    directions and interpolates the length linearly (Shoemake, "Animating rotation with quaternion curves", SIGGRAPH
    1985). In many dimensions a straight line between two Gaussian samples passes closer to the origin than samples
    usually are; slerp avoids this. ``slerp`` falls back to ``linear`` if a latent is zero or the two are parallel.
    Raises UsageError for fewer than two steps or an unknown mode.
    """
    if steps < 2:
        raise UsageError(f"an interpolation includes both ends: it needs 2 steps or more, not {steps}")
    if mode not in MODES:
        raise UsageError(f"there is no interpolation mode {mode!r}: choose one of {', '.join(MODES)}")
    start, end = np.asarray(a, np.float64), np.asarray(b, np.float64)
    shape, start, end = start.shape, start.ravel(), end.ravel()
    t = np.linspace(0.0, 1.0, steps)[:, None]
    path = (1.0 - t) * start + t * end
    angle = _angle(start, end)
    if mode == "slerp" and _PARALLEL < angle < np.pi - _PARALLEL:
        lengths = np.linalg.norm(start), np.linalg.norm(end)
        direction = np.sin((1.0 - t) * angle) * start / lengths[0] + np.sin(t * angle) * end / lengths[1]
        path = ((1.0 - t) * lengths[0] + t * lengths[1]) * direction / np.sin(angle)
    return path.astype(np.float32).reshape(steps, *shape)


def traversal(base: Latent, dimension: int, values: Latent) -> NDArray[np.float32]:
    """Copy a latent (d,) with one dimension set to each value (n,): float32 (n, d)."""
    latents = np.repeat(np.asarray(base, np.float32)[None], len(values), axis=0)
    latents[:, dimension] = values
    return latents


def channel_shift(
    base: Latent, channel: int, offsets: Latent, at: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Copy a latent (c, h, w) with each offset (n,) added to one channel.

    An offset is added at all positions, or only ``at`` a row and column. The result is float32 (n, c, h, w).
    """
    latents = np.repeat(np.asarray(base, np.float32)[None], len(offsets), axis=0)
    row, column = (slice(None), slice(None)) if at is None else (slice(place, place + 1) for place in at)
    latents[:, channel, row, column] += np.asarray(offsets, np.float32)[:, None, None]
    return latents


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the angle between two vectors in radians, 0 if either is zero."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 0.0 if lengths == 0 else float(np.arccos(np.clip(a @ b / lengths, -1.0, 1.0)))
