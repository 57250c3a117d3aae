"""Noise with the same bits on every machine: one Philox-4x64 stream per seed, one block per sample.

Sample ``k`` of a seed uses ``block_words(d)`` consecutive 64-bit words of the stream, whatever batch it is drawn in.
Words become 53-bit uniforms, and pairs of uniforms become pairs of normals by Box and Muller's transform (1958, "A note
on the generation of random normal deviates"). The last word of a block is reserved for choosing a mixture component and
is never used for a normal.

The logarithm, sine and cosine use only IEEE-754 additions, multiplications, divisions and square roots. These are
exactly rounded, so every NumPy version, processor and JavaScript engine computes the same bits. (NumPy's own ``log``
and ``cos`` differ in the last place between builds, and between vectorised elements and the remainder of an array.)

Philox: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import UsageError

_WORDS_PER_COUNT = 4  # Philox-4x64 produces four words for each value of its counter
_LN2 = math.log(2.0)
_SQRT_HALF = math.sqrt(0.5)
_HALF_PI = math.pi / 2
_LOG_TERMS = 12  # |s| <= 0.172: the first omitted term is below 2e-19
_TRIG_TERMS = 9  # |a| <= pi/4: the first omitted term is below 2e-18


def block_words(dimensions: int) -> int:
    """Return the number of 64-bit words that one sample uses.

    A sample is ``dimensions`` normals. The number is a multiple of four.
    """
    needed = 2 * -(-dimensions // 2) + 1
    return _WORDS_PER_COUNT * -(-needed // _WORDS_PER_COUNT)


def words(seed: int, start: int, count: int, width: int) -> NDArray[np.uint64]:
    """Return the raw words of consecutive samples, uint64 (count, width).

    These are samples ``start`` to ``start + count - 1``. ``width`` must be a multiple of four. Raises UsageError for a
    seed outside 0 … 2**64 - 1.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed {seed} is out of range: choose one from 0 to 2**64 - 1")
    stream = np.random.Philox(key=seed, counter=start * (width // _WORDS_PER_COUNT))
    return stream.random_raw(count * width).reshape(count, width)


def uniforms(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Convert words to uniforms in [0, 1), float64, from their upper 53 bits."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(raw: NDArray[np.uint64], dimensions: int) -> NDArray[np.float64]:
    """Convert the words of n blocks to standard normals, float64 (n, dimensions).

    Words 2i and 2i + 1 become the uniforms u and v. With r = sqrt(-2 ln(1 - u)), normals 2i and 2i + 1 are
    r cos(2 pi v) and r sin(2 pi v).
    """
    pairs = -(-dimensions // 2)
    u = uniforms(raw[:, : 2 * pairs])
    radius = np.sqrt(-2.0 * _log(1.0 - u[:, 0::2]))
    cosine, sine = _cos_sin_turns(u[:, 1::2])
    out = np.stack((radius * cosine, radius * sine), axis=2)
    return out.reshape(len(raw), 2 * pairs)[:, :dimensions]


def standard_normal(seed: int, start: int, count: int, dimensions: int) -> NDArray[np.float64]:
    """Draw standard normals for consecutive samples of a seed, float64 (count, dimensions).

    These are samples ``start`` to ``start + count - 1``.
    """
    return normals(words(seed, start, count, block_words(dimensions)), dimensions)


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute ln x for x > 0.

    With x = 2^k m and m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)).
    """
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
    """Compute cosine and sine of 2 pi t for t in [0, 1).

    Taylor series around the nearest quarter turn, at most an eighth of a turn away.
    """
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
