"""Noise that is the same everywhere: one Philox-4x64 stream per seed, one block of its counter per sample.

Sample ``k`` of a seed owns ``block_words(d)`` consecutive 64-bit words of the stream, whatever the batch it is drawn
in. Words become 53-bit uniforms, and pairs of uniforms become pairs of normals by Box and Muller's transform (1958,
"A note on the generation of random normal deviates"). The last word of a block is kept for choosing a mixture
component and never feeds a normal.

The logarithm, sine and cosine are written out in IEEE-754 additions, multiplications, divisions and square roots,
each of which is exactly rounded: every NumPy version, processor and JavaScript engine gives the same bits. (The
libraries' own ``log`` and ``cos`` differ in the last place between builds, and between vector lanes and their tail.)

Philox: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import UsageError

_WORDS_PER_COUNT = 4  # Philox-4x64 yields four words each time its counter is raised
_LN2 = math.log(2.0)
_SQRT_HALF = math.sqrt(0.5)
_HALF_PI = math.pi / 2
_LOG_TERMS = 12  # |s| <= 0.172: the first term left out is below 2e-19
_TRIG_TERMS = 9  # |a| <= pi/4: the first term left out is below 2e-18


def block_words(dimensions: int) -> int:
    """Words of the stream that one sample of ``dimensions`` normals owns: a multiple of four."""
    needed = 2 * -(-dimensions // 2) + 1
    return _WORDS_PER_COUNT * -(-needed // _WORDS_PER_COUNT)


def words(seed: int, start: int, count: int, width: int) -> NDArray[np.uint64]:
    """Raw words of samples ``start`` to ``start + count - 1``, shape (count, width), dtype uint64.

    ``width`` is a multiple of four. Raises UsageError for a seed outside 0 … 2**64 - 1.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed {seed} is out of range: choose one from 0 to 2**64 - 1")
    stream = np.random.Philox(key=seed, counter=start * (width // _WORDS_PER_COUNT))
    return stream.random_raw(count * width).reshape(count, width)


def uniforms(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    """53-bit uniforms in [0, 1), float64, of the same shape: the upper 53 bits of each word."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(raw: NDArray[np.uint64], dimensions: int) -> NDArray[np.float64]:
    """Standard normals, shape (n, dimensions), float64, from the words of n blocks.

    Words 2i and 2i + 1 give normals 2i and 2i + 1: with u, v their uniforms and r = sqrt(-2 ln(1 - u)), these are
    r cos(2 pi v) and r sin(2 pi v).
    """
    pairs = -(-dimensions // 2)
    u = uniforms(raw[:, : 2 * pairs])
    radius = np.sqrt(-2.0 * _log(1.0 - u[:, 0::2]))
    cosine, sine = _cos_sin_turns(u[:, 1::2])
    out = np.stack((radius * cosine, radius * sine), axis=2)
    return out.reshape(len(raw), 2 * pairs)[:, :dimensions]


def standard_normal(seed: int, start: int, count: int, dimensions: int) -> NDArray[np.float64]:
    """Normals of samples ``start`` to ``start + count - 1`` of a seed, shape (count, dimensions), float64."""
    return normals(words(seed, start, count, block_words(dimensions)), dimensions)


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x for x > 0, from ln m = 2 artanh((m - 1) / (m + 1)) with m in [sqrt(1/2), sqrt(2))."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    power = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / (2 * _LOG_TERMS - 1))
    for term in range(_LOG_TERMS - 1, 0, -1):
        series = series * square + 1.0 / (2 * term - 1)
    return power * _LN2 + 2.0 * s * series


def _cos_sin_turns(turns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of 2 pi t for t in [0, 1): Taylor's series within an eighth of a turn of a quadrant."""
    quarters = np.floor(turns * 4.0 + 0.5)
    angle = (turns * 4.0 - quarters) * _HALF_PI
    square = angle * angle
    cosine, sine = np.ones_like(angle), np.ones_like(angle)
    for term in range(_TRIG_TERMS, 0, -1):
        cosine = 1.0 - square / ((2 * term - 1) * (2 * term)) * cosine
        sine = 1.0 - square / ((2 * term) * (2 * term + 1)) * sine
    sine = angle * sine
    quadrant = quarters.astype(np.int64) % 4
    rotated_cosine = np.choose(quadrant, (cosine, -sine, -cosine, sine))
    rotated_sine = np.choose(quadrant, (sine, cosine, -sine, -cosine))
    return rotated_cosine, rotated_sine
