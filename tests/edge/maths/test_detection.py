"""Curves of scores and pixels, beside their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.maths.detection import PixelCounts, curve_of_scores, half_places

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)

CHANCE = np.random.default_rng(0)

scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


@quick
@given(usual=scores, unusual=scores)
def test_the_area_is_the_share_of_pairs_in_the_right_order(usual: list[float], unusual: list[float]) -> None:
    pairs = [(u < v) + 0.5 * (u == v) for u in usual for v in unusual]
    found = curve_of_scores(np.array(usual), np.array(unusual))
    assert found.auroc == pytest.approx(np.mean(pairs))
    assert 0 < found.average_precision <= 1 + 1e-12
    assert found.area_to(1.0) == pytest.approx(found.auroc)


@quick
@given(usual=scores, unusual=scores)
def test_the_figures_are_those_of_scikit_learn(usual: list[float], unusual: list[float]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, values = [0] * len(usual) + [1] * len(unusual), [*usual, *unusual]
    found = curve_of_scores(np.array(usual), np.array(unusual))
    assert found.auroc == pytest.approx(metrics.roc_auc_score(truth, values))
    assert found.average_precision == pytest.approx(metrics.average_precision_score(truth, values))
    false_alarms, hits, _ = metrics.roc_curve(truth, values, drop_intermediate=False)
    assert found.false_alarms_at_95 == pytest.approx(false_alarms[hits >= 0.95 - 1e-12].min())


def test_false_alarms_are_told_where_95_percent_are_found() -> None:
    unusual = np.arange(100.0)  # 95 of them are 5 or more
    assert curve_of_scores(np.array([4.0, 4.5, 6.0, -1.0]), unusual).false_alarms_at_95 == 0.25
    assert curve_of_scores(np.array([-1.0]), unusual).false_alarms_at_95 == 0


@quick
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30))
def test_places_are_ordered_as_values(values: list[float]) -> None:
    array = np.array(values, np.float32)
    rounded = np.clip(array, -65504, 65504).astype(np.float16)
    order = np.subtract.outer(half_places(array).astype(int), half_places(array).astype(int))
    assert np.array_equal(np.sign(order), np.sign(np.subtract.outer(rounded.astype(float), rounded.astype(float))))


def test_zeros_of_both_signs_have_one_place() -> None:
    assert len(set(half_places(np.array([0.0, -0.0, -1e-30, 1e-30], np.float32)).tolist())) == 1


def test_pixels_are_counted_as_scores_are() -> None:
    pytest.importorskip("scipy")
    maps = CHANCE.normal(size=(5, 30, 20)).astype(np.float16).astype(np.float32)
    masks = CHANCE.random((5, 30, 20)) < 0.1
    maps[masks] += 1
    maps = maps.astype(np.float16).astype(np.float32)
    first, second = PixelCounts(), PixelCounts()
    for number, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        (first if number < 2 else second).add(values, mask)
    second.add(np.zeros((4, 4), np.float32), None)
    exact = maps.astype(np.float64)
    usual = np.append(exact[~masks], np.zeros(16))
    assert (first + second).auroc == pytest.approx(curve_of_scores(usual, exact[masks]).auroc)


def test_every_region_counts_the_same_in_pro() -> None:
    """A large region is found whole and a small one not at all: half of the regions, nearly all of the pixels."""
    pytest.importorskip("scipy")
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = mask[15, 15] = mask[16, 16] = True  # the small one touches itself at a corner
    values = np.zeros((20, 20), np.float32)
    values[:10, :10] = 5
    values[~mask] = CHANCE.random(int((~mask).sum()), np.float32)
    values[15, 15] = values[16, 16] = -1
    counts = PixelCounts()
    counts.add(values, mask)
    assert counts.pro == pytest.approx(0.5)
    assert counts.auroc == pytest.approx(100 / 102)
