"""Running a bundle's graphs through ONNX Runtime. Nothing here needs PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vaekit.bundle.reading import Bundle, read_bundle, read_golden
from vaekit.errors import UsageError
from vaekit.maths.elbo import Terms, elbo_terms, posterior_sample
from vaekit.maths.latents import channel_shift, interpolate, traversal
from vaekit.maths.numbers import as_integer, is_number
from vaekit.maths.prior import draw_mixture, draw_normal
from vaekit.ort.providers import Selection
from vaekit.ort.session import Feeds, GraphSession, open_graph
from vaekit.types import PRIORS, Array, Floats, GraphName, PriorName

if TYPE_CHECKING:
    from vaekit.verify import Verification

DEFAULT_BATCH_SIZE = 64

_WIDEST_SPAN = 1e30  # standard deviations: latents further out are beyond float32


class VAE:
    """A variational auto-encoder in a bundle, run by ONNX Runtime.

    Images are float32 (N, C, H, W) in [0, 1]; latents are float32 (N, …), each of ``latent_shape``: (d,), or (c, h, w)
    for models whose latent is a map. Work goes through the graphs ``batch_size`` rows at a time, so that memory beyond
    the result does not grow with N.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        selection: Selection | None = None,
        threads: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        spinning: bool = True,
    ) -> None:
        threads = None if threads is None else as_integer(threads, "number of threads")
        batch_size = as_integer(batch_size, "batch size")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be 1 or more, not {threads}")
        if batch_size < 1:
            raise UsageError(f"the batch size must be 1 or more, not {batch_size}")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.batch_size = batch_size
        self._selection = selection or Selection()
        self._threads = threads
        self._spinning = spinning
        self._graphs: dict[GraphName, GraphSession] = {}
        self._at_own_size = self

    def at(self, height: int, width: int) -> VAE:
        """The same model for images of another size, where the bundle leaves sizes free; the graphs are shared.

        Raises UsageError for a size that the model does not take.
        """
        manifest = self._at_own_size.manifest.at_size(as_integer(height, "height"), as_integer(width, "width"))
        other = copy.copy(self)
        other.manifest = manifest
        other.bundle = dataclasses.replace(self.bundle, manifest=manifest)
        return other

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.manifest.image.shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, (d,) or (c, h, w)."""
        return self.manifest.latent.shape

    @property
    def priors(self) -> tuple[PriorName, ...]:
        """The priors that ``sample`` can draw from, the default one first."""
        return PRIORS if self.manifest.mixture is not None else ("normal",)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The latent's dimensions, or a map's channels, the most active first.

        By KL(q(z_j|x) ‖ N(0, 1)) over held-out images, or by mu's standard deviation over them where the encoder is
        deterministic.
        """
        activity = self.manifest.latent.kl or self.manifest.latent.std
        return tuple(sorted(range(len(activity)), key=lambda j: -activity[j]))

    def encode(self, images: Floats) -> tuple[Array, Array | None]:
        """mu and logvar (natural logarithm of the variance) of q(z|x), each float32 (N, d) or (N, c, h, w).

        A deterministic encoder gives None for logvar. Raises UsageError unless ``images`` are finite floats
        (N, C, H, W) in [0, 1].
        """
        checked = self._checked_images(images)
        names = list(self.manifest.encoder_outputs)
        outputs = [np.empty((len(checked), *self.latent_shape), np.float32) for _ in names]
        for part in self._batches(len(checked)):
            for output, rows in zip(outputs, self.graph("encoder").run(names, {"image": checked[part]}), strict=True):
                output[part] = rows
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def posterior(self, images: Floats) -> tuple[Array, Array]:
        """mu and logvar as ``encode`` gives them. Raises UsageError where the encoder is deterministic."""
        mu, logvar = self.encode(images)
        if logvar is None:
            raise UsageError(f"{self.bundle.path} has a deterministic encoder: it gives mu, and no logvar")
        return mu, logvar

    def decode(self, z: Floats) -> Array:
        """The mean of p(x|z): images, float32 (N, C, H, W) in [0, 1]. Raises UsageError unless z is finite and fits."""
        checked = self._checked_latents(z)
        images = np.empty((len(checked), *self.image_shape), np.float32)
        for part in self._batches(len(checked)):
            (images[part],) = self.graph("decoder").run(["image"], {"z": checked[part]})
        return images

    def reconstruct(self, images: Floats) -> Array:
        """Images decoded from their mu, float32 (N, C, H, W). Raises UsageError as ``encode`` does."""
        return self.decode(self.encode(images)[0])

    def sample(self, n: int = 1, *, seed: int = 0, prior: str | None = None, temperature: float = 1.0) -> Array:
        """n images from the prior, float32 (n, C, H, W).

        Image k of a seed does not depend on n: see ``sample_latents``, which also says what is raised.
        """
        return self.decode(self.sample_latents(n, seed=seed, prior=prior, temperature=temperature))

    def sample_latents(
        self, n: int = 1, *, seed: int = 0, prior: str | None = None, temperature: float = 1.0, start: int = 0
    ) -> Array:
        """Latents ``start`` to ``start + n - 1`` of a seed from the prior, float32 (n, d) or (n, c, h, w).

        Latent k of a seed has the same bits on every machine. ``prior`` is ``mixture`` (fitted to the encoded training
        images; the default where the bundle has one) or ``normal``, N(0, I). ``temperature`` scales standard
        deviations. Raises UsageError for values out of range.
        """
        n, seed, start = (
            as_integer(value, name) for name, value in (("number of samples", n), ("seed", seed), ("start", start))
        )
        if n < 1:
            raise UsageError(f"the number of samples must be 1 or more, not {n}")
        if start < 0:
            raise UsageError(f"the start must be 0 or more, not {start}")
        if not (is_number(temperature) and temperature >= 0 and math.isfinite(temperature)):
            raise UsageError(f"the temperature must be 0 or more, not {temperature}")
        prior = prior or self.priors[0]
        if prior not in PRIORS:
            raise UsageError(f"there is no prior {prior!r}: choose one of {', '.join(self.priors)}")
        if prior == "normal":
            flat = draw_normal(self.manifest.latent.size, n, seed=seed, start=start, temperature=temperature)
            return flat.reshape(n, *self.latent_shape)
        if self.manifest.mixture is None:
            raise UsageError(f"{self.bundle.path} carries no mixture prior: use the prior normal")
        return draw_mixture(self.manifest.mixture, n, seed=seed, start=start, temperature=temperature)

    def interpolate(
        self, a: Floats, b: Floats, steps: int = 8, *, mode: str = "linear", latents: bool | None = None
    ) -> Array:
        """Images on the way from a to b, float32 (steps, C, H, W), the decoded ends included.

        a and b are each an image (C, H, W), of which mu is taken, or a latent of ``latent_shape``. ``latents`` says
        which; it may be left out unless the model's images and latents are of the same shape. ``mode`` is ``linear`` or
        ``slerp`` (see ``vaekit.maths.latents.interpolate``). Raises UsageError for other shapes or modes, under two
        steps, or where ``latents`` is needed.
        """
        steps = as_integer(steps, "number of steps")
        return self.decode(interpolate(self._as_latent(a, latents), self._as_latent(b, latents), steps, mode))

    def traverse(
        self,
        base: Floats | None = None,
        *,
        dimensions: Sequence[int] | None = None,
        steps: int = 9,
        span: float = 2.5,
        seed: int = 0,
        latents: bool | None = None,
    ) -> Array:
        """One latent dimension after another moved through its range, float32 (dimensions, steps, C, H, W).

        ``base`` is an image (C, H, W), of which mu is taken, or a latent, from which all other dimensions keep their
        values; by default sample 0 of ``seed``. ``dimensions`` are all by default, the most active first. Each goes
        through ``span`` standard deviations of mu over the held-out images, at least ``span``, to either side of its
        mean. Of a map (c, h, w) the channels are moved, each at all positions at once, to either side of what the base
        has there. ``latents`` says whether ``base`` is one, as for ``interpolate``. Raises UsageError for dimensions
        that are not there, under two steps or a span that is not positive.
        """
        chosen = self.dimensions if dimensions is None else _as_dimensions(dimensions)
        steps = as_integer(steps, "number of steps")
        d = self.latent_shape[0]
        if not chosen or any(not 0 <= j < d for j in chosen):
            raise UsageError(f"the latent's dimensions are 0 to {d - 1}, not {', '.join(map(str, chosen)) or 'none'}")
        if steps < 2 or not (is_number(span) and 0 < span < _WIDEST_SPAN):
            raise UsageError(f"a traversal takes 2 steps or more and a positive span, not {steps} and {span}")
        latent = self.sample_latents(1, seed=seed)[0] if base is None else self._as_latent(base, latents)
        move = channel_shift if self.manifest.latent.is_map else traversal
        rows = [move(latent, j, self.traversed_values(j, steps, span)) for j in chosen]
        return self.decode(np.concatenate(rows)).reshape(len(chosen), steps, *self.image_shape)

    def traversed_values(self, dimension: int, steps: int, span: float) -> NDArray[np.float64]:
        """The values that ``traverse`` gives to a dimension, or adds to a map's channel, float64 (steps,)."""
        latent = self.manifest.latent
        middle = 0.0 if latent.is_map else latent.mean[dimension]
        reach = span * max(latent.std[dimension], 1.0)
        return np.linspace(middle - reach, middle + reach, steps)

    def elbo_terms(self, images: Floats, *, seed: int = 0) -> Terms:
        """Compute each image's reconstruction E_q log p(x|z) and KL(q ‖ N(0, I)).

        Both are float64 (N,), in nats. One Monte Carlo sample (L = 1), with one eps for every image, sample 0 of the
        seed: an image's terms do not depend on its neighbours. Raises UsageError as ``encode`` does, and with the
        reason where the bundle has no ELBO: a deterministic encoder, or no likelihood.
        """
        self.check_elbo()
        seed = as_integer(seed, "seed")
        checked = self._checked_images(images)
        reconstruction, kl = np.empty((2, len(checked)))
        for part in self._batches(len(checked)):
            mu, logvar = self.posterior(checked[part])
            decoded = self.decode(posterior_sample(mu, logvar, seed=seed))
            reconstruction[part], kl[part] = elbo_terms(checked[part], mu, logvar, decoded, self.manifest.likelihood)
        return Terms(reconstruction, kl)

    def score(self, images: Floats, *, seed: int = 0) -> NDArray[np.float64]:
        """Compute −ELBO of each image in nats, float64 (N,): see ``elbo_terms``.

        The higher a score, the less likely the image is under the model.
        """
        return -self.elbo_terms(images, seed=seed).elbo

    def check_elbo(self) -> None:
        """Raise UsageError with the reason where images have no ELBO under this model, and so no score."""
        if reason := self.manifest.why_no_elbo:
            raise UsageError(f"{self.bundle.path} cannot score images: {reason}")

    def verify(self) -> Verification:
        """Replay the golden vectors, which are of the usual size: see ``vaekit.verify.verify``."""
        from vaekit.verify import Replay, verify

        vae = self._at_own_size

        def encode(images: Array) -> tuple[Array, ...]:
            mu, logvar = vae.encode(images)
            return (mu,) if logvar is None else (mu, logvar)

        return verify(
            read_golden(vae.bundle),
            vae.manifest,
            encoder=Replay(vae.graph("encoder"), encode),
            decoder=Replay(vae.graph("decoder"), lambda z: (vae.decode(z),)),
        )

    def graph(self, name: GraphName) -> GraphSession:
        """The loaded graph of ``encoder`` or ``decoder``, opened when it is first asked for.

        It says which provider runs it (``placement``). Raises ProviderError where the selected one cannot.
        """
        if name not in self._graphs:
            model = self.bundle.files[self.manifest.graphs[name].file]
            self._graphs[name] = open_graph(
                name, model, self._selection, probe=self._probe(name), threads=self._threads, spinning=self._spinning
            )
        return self._graphs[name]

    def _probe(self, name: GraphName) -> Feeds:
        if name == "encoder":
            return {"image": np.full((1, *self.image_shape), 0.5, np.float32)}
        return {"z": np.zeros((1, *self.latent_shape), np.float32)}

    def _batches(self, count: int) -> list[slice]:
        return [slice(first, first + self.batch_size) for first in range(0, count, self.batch_size)]

    def _as_latent(self, value: Floats, is_latent: bool | None) -> Array:
        """mu of an image (C, H, W), or a latent as it is; which of them, the shape tells where that is None."""
        array = np.asarray(value)
        if is_latent is None and self.image_shape == self.latent_shape == array.shape:
            raise UsageError(
                f"images and latents of this model are both of shape {array.shape}: say which these are, with "
                "latents=True or latents=False"
            )
        if array.shape == self.image_shape and not is_latent:
            return np.asarray(self.encode(array[None])[0][0])
        if array.shape == self.latent_shape and is_latent is not False:
            return np.asarray(self._checked_latents(array[None])[0])
        image, latent = f"an image of shape {self.image_shape}", f"a latent of shape {self.latent_shape}"
        wanted = {None: f"{image} or {latent}", False: image, True: latent}[is_latent]
        raise UsageError(f"give {wanted}, not {array.shape}")

    def _checked_images(self, images: Floats) -> Array:
        array = _as_float32(images, "images", "(N, C, H, W) in [0, 1]", self.image_shape)
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # not (NaN >= 0)
            raise UsageError("images must lie in [0, 1] and be finite: divide 8-bit values by 255")
        return array

    def _checked_latents(self, z: Floats) -> Array:
        array = _as_float32(z, "latents", "(N, …)", self.latent_shape)
        if not np.isfinite(array).all():
            raise UsageError("latents must be finite: these hold NaN or infinity")
        return array


