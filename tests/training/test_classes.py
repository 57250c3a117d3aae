"""The classes that a run learns from the labels of its images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vaekit.images.dataset import Images, open_source
from vaekit.training.classes import classes_of
from vaekit.training.holdout import hold_out


@pytest.fixture
def images(tmp_path: Path) -> Images:
    np.save(tmp_path / "images.npy", np.zeros((100, 8, 8), np.uint8))
    return open_source(str(tmp_path / "images.npy"))


def labelled(images: Images, classes: NDArray[np.int64], *names: str) -> Images:
    return dataclasses.replace(images, labels=classes, label_names=names)


def test_images_without_labels_or_with_one_class_have_none(images: Images) -> None:
    assert classes_of(hold_out(images, 0)) is None
    assert classes_of(hold_out(labelled(images, np.zeros(100, np.int64), "all"), 0)) is None


def test_numbers_follow_the_order_of_the_source_and_fit_the_images(images: Images) -> None:
    labels = np.arange(100) % 3
    split = hold_out(labelled(images, labels, "red", "green", "blue"), 0)
    classes = classes_of(split)
    assert classes is not None
    assert classes.names == ("red", "green", "blue")
    assert np.array_equal(classes.of_training, labels[split.training])
    assert np.array_equal(classes.of_holdout, labels[split.holdout])
    assert classes.too_small == ()


def test_classes_known_by_number_are_named_by_it(images: Images) -> None:
    classes = classes_of(hold_out(labelled(images, np.where(np.arange(100) < 50, 7, -2)), 0))
    assert classes is not None
    assert classes.names == ("-2", "7")


def test_classes_of_few_images_and_images_without_a_class_have_no_number(images: Images) -> None:
    labels = np.arange(100) % 2
    labels[:6], labels[6:20] = 2, -1
    split = hold_out(labelled(images, labels, "cat", "dog", "bird"), 0)
    classes = classes_of(split)
    assert classes is not None
    assert classes.names == ("cat", "dog")
    assert classes.too_small == ("bird",)
    none = (labels[split.training] == 2) | (labels[split.training] == -1)
    assert np.array_equal(classes.of_training == -1, none)
    assert none.any()


def test_other_held_out_images_are_matched_by_name(images: Images) -> None:
    other = labelled(images, np.arange(100) % 3, "dog", "horse", "cat")
    classes = classes_of(hold_out(labelled(images, np.arange(100) % 2, "cat", "dog"), 0, "other", other))
    assert classes is not None
    assert np.array_equal(classes.of_holdout, np.array([1, -1, 0])[np.arange(100) % 3])
    bare = classes_of(hold_out(labelled(images, np.arange(100) % 2, "cat", "dog"), 0, "other", images))
    assert bare is not None
    assert (bare.of_holdout == -1).all()
