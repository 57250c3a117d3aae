from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.errors import UsageError
from vaekit.maths import noise

SEED = 2**63 + 12345

# The words of samples: for seed 0 from sample 0, for SEED from sample 5.
WORDS_OF_ZERO = [
    [0x02F4BA6408E4D89B, 0x3DD62B0B9CA8C5B2, 0x1C8667A55D902E79, 0x907D7A052FD5B4DC],
    [0x809BF322883987C3, 0x471128B9E807F7DD, 0xF250BA0DBEC065B7, 0xFC6ED66767A457BC],
]
WORDS_OF_SEED = [
    [
        *(0xB927232BDC5AC4CA, 0x69D5FADB64844B8D, 0x6E6512EE4F4BC24C, 0x5A7C8C1964BF9978),
        *(0x2483DDAD1DFC8AED, 0xD5C959E5B4370E46, 0xC20A430A890E7C48, 0x4A357756EB2591E1),
    ],
    [
        *(0xBBC88DC9705C6652, 0x1F3B86087C424146, 0x0E037E0D5E0B4629, 0xE315B6C4EE1F8C7F),
        *(0x8FA01DE5B89D5420, 0x0EE80D261AF32D04, 0xC220FA35D89D5CB6, 0xFB5C1EE280083DB0),
    ],
]

# (seed, start, normals in hexadecimal, one row a sample)
NORMALS = [
    (
        0,
        0,
        [
            ["0x1.090ce51d2ec31p-7", "0x1.37b081e6b73ecp-3", "-0x1.c9887ed875b16p-2"],
            ["0x1.09336b37bdf9ep-2", "0x1.70adeddae0e63p-1", "0x1.120c5fa42c127p+0"],
            ["0x1.8e934d0dc3de4p-2", "0x1.6b748e7edb962p-1", "-0x1.1af1afd58815bp+1"],
        ],
    ),
    (
        SEED,
        5,
        [
            ["-0x1.5f1c64afd2313p+0", "0x1.a8c00d3f5ef0ep-1", "-0x1.49342ccac0688p-1", "0x1.b0fa3648df279p-1"],
            ["0x1.2be451a9e6d59p+0", "0x1.20cd2726bff26p+0", "0x1.04a4e842309bdp-2", "-0x1.bfc6ef36bb5c1p-3"],
        ],
    ),
    (0, 1_000_000, [["-0x1.d3f120b677a19p-1"], ["-0x1.51d1ffc035d73p-2"]]),
]

