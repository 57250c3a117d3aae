"""Binarise grey images, as in the literature's results on binary MNIST.

A pixel becomes 1 with a probability equal to its grey value. ``fixed`` draws each pixel once, which gives one binary
data set (Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008). ``dynamic`` draws
again each time an image is used (Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vaekit.maths import noise

_FIXED_SEED = int.from_bytes(b"binarise")  # constant, so that the data set does not depend on any --seed


def binarise_fixed(pixels: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Binarise images (N, C, H, W) to 0 or 255, always in the same way.

    The result depends only on an image's pixels and its number in the source.
    """
    width = 4 * -(-math.prod(pixels.shape[1:]) // 4)  # noise.words needs a multiple of four
    drawn = np.empty_like(pixels)
    for row, index in enumerate(indices):
        uniforms = noise.uniforms(noise.words(_FIXED_SEED, int(index), 1, width))
        drawn[row] = _binarise(pixels[row], uniforms[0, : pixels[row].size].reshape(pixels[row].shape))
    return drawn


def binarise_dynamic(pixels: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Binarise images (N, C, H, W) to 0 or 255 with draws from the generator."""
    return _binarise(pixels, generator.random(pixels.shape))


def _binarise(pixels: NDArray[np.uint8], uniforms: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return 255 where a uniform in [0, 1) is below pixel / 255, else 0.

    Black and white pixels do not change.
    """
    return np.where(uniforms * 255.0 < pixels, np.uint8(255), np.uint8(0))
