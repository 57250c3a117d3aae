"""How far around a part of an image a model looks: large images can be computed in tiles that overlap by as much.

A network's result is NaN wherever it depends on an input that is NaN. So one cell of NaN, a square of pixels by whose
side the model's sizes grow, shows in one run where results depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import ExportError
from vaekit.types import Array
from vaekit_export.effort import Effort
from vaekit_export.model import Model
from vaekit_export.parity import torch_runner

_SIDES = (9, 17, 33, 65)  # cells; the first that is large enough counts


def context_of(model: Model, effort: Effort) -> int | None:
    """Return how many pixels around a part of an image its latent depends on, and its latent's image on the latent.

    The larger number counts. It is a multiple of ``multiple_of``. Returns None if a result depends on the whole input,
    or on more than can be tried, and for a model whose sizes are fixed.
    """
    cell = model.multiple_of
    if cell is None:
        return None
    channels, height, width = model.image_shape
    latents = cell * model.latent_shape[1] // height  # in a cell, along each side
    encode, decode = torch_runner(model.encoder, "encoder"), torch_runner(model.decoder, "decoder")
    # Of costly models, only sizes that were paid for already are tried.
    most = _SIDES[-1] if effort.rows is None else min(height, width) // cell
    sides = [side for side in _SIDES if side <= most] or [most]
    encoded = _reach(lambda rows: encode(rows)[0], channels, cell, latents, sides)
    if encoded is None:
        return None
    decoded = _reach(lambda rows: decode(rows)[0], model.latent_shape[0], latents, cell, sides)
    return None if decoded is None else cell * max(encoded, decoded)


def _reach(run: Callable[[Array], Array], channels: int, before: int, after: int, sides: list[int]) -> int | None:
    """Return how many cells away a result depends on its input, or None if that is not fewer than can be tried.

    A cell has ``before`` positions of the input along each side, and ``after`` of the result.
    """
    for side in sides:
        middle = side // 2
        rows = np.zeros((1, channels, side * before, side * before), np.float32)
        rows[:, :, middle * before : (middle + 1) * before, middle * before : (middle + 1) * before] = np.nan
        try:
            touched = np.argwhere(np.isnan(run(rows)))[:, 2:]  # rows and columns
        except ExportError:  # the module refuses this size, or NaN
            return None
        reach = _distance(touched, middle, after)
        if reach < middle:
            return reach
    return None


def _distance(places: NDArray[np.int64], middle: int, after: int) -> int:
    """Return the largest distance in cells, along an axis, of positions from the middle cell; 0 without any."""
    return int(np.abs(places // after - middle).max(initial=0))
