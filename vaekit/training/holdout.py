"""Split images into training images and held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError, UsageError
from vaekit.images.dataset import Images
from vaekit.images.factors import Factors
from vaekit.training.binarise import binarise_fixed
from vaekit.training.config import HOLDOUT_IMAGES, Binarize, Config
from vaekit.types import Pixels

STATISTICS_IMAGES = 12_000
"""The variance and the prior of the finished model come from at most this many training images, evenly spaced."""
WHOLE_VALUES = 1 << 24
"""Pixels times channels in all whole held-out pictures that a run keeps, at most."""


@dataclass(frozen=True)
class Split:
    """The images to train on, and the held-out images to measure."""

    images: Images
    """The source of the training images."""
    training: NDArray[np.int64]
    """Numbers of the training images, sorted."""
    measured: Images
    """The source of the held-out images: ``images``, or a separate validation source."""
    holdout: NDArray[np.int64]
    """Numbers of the held-out images in ``measured``, at most HOLDOUT_IMAGES."""

    @property
    def has_own_validation(self) -> bool:
        """Return whether the held-out images come from a separate source."""
        return self.measured is not self.images

    def check(self, config: Config) -> None:
        """Check that the images fit the settings.

        Raises SourceError if their shape differs, and UsageError if the batch size is out of range.
        """
        for source in (self.images, self.measured):
            if source.shape != config.image_shape:
                raise SourceError(
                    f"{source.name} has images of shape {source.shape} (channels, height, width), but "
                    f"{config.image_shape} is needed"
                )
        if not 2 <= config.batch_size <= len(self.training):
            raise UsageError(
                f"the batch size must be from 2 to the number of training images, {len(self.training)}, "
                f"not {config.batch_size}"
            )

    def fingerprint(self) -> str:
        """Return a hash that changes if the images of either source change."""
        validation = f", {self.measured.fingerprint()}" if self.has_own_validation else ""
        return self.images.fingerprint() + validation

    def read_holdout(self, binarize: Binarize) -> NDArray[np.uint8]:
        """Read the held-out images, binarised as for evaluation, uint8 (N, C, H, W)."""
        return read_to_measure(self.measured, self.holdout, binarize)

    def read_whole_pictures(self) -> list[Pixels]:
        """Read the pictures that held-out crops come from, each uint8 (C, h, w); none if images are not crops.

        They are drawn at random, until WHOLE_VALUES is reached.
        """
        if self.measured.pictures is None:
            return []
        owners = np.unique(self.measured.pictures[self.holdout])
        kept: list[Pixels] = []
        for number in np.random.default_rng(0).permutation(owners):
            picture = self.measured.read_picture(int(number))
            if sum(each.size for each in kept) + picture.size > WHOLE_VALUES:
                break
            kept.append(picture)
        return kept

    def holdout_factors(self) -> Factors | None:
        """Return the known factors of the held-out images, if there are any."""
        return None if self.measured.factors is None else self.measured.factors.of(self.holdout)

    def for_statistics(self) -> NDArray[np.int64]:
        """Return the places in ``training`` of at most STATISTICS_IMAGES images, evenly spaced."""
        return np.arange(0, len(self.training), -(-len(self.training) // STATISTICS_IMAGES))


def hold_out(images: Images, seed: int, val: str | None = None, validation: Images | None = None) -> Split:
    """Split a source into training images and held-out images.

    ``val`` is the fraction to hold out. With a ``validation`` source, all of ``images`` are for training, and the
    held-out images come from that source. At most HOLDOUT_IMAGES are held out, evenly spaced. Raises the errors of
    ``split_numbers``.
    """
    if validation is None and images.pictures is not None:
        training, holdout = _split_crops(images.pictures, seed, share_of(val))
    elif validation is None:
        training, holdout = split_numbers(len(images), seed, share_of(val))
    else:
        training, holdout = spread(len(images), None), spread(len(validation), None)
    return Split(images, training, validation or images, holdout[spread(len(holdout), HOLDOUT_IMAGES)])


def _split_crops(
    pictures: NDArray[np.int64], seed: int, share: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split crops, so that all crops of a picture are on the same side; ``pictures`` are their numbers."""
    _, holdout = split_numbers(int(pictures[-1]) + 1, seed, share)
    held_out = np.isin(pictures, holdout)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_numbers(count: int, seed: int, share: float | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the numbers of the training images and held-out images, both sorted.

    ``share`` is the fraction to hold out; by default a tenth, but at most HOLDOUT_IMAGES images. The draw depends only
    on ``count``, ``share`` and the seed. Raises SourceError for fewer than three images, and UsageError for a share
    that leaves no image to hold out or fewer than two to train on.
    """
    if count < 3:
        raise SourceError(f"{count} images are too few to train on: give at least 3, preferably thousands")
    held_out = min(HOLDOUT_IMAGES, max(1, count // 10)) if share is None else round(count * share)
    if not 1 <= held_out <= count - 2:
        raise UsageError(
            f"--val {share:g} of {count:,} images holds out {held_out:,} and leaves {count - held_out:,} to train on: "
            "hold out at least 1, and leave at least 2"
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def share_of(val: str | None) -> float | None:
    """Parse ``--val`` as a fraction of the source.

    Returns None if it names a source or is not given.
    """
    try:
        return None if val is None else float(val)
    except ValueError:
        return None


def spread(count: int, limit: int | None) -> NDArray[np.int64]:
    """Return the numbers of at most ``limit`` of ``count`` images, evenly spaced.

    The first ``limit`` images would not be representative, because sources are often sorted by class.
    """
    chosen = count if limit is None else min(count, limit)
    return np.arange(chosen, dtype=np.int64) * count // chosen


def read_to_measure(images: Images, indices: NDArray[np.int64], binarize: Binarize) -> NDArray[np.uint8]:
    """Read images for evaluation, uint8 (N, C, H, W).

    They are not augmented, and binarised the same way every time.
    """
    pixels = images.read(indices)
    return pixels if binarize == "none" else binarise_fixed(pixels, indices)
