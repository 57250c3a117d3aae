"""Which images are trained on and which are held out to measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError, UsageError
from vaekit.images.dataset import Images
from vaekit.training.binarise import binarise_fixed
from vaekit.training.config import HOLDOUT_IMAGES, Binarize, Config

STATISTICS_IMAGES = 12_000
"""At most this many training images, evenly spread, give the frozen variance and the prior."""


@dataclass(frozen=True)
class Split:
    """The images of a training and those that it is measured on."""

    images: Images
    """The source to train on."""
    training: NDArray[np.int64]
    """Numbers of the images to train on, sorted."""
    measured: Images
    """The source of the images to measure: ``images``, or a validation source of its own."""
    holdout: NDArray[np.int64]
    """Numbers of the held-out images, at most HOLDOUT_IMAGES of ``measured``."""

    @property
    def has_own_validation(self) -> bool:
        """Whether the images to measure come from another source."""
        return self.measured is not self.images

    def check(self, config: Config) -> None:
        """Raise SourceError for images of another shape than the settings', UsageError for too large a batch."""
        for source in (self.images, self.measured):
            if source.shape != config.image_shape:
                raise SourceError(
                    f"{source.name} has images of {source.shape} (channels, height, width): {config.image_shape} are "
                    "needed"
                )
        if not 2 <= config.batch_size <= len(self.training):
            raise UsageError(
                f"the batch size must be from 2 to the number of training images, {len(self.training)}, "
                f"not {config.batch_size}"
            )

    def fingerprint(self) -> str:
        """Return a hash that changes with the images of either source."""
        validation = f", {self.measured.fingerprint()}" if self.has_own_validation else ""
        return self.images.fingerprint() + validation

    def read_holdout(self, binarize: Binarize) -> NDArray[np.uint8]:
        """Read the held-out images as they are measured, uint8 (N, C, H, W)."""
        return read_to_measure(self.measured, self.holdout, binarize)

    def holdout_labels(self) -> NDArray[np.int64] | None:
        """Return the class numbers of the held-out images (N,), or None if the source has none."""
        return None if self.measured.labels is None else self.measured.labels[self.holdout]

    def for_statistics(self) -> NDArray[np.int64]:
        """Return numbers of at most STATISTICS_IMAGES training images, evenly spread."""
        return self.training[:: -(-len(self.training) // STATISTICS_IMAGES)]


def hold_out(images: Images, seed: int, val: str | None = None, validation: Images | None = None) -> Split:
    """Split a source into images to train on and images to measure.

    ``val`` is the share to hold out. With a ``validation`` source, that one is measured, and all of ``images`` are
    trained on. At most HOLDOUT_IMAGES are measured, evenly spread. Raises as ``split_numbers`` does.
    """
    if validation is None:
        training, holdout = split_numbers(len(images), seed, share_of(val))
    else:
        training, holdout = spread(len(images), None), spread(len(validation), None)
    return Split(images, training, validation or images, holdout[spread(len(holdout), HOLDOUT_IMAGES)])


def split_numbers(count: int, seed: int, share: float | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw, by the seed, the numbers of the images to train on and of those to hold out, both sorted.

    ``share`` of them are held out; by default a tenth, at most HOLDOUT_IMAGES. Raises SourceError for fewer than three
    images, UsageError for a share that leaves no image to measure or fewer than two to train on.
    """
    if count < 3:
        raise SourceError(f"{count} images are too few to train on: give at least 3, better thousands")
    held_out = min(HOLDOUT_IMAGES, max(1, count // 10)) if share is None else round(count * share)
    if not 1 <= held_out <= count - 2:
        raise UsageError(
            f"--val {share:g} of {count:,} images leaves {held_out:,} to measure and {count - held_out:,} to train on: "
            "there must be at least 1 and 2"
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def share_of(val: str | None) -> float | None:
    """Return the share of the source that ``--val`` asks for; None if it names a source or is not given."""
    try:
        return None if val is None else float(val)
    except ValueError:
        return None


def spread(count: int, limit: int | None) -> NDArray[np.int64]:
    """Return numbers of at most ``limit`` of ``count`` images, evenly spread: sources often come sorted by class."""
    chosen = count if limit is None else min(count, limit)
    return np.arange(chosen, dtype=np.int64) * count // chosen


def read_to_measure(images: Images, indices: NDArray[np.int64], binarize: Binarize) -> NDArray[np.uint8]:
    """Read images as they are measured, uint8 (N, C, H, W): not augmented, and binarised the same way every time."""
    pixels = images.read(indices)
    return pixels if binarize == "none" else binarise_fixed(pixels, indices)
