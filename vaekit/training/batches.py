"""What each step of a training sees: which images, in which form, and with which noise.

All of it is a function of the seed and the step alone, so that a training can go on at any step as if it had never
stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vaekit.images.dataset import Images
from vaekit.training.binarise import binarise_dynamic
from vaekit.training.config import Config
from vaekit.training.holdout import read_to_measure

# Streams of random numbers apart from that of the order of the images, which has no number of its own.
_BINARISE, _NOISE, _FLIP = 1, 2, 3


class Batches:
    """Shuffled batches, each epoch in an order of its own; the rest short of a batch is left out."""

    def __init__(self, images: Images, config: Config, training: NDArray[np.int64], rows: slice = slice(None)) -> None:
        """``training`` are the numbers of the images to train on, at least a batch of them.

        Only those ``rows`` of each batch are read; what is drawn for a row does not depend on which others are.
        """
        self._rows = rows
        self._images, self._config, self._training = images, config, training
        self._shuffled = (-1, training)  # an epoch and its order, replaced together: two threads may ask

    def indices(self, step: int) -> NDArray[np.int64]:
        """Numbers of the images of a step, (B,)."""
        size = self._config.batch_size
        epoch, place = divmod(step, len(self._training) // size)
        known, order = self._shuffled
        if epoch != known:
            order = np.random.default_rng((self._config.seed, epoch)).permutation(self._training)
            self._shuffled = (epoch, order)
        return order[place * size : (place + 1) * size]

    def noise(self, step: int, samples: int) -> NDArray[np.float32]:
        """The noise of a step's rows, (samples, B, d) ~ N(0, I): the same on every device."""
        shape = (samples, self._config.batch_size, self._config.latent)
        random = np.random.default_rng((self._config.seed, step, _NOISE))
        return np.ascontiguousarray(random.standard_normal(shape, np.float32)[:, self._rows])

    def pixels(self, step: int) -> NDArray[np.uint8]:
        """The images of a step's rows, uint8 (B, C, H, W)."""
        indices = self.indices(step)[self._rows]
        if self._config.binarize == "dynamic":
            random = np.random.default_rng((self._config.seed, step, _BINARISE))
            random.random((self._rows.start or 0, *self._config.image_shape))  # of the rows before these
            return self._augmented(step, binarise_dynamic(self._images.read(indices), random))
        return self._augmented(step, read_to_measure(self._images, indices, self._config.binarize))

    def _augmented(self, step: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._config.augment == "none":
            return pixels
        random = np.random.default_rng((self._config.seed, step, _FLIP))
        flipped = random.random(self._config.batch_size)[self._rows] < 0.5
        return np.where(flipped[:, None, None, None], pixels[..., ::-1], pixels)

    def from_step(self, step: int) -> Iterator[NDArray[np.uint8]]:
        """The images of that step, and of each one after it, without end."""
        if self._images.in_memory:
            while True:
                yield self.pixels(step)
                step += 1
        with ThreadPoolExecutor(1) as pool:  # reads the next batch while this one is trained on
            ahead = pool.submit(self.pixels, step)
            while True:
                batch = ahead.result()
                step += 1
                ahead = pool.submit(self.pixels, step)
                yield batch
