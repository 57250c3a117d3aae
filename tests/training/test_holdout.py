"""The split into training images and held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaekit.errors import SourceError, UsageError
from vaekit.images.dataset import Images
from vaekit.training.config import HOLDOUT_IMAGES, Config
from vaekit.training.holdout import hold_out, share_of, split_numbers, spread
from vaekit.training.run import HOLDOUT, load_holdout, load_run
from vaekit.training.trainer import Outcome, Trainer

MakeConfig = Callable[..., Config]


def subset(images: Images, count: int) -> Images:
    return dataclasses.replace(images, _count=count)


@given(count=st.integers(3, 30_000), seed=st.integers(0, 2**64 - 1))
def test_training_and_holdout_are_disjoint_and_cover_all(count: int, seed: int) -> None:
    training, holdout = split_numbers(count, seed)
    assert np.array_equal(np.sort(np.concatenate((training, holdout))), np.arange(count))
    assert 1 <= len(holdout) <= HOLDOUT_IMAGES
    assert len(training) >= 2


def test_the_split_follows_the_seed() -> None:
    assert np.array_equal(split_numbers(100, 1)[1], split_numbers(100, 1)[1])
    assert not np.array_equal(split_numbers(100, 1)[1], split_numbers(100, 2)[1])


@given(count=st.integers(3, 5000), share=st.floats(0.0, 1.0))
def test_a_share_is_held_out_or_refused(count: int, share: float) -> None:
    if round(count * share) in (0, count - 1, count):
        with pytest.raises(UsageError, match=r"--val .* leaves"):
            split_numbers(count, 0, share)
        return
    training, holdout = split_numbers(count, 0, share)
    assert np.array_equal(np.sort(np.concatenate((training, holdout))), np.arange(count))
    assert len(holdout) == round(count * share)


def test_of_a_larger_part_some_are_measured(images: Images) -> None:
    many = dataclasses.replace(images, _count=10_000)
    split = hold_out(many, 0, "0.5")
    assert (len(split.training), len(split.holdout)) == (5000, HOLDOUT_IMAGES)
    assert not set(split.training) & set(split.holdout)


def test_the_holdout_is_what_was_not_trained_on(trained: tuple[Path, Outcome], images: Images) -> None:
    run = load_run(trained[0])
    _, holdout = split_numbers(len(images), run.config.seed)
    assert np.array_equal(load_holdout(run), images.read(holdout))


def test_labels_of_held_out_images_are_kept(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    labels = np.arange(len(images)) % 7
    Trainer(make_config(steps=1), dataclasses.replace(images, labels=labels), tmp_path / "run").run()
    with np.load(tmp_path / "run" / HOLDOUT) as arrays:
        assert np.array_equal(arrays["labels"], labels[split_numbers(len(images), 0)[1]])


def test_a_source_of_its_own_is_measured(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    images = dataclasses.replace(images, labels=np.arange(len(images)) % 2, label_names=("cat", "dog"))
    dark = dataclasses.replace(
        subset(images, 20),
        labels=np.arange(20) % 2,
        label_names=("dog", "bird"),
        _read=lambda indices: np.zeros((len(indices), 3, 12, 9), np.uint8),
    )
    split = hold_out(images, 0, "dark.npy", validation=dark)
    assert np.array_equal(split.training, np.arange(len(images)))
    Trainer(make_config(val="dark.npy"), split, tmp_path / "run").run()
    with np.load(tmp_path / "run" / HOLDOUT) as arrays:
        assert arrays["images"].shape == (20, 3, 12, 9)
        assert not arrays["images"].any()
        assert arrays["label_names"].tolist() == ["cat", "dog"]
        assert arrays["labels"].tolist() == [1, -1] * 10  # by name
    grey = dataclasses.replace(dark, shape=(1, 12, 9))
    with pytest.raises(SourceError, match=r"\(1, 12, 9\)"):
        Trainer(make_config(val="grey.npy"), hold_out(images, 0, "grey.npy", grey), tmp_path / "run")


@pytest.mark.parametrize("batch_size", [0, 1, 217, 10_000])
def test_a_batch_that_cannot_be_filled_is_refused(
    tmp_path: Path, images: Images, make_config: MakeConfig, batch_size: int
) -> None:
    with pytest.raises(UsageError, match="from 2 to the number of training images, 216"):
        Trainer(make_config(batch_size=batch_size), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_images_are_refused(
    tmp_path: Path, images: Images, make_config: MakeConfig, count: int
) -> None:
    with pytest.raises(SourceError, match=f"{count} images are too few"):
        Trainer(make_config(batch_size=2), subset(images, count), tmp_path / "run")


def test_images_of_another_shape_than_the_configs_are_refused(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    with pytest.raises(SourceError, match=r"\(3, 12, 9\).*\(1, 12, 9\)"):
        Trainer(make_config(channels=1), images, tmp_path / "run")


@pytest.mark.parametrize(
    ("count", "limit", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (3, 9, [0, 1, 2]), (3, None, [0, 1, 2])]
)
def test_a_limit_takes_images_from_all_over(count: int, limit: int | None, expected: list[int]) -> None:
    assert spread(count, limit).tolist() == expected


@pytest.mark.parametrize(("val", "share"), [(None, None), ("0.25", 0.25), ("1", 1.0), ("test.npy", None), ("a", None)])
def test_val_is_a_share_or_a_source(val: str | None, share: float | None) -> None:
    assert share_of(val) == share


def test_statistics_take_training_images_from_all_over(images: Images) -> None:
    many = hold_out(dataclasses.replace(images, _count=60_000), 0)
    chosen = many.for_statistics()
    assert 6_000 < len(chosen) <= 12_000
    assert (chosen[0], chosen[-1]) == (0, pytest.approx(len(many.training) - 1, abs=20))
    assert len(set(chosen)) == len(chosen)
    few = hold_out(images, 0)
    assert np.array_equal(few.for_statistics(), np.arange(len(few.training)))
