"""Paths through the latent space. Latents are float arrays (d,) or (c, h, w), results float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import UsageError

MODES = ("linear", "slerp")

Latent = NDArray[np.floating[Any]]

_PARALLEL = 1e-6  # radians from 0 or pi within which two directions span no plane


def interpolate(a: Latent, b: Latent, steps: int, mode: str = "linear") -> NDArray[np.float32]:
    """``steps`` latents from a to b, both included: two of shape (d,) or (c, h, w) → float32 (steps, …).

    ``linear`` goes straight; ``slerp`` along the great circle between their directions (Shoemake, "Animating rotation
    with quaternion curves", SIGGRAPH 1985), the length going linearly: a straight line between two samples of a wide
    Gaussian passes closer to the origin than samples lie. Latents without two directions to turn between, at the
    origin or on one line through it, are interpolated linearly. Raises UsageError for fewer than two steps or another
    mode.
    """
    if steps < 2:
        raise UsageError(f"an interpolation includes both its ends: it takes 2 steps or more, not {steps}")
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
    """A latent (d,) with one dimension set to each of the values (n,): float32 (n, d)."""
    latents = np.repeat(np.asarray(base, np.float32)[None], len(values), axis=0)
    latents[:, dimension] = values
    return latents


def channel_shift(base: Latent, channel: int, offsets: Latent) -> NDArray[np.float32]:
    """A latent (c, h, w) with each of the offsets (n,) added to one channel, everywhere: float32 (n, c, h, w)."""
    latents = np.repeat(np.asarray(base, np.float32)[None], len(offsets), axis=0)
    latents[:, channel] += np.asarray(offsets, np.float32)[:, None, None]
    return latents


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Radians between two vectors, 0 where one of them is zero."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 0.0 if lengths == 0 else float(np.arccos(np.clip(a @ b / lengths, -1.0, 1.0)))
