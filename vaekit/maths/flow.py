"""Draw latents from a learned prior by integrating its velocity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vaekit.types import Array

Velocity = Callable[[Array, Array], Array]
"""z (N, …) and t (N,) → velocity (N, …)."""


def integrate(velocity: Velocity, noise: Array, steps: int) -> Array:
    """Carry noise (N, …) from t = 0 to t = 1 along the velocity, in float32.

    Each of the ``steps`` steps is one of Heun's method, which computes the velocity twice.
    """
    z, size = noise, np.float32(1 / steps)
    for step in range(steps):
        t, after = (np.full(len(z), share / steps, np.float32) for share in (step, step + 1))
        here = velocity(z, t)
        z = z + size / 2 * (here + velocity(z + size * here, after))
    return np.asarray(z, np.float32)


def guided(given: Array, free: Array, guidance: float) -> Array:
    """Return the velocity with guidance, from the velocity given a label and that without one.

    It is free + guidance · (given - free): 1 gives the velocity of the label, and more leads further away from other
    labels (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, equation 6 with guidance = 1 + w).
    """
    return np.asarray(free + np.float32(guidance) * (given - free), np.float32)


def one_hot(numbers: NDArray[np.int64], labels: int) -> Array:
    """Return labels as a velocity takes them, float32 (N, labels + 1): 1 in the column of the number, else 0.

    The last column is that of -1, no label.
    """
    return np.eye(labels + 1, dtype=np.float32)[numbers]
