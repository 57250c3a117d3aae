"""Peak signal-to-noise ratio."""

from __future__ import annotations

import math


def psnr(mean_squared_error: float, peak: float = 1.0) -> float:
    """Compute 10 log10(peak² / MSE) in dB.

    Returns infinity if the error is zero, and −infinity if it is not finite.
    """
    if not math.isfinite(mean_squared_error):
        return -math.inf
    return math.inf if mean_squared_error == 0 else 10 * math.log10(peak**2 / mean_squared_error)
