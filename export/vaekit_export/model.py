"""A model to export: an encoder, a decoder, and what the bundle says about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vaekit.bundle.manifest import IMAGE_AXES, LATENT_AXES, ImageSpec, Scaling
from vaekit.images.factors import Factors
from vaekit.images.picture import preprocessing_rule
from vaekit.maths.elbo import Likelihood
from vaekit.maths.prior import Mixture, draw_mixture, draw_normal
from vaekit.training.config import as_settings
from vaekit.training.flow import Flow
from vaekit.training.prior import load_flow
from vaekit.training.run import Run, load_holdout, load_holdout_factors, load_holdout_labels, load_whole_pictures
from vaekit.types import Array, Pixels, PosteriorName
from vaekit_export.onnx_export import BATCH_AXIS, Axes

_FEWEST_ROWS = 8
_PIXELS = 1 << 22  # values in all images of one comparison

Say = Callable[[str], None]
"""Reports progress to the user, one line at a time."""
Progress = Callable[[int, int | None], object]
"""Called with the rows of the parity check that are done, and their total, which is None until it is known."""


def no_progress(done: int, total: int | None) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Model:
    """An encoder, a decoder and the other contents of a bundle."""

    encoder: nn.Module
    """image (B, C, H, W) in [0, 1] → mu and logvar, or mu alone if the posterior is ``deterministic``."""
    decoder: nn.Module
    """z → image (B, C, H, W) in [0, 1]."""
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, ...]
    """(d,) or (c, h, w)."""
    multiple_of: int | None
    """If height and width are free, they must be multiples of this; None if they are fixed."""
    posterior: PosteriorName
    likelihood: Likelihood
    scaling: Scaling | None
    mixture: Mixture | None
    images: Array
    """Held-out images (N, C, H, W) in [0, 1], for parity, statistics, scores and golden vectors."""
    provenance: dict[str, Any]
    """The manifest's provenance, without the versions of the tools."""
    wholes: tuple[Pixels, ...] | None = None
    """Held-out pictures at their own sizes, each uint8 (C, h, w), if the images are crops; else None."""
    context: int | None = None
    """The manifest's ``image.context``."""
    flow: Flow | None = None
    """The learned prior."""
    labels: tuple[str, ...] = ()
    """Names of the classes that the priors know."""
    classes: tuple[tuple[str, ...], NDArray[np.int64]] | None = None
    """Names of the held-out images' classes, and each image's number among them, or -1, (N,)."""
    factors: Factors | None = None
    """The held-out images' known factors."""

    @property
    def image_spec(self) -> ImageSpec:
        """Return the manifest's description of the images."""
        return ImageSpec(
            *self.image_shape,
            preprocessing_rule(*self.image_shape, self.multiple_of),
            self.multiple_of,
            self.context,
        )

    @property
    def encoder_outputs(self) -> tuple[str, ...]:
        """Return ``mu``, and ``logvar`` unless the encoder is deterministic."""
        return ("mu",) if self.posterior == "deterministic" else ("mu", "logvar")

    @property
    def image_axes(self) -> Axes:
        """Return the names of the free axes of a batch of images."""
        return BATCH_AXIS if self.multiple_of is None else {**BATCH_AXIS, **dict(enumerate(IMAGE_AXES, 2))}

    @property
    def latent_axes(self) -> Axes:
        """Return the names of the free axes of a batch of latents."""
        return BATCH_AXIS if self.multiple_of is None else {**BATCH_AXIS, **dict(enumerate(LATENT_AXES, 2))}

    def draw_latents(self, count: int, mixture: Mixture | None) -> Array:
        """Draw latents (count, …) from the mixture, or from N(0, I) if it is None."""
        if mixture is not None:
            return draw_mixture(mixture, count)
        return draw_normal(math.prod(self.latent_shape), count).reshape(count, *self.latent_shape)


def model_of_run(run: Run) -> Model:
    """Return the model of a run, with its held-out images.

    Raises RunError if the images cannot be read.
    """
    settings = as_settings(run.config)
    settings["source"] = Path(run.config.source).resolve().name  # a bundle must not contain paths of this machine
    settings |= {name: Path(settings[name]).resolve().name for name in ("val", "init") if settings.get(name)}
    learned = load_flow(run)
    mixture, labels = run.mixture, run.labels
    if learned is not None:
        labels = learned[0].labels
        if learned[0].mixture is not None:
            mixture = learned[0].mixture
        elif mixture is not None and labels != run.labels:  # its numbers are those of other labels
            mixture = dataclasses.replace(mixture, labels=None)
    return Model(
        encoder=run.network.encoder,
        decoder=run.network.decoder,
        image_shape=run.config.image_shape,
        latent_shape=run.config.latent_shape,
        multiple_of=run.config.downscale,
        posterior=run.config.posterior,
        likelihood=Likelihood(run.config.likelihood, None if run.variance is None else run.variance**0.5),
        scaling=None,
        mixture=mixture,
        labels=labels,
        classes=load_holdout_labels(run),
        factors=load_holdout_factors(run),
        images=load_holdout(run).astype(np.float32) / np.float32(255),
        wholes=load_whole_pictures(run) if run.config.crop else None,
        flow=None if learned is None else learned[0],
        provenance={"dataset": settings["source"], "settings": settings, "training": run.summary}
        | ({} if learned is None else {"prior": learned[1]}),
    )


def rows_of_images(image_shape: tuple[int, int, int], most: int) -> int:
    """Return how many images of a shape to compare.

    This is ``most``, or fewer for large images, but at least 8 unless ``most`` is less.
    """
    return min(most, max(_FEWEST_ROWS, _PIXELS // math.prod(image_shape)))
