"""A VAE from any library for ``export_vae``: two modules and their description."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from vaekit.bundle.manifest import Scaling
from vaekit.errors import UsageError
from vaekit.maths.elbo import Likelihood
from vaekit.maths.numbers import as_integer, is_number
from vaekit.types import LikelihoodName


@dataclass(frozen=True)
class VAEDescription:
    """The properties of a VAE that its modules do not state.

    Raises UsageError for impossible values.
    """

    image_shape: tuple[int, int, int]
    """Shape of one image, (C, H, W), where C is 1 or 3. Lists and NumPy's integers are accepted too, here and below."""
    latent_shape: tuple[int, ...]
    """Shape of one latent: (d,), or (c, h, w) for a map; d alone means (d,)."""
    pixel_range: tuple[float, float] = (0.0, 1.0)
    """The modules' values of black and white, such as (-1, 1). The bundle's images are in [0, 1]; the conversions
    become part of the graphs."""
    likelihood: LikelihoodName = "none"
    """p(x|z): ``gaussian``, ``laplace``, ``bernoulli``, or ``none`` if it is not known; then images have no score."""
    sigma: float | None = None
    """Standard deviation of the Gaussian or Laplace distribution, for pixels in [0, 1]."""
    scaling: Scaling | None = None
    """How models trained on the latents scale them. It is kept in the manifest and not applied in the graphs."""
    multiple_of: int | None = None
    """If set, height and width may be any multiples of this many pixels. Latents must then be maps, and grow with the
    image. The sizes above are then the defaults."""
    name: str = "VAE"
    """Name of the model, for the manifest."""

    def __post_init__(self) -> None:
        self._make_plain()
        if len(self.image_shape) != 3 or self.image_shape[0] not in (1, 3) or min(self.image_shape) < 1:
            raise UsageError(f"image_shape is (channels, height, width) with 1 or 3 channels, not {self.image_shape}")
        if len(self.latent_shape) not in (1, 3) or min(self.latent_shape) < 1:
            raise UsageError(f"latent_shape is (d,) or (c, h, w), not {self.latent_shape}")
        if self.multiple_of is not None:
            _check_free_size(self.image_shape, self.latent_shape, self.multiple_of)
        low, high = self.pixel_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"pixel_range is (black, white), such as (-1, 1), not {self.pixel_range}")
        try:
            self.as_likelihood()
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _make_plain(self) -> None:
        """Convert the fields to plain tuples and Python numbers.

        A single number for the latent's shape becomes a tuple.
        """
        plain = {
            "image_shape": _shape(self.image_shape, "image_shape"),
            "latent_shape": _shape(self.latent_shape, "latent_shape"),
            "pixel_range": _range(self.pixel_range),
            "sigma": None if self.sigma is None else _number(self.sigma, "sigma"),
            "multiple_of": None if self.multiple_of is None else as_integer(self.multiple_of, "multiple_of"),
            "name": str(self.name),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # frozen for everyone else
        if self.scaling is not None and not isinstance(self.scaling, Scaling):
            raise UsageError(f"scaling is a Scaling(factor, shift) or None, not {self.scaling!r}")
        per_channel = () if self.scaling is None else (self.scaling.mean, self.scaling.std)
        if any(numbers is not None and len(numbers) != self.latent_shape[0] for numbers in per_channel):
            raise UsageError(f"mean and std of the scaling are one number for each channel of {self.latent_shape}")

    def as_likelihood(self) -> Likelihood:
        """Return the likelihood for the manifest."""
        return Likelihood(self.likelihood, self.sigma)


def _shape(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        value = (value,)
    return tuple(as_integer(size, f"size in {name}") for size in value)


def _range(value: object) -> tuple[float, float]:
    ends = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else ()
    if len(ends) != 2:
        raise UsageError(f"pixel_range is (black, white), such as (-1, 1), not {value!r}")
    black, white = (_number(end, "each end of pixel_range") for end in ends)
    return black, white


def _number(value: object, name: str) -> float:
    if not is_number(value):
        raise UsageError(f"{name} must be a number, not {value!r}")
    return float(value)


def _check_free_size(image: tuple[int, int, int], latent: tuple[int, ...], step: int) -> None:
    """Raise UsageError unless multiples of ``step`` pixels give whole latent sizes."""
    if len(latent) != 3:
        raise UsageError(f"with multiple_of, height and width are free: latent_shape must be (c, h, w), not {latent}")
    for size, code in zip(image[1:], latent[1:], strict=True):
        if step < 1 or size % step or size % code or step % (size // code):
            raise UsageError(
                f"images of {image[1]} x {image[2]} with latents of {latent[1]} x {latent[2]} cannot come in multiples "
                f"of {step}: it must divide the image's sizes, and be a multiple of the model's downsampling factor"
            )


class ForeignVAE(NamedTuple):
    """A VAE from any library, ready for ``export_vae``. Adapters and factories return it."""

    encoder: nn.Module
    """image (B, C, H, W) → mu and logvar, or mu alone."""
    decoder: nn.Module
    """z (B, …) → image (B, C, H, W)."""
    description: VAEDescription
    model: nn.Module | None = None
    """The module that a weights file belongs to. By default it is both modules, as ``encoder.…`` and ``decoder.…``."""