seeds = st.integers(0, 2**64 - 1)
starts = st.integers(0, 10**12)
dimensions_of = st.integers(1, 9)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def philox(counter: int, key: int) -> list[int]:
    """Compute the four words of one counter value of Philox-4x64-10 (Salmon et al., 2011)."""
    mask = 2**64 - 1
    c = [counter >> 64 * place & mask for place in range(4)]
    k = [key & mask, key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [second >> 64 ^ c[1] ^ k[0], second & mask, first >> 64 ^ c[3] ^ k[1], first & mask]
        k = [k[0] + 0x9E3779B97F4A7C15 & mask, k[1] + 0xBB67AE8584CAA73B & mask]
    return c


def stream(seed: int, start: int, count: int, width: int) -> Iterator[list[int]]:
    """Return the samples' words as vaekit defines them.

    The counter increases before each four words, so the first block uses counter 1.
    """
    for sample in range(start, start + count):
        first = sample * (width // 4)
        yield [word for block in range(width // 4) for word in philox(first + block + 1, seed)]


def test_the_reference_gives_the_known_answer_of_its_authors() -> None:
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox(0, 0) == known


def test_words_are_the_committed_ones() -> None:
    assert noise.words(0, 0, 2, 4).tolist() == WORDS_OF_ZERO
    assert noise.words(SEED, 5, 2, 8).tolist() == WORDS_OF_SEED


@pytest.mark.parametrize(("seed", "start", "rows"), NORMALS)
def test_normals_are_the_committed_ones(seed: int, start: int, rows: list[list[str]]) -> None:
    drawn = noise.standard_normal(seed, start, len(rows), len(rows[0]))
    assert drawn.dtype == np.float64
    assert [[value.hex() for value in row] for row in drawn.tolist()] == rows


@quick
@given(seeds, st.integers(0, 2**70), st.integers(1, 3), st.integers(1, 3))
def test_words_are_those_of_an_independent_philox(seed: int, start: int, count: int, blocks: int) -> None:
    assert noise.words(seed, start, count, 4 * blocks).tolist() == list(stream(seed, start, count, 4 * blocks))


@quick
@given(seeds, starts, st.integers(1, 40), dimensions_of, st.data())
def test_a_sample_does_not_depend_on_those_drawn_with_it(
    seed: int, start: int, count: int, dimensions: int, data: st.DataObject
) -> None:
    together = noise.standard_normal(seed, start, count, dimensions)
    k = data.draw(st.integers(0, count - 1))
    alone = noise.standard_normal(seed, start + k, 1, dimensions)
    assert alone.tobytes() == together[k : k + 1].tobytes()


@quick
@given(st.integers(0, 10_000))
def test_a_block_is_whole_counts_with_a_word_to_spare(dimensions: int) -> None:
    size = noise.block_words(dimensions)
    assert size % 4 == 0
    assert dimensions + dimensions % 2 < size <= dimensions + 5


@quick
@given(seeds, dimensions_of)
def test_the_last_word_feeds_no_normal_and_every_word_before_the_spare_ones_does(seed: int, dimensions: int) -> None:
    raw = noise.words(seed, 0, 1, noise.block_words(dimensions))
    before = noise.normals(raw, dimensions)
    for word in range(raw.shape[1]):
        changed = raw.copy()
        changed[0, word] ^= np.uint64(2**63)
        used = word < dimensions + dimensions % 2
        assert (noise.normals(changed, dimensions).tobytes() != before.tobytes()) == used


@quick
@given(seeds, starts)
def test_normals_are_box_and_mullers(seed: int, start: int) -> None:
    raw = noise.words(seed, start, 1, 4)
    u, v = (word / 2**53 for word in (raw[0, :2] >> np.uint64(11)).tolist())
    radius = math.sqrt(-2 * math.log(1 - u))
    expected = radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)
    assert noise.normals(raw, 2)[0] == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_uniforms_reach_from_zero_to_just_below_one() -> None:
    raw = np.array([0, 2**11 - 1, 2**63, 2**64 - 1], np.uint64)
    assert noise.uniforms(raw).tolist() == [0.0, 0.0, 0.5, 1.0 - 2.0**-53]


def test_the_ends_of_the_uniforms_give_finite_normals() -> None:
    raw = np.array([[2**64 - 1, 2**64 - 1], [0, 0]], np.uint64)
    drawn = noise.normals(raw, 2)
    assert np.isfinite(drawn).all()
    assert np.hypot(*drawn[0]) == pytest.approx(math.sqrt(2 * 53 * math.log(2)))
    assert drawn[1].tolist() == [0.0, 0.0]


@quick
@given(st.floats(2.0**-53, 1.0, allow_subnormal=False))
def test_the_logarithm_is_within_few_ulps(x: float) -> None:
    (found,) = noise._log(np.array([x])).tolist()
    assert abs(found - math.log(x)) <= 4 * math.ulp(math.log(x))


@quick
@given(st.integers(0, 2**53 - 1))
def test_cosine_and_sine_are_within_few_ulps(numerator: int) -> None:
    turns = numerator / 2**53
    cosine, sine = (part.item() for part in noise._cos_sin_turns(np.array([turns])))
    quarters = round(turns * 4)
    angle = (turns * 4 - quarters) * math.pi / 2  # the difference is exact
    c, s = math.cos(angle), math.sin(angle)
    expected = ((c, s), (-s, c), (-c, -s), (s, -c))[quarters % 4]
    for found, wanted in zip((cosine, sine), expected, strict=True):
        assert abs(found - wanted) <= 4 * math.ulp(wanted)


def test_moments_and_distribution_are_those_of_a_standard_normal() -> None:
    drawn = noise.standard_normal(3, 0, 20_000, 3)
    assert drawn.mean(axis=0) == pytest.approx(0, abs=0.03)
    assert np.cov(drawn.T) == pytest.approx(np.eye(3), abs=0.04)
    assert (drawn**3).mean() == pytest.approx(0, abs=0.06)
    assert (drawn**4).mean() == pytest.approx(3, abs=0.15)
    ordered = np.sort(drawn.ravel())
    cumulated = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in ordered.tolist()])
    distance = np.abs(cumulated - (np.arange(len(ordered)) + 0.5) / len(ordered)).max()
    assert distance < 1.63 / math.sqrt(len(ordered))  # the Kolmogorov-Smirnov test's 1 % level


def test_seeds_differ() -> None:
    assert not np.array_equal(noise.standard_normal(0, 0, 4, 4), noise.standard_normal(1, 0, 4, 4))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        noise.words(seed, 0, 1, 4)


def test_the_largest_seed_is_in_range() -> None:
    assert noise.words(2**64 - 1, 0, 1, 4).tolist() == list(stream(2**64 - 1, 0, 1, 4))
