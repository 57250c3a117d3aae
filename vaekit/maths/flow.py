"""Draw latents from a learned prior by integrating its velocity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vaekit.types import Array

Velocity = Callable[[Array, Array], Array]
"""z (N, …) and t (N,) → velocity (N, …)."""


def integrate(velocity: Velocity, noise: Array, steps: int) -> Array:
    """Carry noise (N, …) from t = 0 to t = 1 along the velocity, in float32.

    Each of the ``steps`` steps is one of Heun's method, which computes the velocity twice, but the last one computes it
    once (Euler), because a velocity at t = 1 was hardly learnt.
    """
    z = noise
    for step in range(steps):
        t, after = (np.full(len(z), share / steps, np.float32) for share in (step, step + 1))
        size = np.float32(1 / steps)
        here = velocity(z, t)
        ahead = z + size * here
        z = ahead if step == steps - 1 else z + size / 2 * (here + velocity(ahead, after))
    return np.asarray(z, np.float32)
