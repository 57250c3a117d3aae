"""Known factors of images: numbers that say how an image was made, such as a size or a hue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Factors:
    """F factors of N images."""

    names: tuple[str, ...]
    periods: tuple[float, ...]
    """What is added to a factor until the image is the same again, such as 1 for a hue in turns; 0 if never."""
    values: NDArray[np.float64]
    """(N, F). NaN where an image does not have a factor."""

    def of(self, numbers: NDArray[np.int64]) -> Factors:
        """Return the factors of chosen images."""
        return Factors(self.names, self.periods, self.values[numbers])