def load(
    path: str | Path,
    *,
    provider: str = "auto",
    provider_options: Mapping[str, str] | None = None,
    allow_fallback: bool = False,
    threads: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    spinning: bool = True,
) -> VAE:
    """Load a bundle, a folder or a .zip of one.

    ``provider`` is ``auto``, a name in ``vaekit.ort.providers.PROVIDERS``, or one of ONNX Runtime's own, with
    ``provider_options`` by ONNX Runtime's names. A named one is strict: it runs every node or, when a graph is first
    used, ProviderError is raised; ``allow_fallback`` lets the CPU run the rest. ``threads`` defaults to the processors
    that this process may use; ``spinning=False`` leaves processors to other work while threads wait.
    Raises BundleError where a file is missing, altered, newer or unsafe, and UsageError for arguments out of range.
    """
    selection = Selection(provider, dict(provider_options or {}), allow_fallback)
    return VAE(read_bundle(path), selection=selection, threads=threads, batch_size=batch_size, spinning=spinning)


def _as_dimensions(dimensions: Sequence[int]) -> tuple[int, ...]:
    try:
        each = tuple(dimensions)
    except TypeError:
        raise UsageError(f"dimensions must be a list of whole numbers, not {dimensions!r}") from None
    return tuple(as_integer(j, "dimension") for j in each)


def _as_float32(array: Floats, what: str, axes: str, item_shape: tuple[int, ...]) -> Array:
    array = np.asarray(array)
    if array.dtype.kind != "f":
        raise UsageError(f"{what} must be floats {axes}, not {array.dtype}")
    if array.shape[1:] != item_shape or array.ndim != len(item_shape) + 1:
        sizes = ", ".join(map(str, item_shape))
        raise UsageError(f"{what} must have the shape (N, {sizes}), not {array.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return np.ascontiguousarray(array, dtype=np.float32)
