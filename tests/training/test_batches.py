"""The images and noise of each training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vaekit.images.dataset import Images
from vaekit.training.batches import Batches
from vaekit.training.config import Config
from vaekit.training.holdout import split_numbers
from vaekit.training.processes import ProcessGroup
from vaekit.training.run import load_holdout, load_run
from vaekit.training.trainer import Trainer

MakeConfig = Callable[..., Config]


def subset(images: Images, count: int) -> Images:
    return dataclasses.replace(images, _count=count)


def test_every_epoch_has_every_image_once_in_an_order_of_its_own(images: Images, make_config: MakeConfig) -> None:
    training, _ = split_numbers(len(images), 0)
    batches = Batches(images, make_config(batch_size=36), training)
    first, second = (np.concatenate([batches.indices(6 * epoch + step) for step in range(6)]) for epoch in range(2))
    assert np.array_equal(np.sort(first), training)
    assert np.array_equal(np.sort(second), training)
    assert not np.array_equal(first, second)


def test_noise_is_standard_normal_and_new_at_each_step(images: Images, make_config: MakeConfig) -> None:
    training, _ = split_numbers(len(images), 0)
    batches = Batches(images, make_config(latent=8), training)
    drawn = np.stack([batches.noise(step, 4) for step in range(50)])
    assert drawn.shape == (50, 4, 32, 8)
    assert len(np.unique(drawn)) > 0.99 * drawn.size
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02
    assert np.array_equal(batches.noise(7, 4), drawn[7])


def test_each_row_of_a_batch_is_the_same_whoever_reads_it(images: Images, make_config: MakeConfig) -> None:
    training, _ = split_numbers(len(images), 0)
    config = make_config(binarize="dynamic", augment="flip")
    whole = Batches(images, config, training)
    parts = [Batches(images, config, training, ProcessGroup(rank, 4).rows(32)) for rank in range(4)]
    for step in (0, 7, 100):
        assert np.array_equal(np.concatenate([part.pixels(step) for part in parts]), whole.pixels(step))
        noise = np.concatenate([part.noise(step, 3) for part in parts], axis=1)
        assert np.array_equal(noise, whole.noise(step, 3))


def test_half_of_the_images_are_flipped_and_none_that_are_measured(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    plain = Batches(images, make_config(), split_numbers(len(images), 0)[0])
    flipping = Batches(images, make_config(augment="flip"), split_numbers(len(images), 0)[0])
    flips = 0
    for step in range(40):
        for original, augmented in zip(plain.pixels(step), flipping.pixels(step), strict=True):
            flipped = not np.array_equal(augmented, original)
            assert np.array_equal(augmented, original[..., ::-1] if flipped else original)
            flips += flipped
    assert flips == pytest.approx(40 * 32 / 2, rel=0.1)
    Trainer(make_config(augment="flip", steps=2), images, tmp_path / "run").run()
    assert np.array_equal(load_holdout(load_run(tmp_path / "run")), images.read(split_numbers(len(images), 0)[1]))


@pytest.mark.parametrize(("mode", "same"), [("fixed", True), ("dynamic", False)])
def test_fixed_images_stay_and_dynamic_ones_change_from_epoch_to_epoch(
    tmp_path: Path, images: Images, make_config: MakeConfig, mode: str, same: bool
) -> None:
    grey = dataclasses.replace(
        subset(images, 10), _read=lambda indices: np.full((len(indices), 3, 12, 9), 128, np.uint8)
    )
    batches = Trainer(make_config(batch_size=9, binarize=mode), grey, tmp_path / "run").batches
    first, second = ({image.tobytes() for image in batches.pixels(step)} for step in range(2))  # each is an epoch
    assert (first == second) == same
