"""Choose the images and noise of each training step.

Both depend only on the seed and the step, so training can resume at any step with the same result.
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

# Numbers of the random streams. The stream that shuffles the images has no number.
_BINARISE, _NOISE, _FLIP, _CROP = 1, 2, 3, 4


class Batches:
    """Shuffled batches of training images.

    Each epoch has its own order. Images that do not fill a last batch are skipped in that epoch.
    """

    def __init__(self, images: Images, config: Config, training: NDArray[np.int64], rows: slice = slice(None)) -> None:
        """Prepare batches of the images whose numbers are ``training``.

        There must be at least one batch of them. Only ``rows`` of each batch are read; the random numbers of a row do
        not depend on this choice.
        """
        self._rows = rows
        self._images, self._config, self._training = images, config, training
        self._shuffled = (-1, training)  # an epoch and its order; one tuple, because two threads may replace it

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the numbers of a step's images, (B,)."""
        size = self._config.batch_size
        epoch, place = divmod(step, len(self._training) // size)
        known, order = self._shuffled
        if epoch != known:
            order = np.random.default_rng((self._config.seed, epoch)).permutation(self._training)
            self._shuffled = (epoch, order)
        return order[place * size : (place + 1) * size]

    def noise(self, step: int, samples: int) -> NDArray[np.float32]:
        """Draw the noise of a step's rows, (samples, B, d) ~ N(0, I).

        It is the same on every device.
        """
        shape = (samples, self._config.batch_size, self._config.latent_numbers)
        random = np.random.default_rng((self._config.seed, step, _NOISE))
        return np.ascontiguousarray(random.standard_normal(shape, np.float32)[:, self._rows])

    def pixels(self, step: int) -> NDArray[np.uint8]:
        """Return the images of a step's rows, uint8 (B, C, H, W)."""
        indices = self.indices(step)[self._rows]
        if self._config.binarize == "dynamic":
            random = np.random.default_rng((self._config.seed, step, _BINARISE))
            random.random((self._rows.start or 0, *self._config.image_shape))  # skip the numbers of earlier rows
            return self._augmented(step, binarise_dynamic(self._read(step, indices), random))
        if self._config.crop:
            return self._augmented(step, self._read(step, indices))
        return self._augmented(step, read_to_measure(self._images, indices, self._config.binarize))

    def _read(self, step: int, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read images, or random crops of them."""
        if not self._config.crop:
            return self._images.read(indices)
        places = np.random.default_rng((self._config.seed, step, _CROP)).random((self._config.batch_size, 2))
        return self._images.read_crops(indices, places[self._rows])

    def _augmented(self, step: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._config.augment == "none":
            return pixels
        random = np.random.default_rng((self._config.seed, step, _FLIP))
        flipped = random.random(self._config.batch_size)[self._rows] < 0.5
        return np.where(flipped[:, None, None, None], pixels[..., ::-1], pixels)

    def from_step(self, step: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images of that step and of all following steps, endlessly."""
        if self._images.in_memory:
            while True:
                yield self.pixels(step)
                step += 1
        with ThreadPoolExecutor(1) as pool:  # reads the next batch while the current one is used
            ahead = pool.submit(self.pixels, step)
            while True:
                batch = ahead.result()
                step += 1
                ahead = pool.submit(self.pixels, step)
                yield batch
