"""Binary images from grey ones, as the tables in the literature on binary MNIST have them.

A pixel becomes 1 with its grey value as probability. ``fixed`` draws once and for all, so that there is one binary
data set (Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008); ``dynamic`` draws
anew each time an image is seen (Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vaekit.maths import noise

_FIXED_SEED = int.from_bytes(b"binarise")  # the data set is the same whatever seed a training or evaluation has


def binarise_fixed(pixels: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One draw for each image (N, C, H, W), 0 or 255: it follows from the image and its number in the source alone."""
    width = 4 * -(-math.prod(pixels.shape[1:]) // 4)  # noise yields whole counts of four words
    drawn = np.empty_like(pixels)
    for row, index in enumerate(indices):
        uniforms = noise.uniforms(noise.words(_FIXED_SEED, int(index), 1, width))
        drawn[row] = _binarise(pixels[row], uniforms[0, : pixels[row].size].reshape(pixels[row].shape))
    return drawn


def binarise_dynamic(pixels: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """One draw for each image (N, C, H, W), 0 or 255, from the generator."""
    return _binarise(pixels, generator.random(pixels.shape))


def _binarise(pixels: NDArray[np.uint8], uniforms: NDArray[np.float64]) -> NDArray[np.uint8]:
    """255 where a uniform in [0, 1) lies below pixel / 255, else 0: black and white pixels stay as they are."""
    return np.where(uniforms * 255.0 < pixels, np.uint8(255), np.uint8(0))
