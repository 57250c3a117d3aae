"""Run a bundle's encoder and decoder with ONNX Runtime. Nothing here needs PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vaekit.bundle.manifest import MOST_FLOW_STEPS
from vaekit.bundle.reading import Bundle, read_bundle, read_golden, read_residuals
from vaekit.errors import BundleError, ProviderError, UsageError
from vaekit.images.labels import UNLABELLED
from vaekit.maths.anomaly import ELBO_SCORES, MAP_SCORES, SCORES, mahalanobis, scores_of_maps, scores_of_terms
from vaekit.maths.attributes import Attributes
from vaekit.maths.elbo import Terms, elbo_terms, posterior_sample
from vaekit.maths.flow import guided, integrate, one_hot
from vaekit.maths.latents import channel_shift, interpolate, traversal
from vaekit.maths.numbers import as_integer, in_unit_interval, is_number
from vaekit.maths.prior import draw_mixture, draw_normal, draw_numbers
from vaekit.maths.surprise import MAP_KINDS, MapKind, ResidualStatistics, default_kind, surprise
from vaekit.maths.tiles import Run, Tiling, count_tiles, run_in_tiles
from vaekit.ort.providers import Selection
from vaekit.ort.session import Feeds, GraphSession, OpenGraphs, open_confined, open_graph
from vaekit.types import PRIORS, Array, Floats, GraphName, PriorName, one_of

if TYPE_CHECKING:
    from vaekit.ort.confined import Limits
    from vaekit.verify import Verification

DEFAULT_BATCH_SIZE = 64
DEFAULT_TILE = 512
"""Side in pixels of the tiles in which large images are computed."""
LARGE_IMAGE = 1 << 20
"""Pixels, height times width, above which an image is computed in tiles if tiles give the same result."""

_PIXELS_AT_ONCE = 1 << 22  # in all images of one batch, so that few large ones take no more memory than many small
_NAMED_LABELS = 20  # in an error message, at most
_WIDEST_SPAN = 1e30  # standard deviations; a wider traversal would overflow float32


class VAE:
    """A variational auto-encoder in a bundle, run by ONNX Runtime.

    Images are float32 (N, C, H, W) in [0, 1]. Latents are float32 (N, d) for models whose latent is a vector, and
    float32 (N, c, h, w) for models whose latent is a map. The graphs process ``batch_size`` rows at a time, or fewer
    large ones, so memory use, apart from the result, does not grow with N.

    One object may be used by several threads, and after a fork: the new process opens its own sessions. It must end
    with ``os._exit``, as those of multiprocessing do, because ONNX Runtime hangs in other ends of a forked process.

    ``follow`` is called with the number of tiles that are done and their total, where an image is computed in tiles.
    """

    follow: Callable[[int, int], object] = staticmethod(lambda done, total: None)

    def __init__(
        self,
        bundle: Bundle,
        *,
        selection: Selection | None = None,
        threads: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        spinning: bool = True,
        tile: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        threads = None if threads is None else as_integer(threads, "number of threads")
        batch_size = as_integer(batch_size, "batch size")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be 1 or more, not {threads}")
        if batch_size < 1:
            raise UsageError(f"the batch size must be 1 or more, not {batch_size}")
        if tile is not None and as_integer(tile, "tile") < 0:
            raise UsageError(f"the tile must be 0 or more pixels, not {tile}")
        if limits is not None:
            limits.check()
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.batch_size = batch_size
        self._selection = selection or Selection()
        self._threads = threads
        self._spinning = spinning
        self._tile = tile
        self._limits = limits
        self._residuals: ResidualStatistics | None = None
        self._graphs = OpenGraphs()
        self._at_own_size = self

    def at(self, height: int, width: int) -> VAE:
        """Return the same model for images of another size.

        The bundle must have been exported with free sizes. An image whose height or width is no multiple of
        ``manifest.image.multiple_of`` is padded by reflection at the bottom and on the right, and decoded images are
        cropped. The new object shares this one's graphs. Raises UsageError for a size that the model does not accept.
        """
        manifest = self._at_own_size.manifest.at_size(as_integer(height, "height"), as_integer(width, "width"))
        other = copy.copy(self)
        other.manifest = manifest
        other.bundle = dataclasses.replace(self.bundle, manifest=manifest)
        return other

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the shape of one image, (C, H, W)."""
        return self.manifest.image.shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Return the shape of one latent, (d,) or (c, h, w)."""
        return self.manifest.latent.shape

    @property
    def priors(self) -> tuple[PriorName, ...]:
        """Return the priors that ``sample`` can draw from, the default first."""
        return self.manifest.priors

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Return the latent's dimensions (or a map's channels), most active first.

        Activity is the mean KL(q(z_j|x) ‖ N(0, 1)) over held-out images. For a deterministic encoder it is the standard
        deviation of mu over those images.
        """
        activity = self.manifest.latent.kl or self.manifest.latent.std
        return tuple(sorted(range(len(activity)), key=lambda j: -activity[j]))

    def encode(self, images: Floats) -> tuple[Array, Array | None]:
        """Return mu and logvar of q(z|x), each float32 (N, d) or (N, c, h, w).

        logvar is the natural logarithm of the variance; it is None for a deterministic encoder. Raises UsageError
        unless ``images`` are finite floats (N, C, H, W) in [0, 1], and ProviderError if the encoder fails or returns
        NaN or infinity.
        """
        mu, logvar = self._encode(images)
        return self._finite("encoder", mu), None if logvar is None else self._finite("encoder", logvar)

    def _encode(self, images: Floats) -> tuple[Array, Array | None]:
        """Do what ``encode`` does, but for the check of what the encoder returns."""
        checked = self._checked_images(images)
        batches = self._batches(len(checked))
        if len(batches) == 1:  # nothing to put together: a few microseconds less, which count for one image
            outputs = self._encode_batch(checked)
        else:
            outputs = [np.empty((len(checked), *self.latent_shape), np.float32) for _ in self.manifest.encoder_outputs]
            for part in batches:
                for output, rows in zip(outputs, self._encode_batch(checked[part]), strict=True):
                    output[part] = rows
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def _encode_batch(self, images: Array) -> list[Array]:
        """Return mu and logvar, or mu alone, of a batch."""
        outputs = self._encoded(list(self.manifest.encoder_outputs), self._padded(images))
        for rows in outputs:
            self._require("encoder", rows, (len(images), *self.latent_shape))
        return outputs

    def posterior(self, images: Floats) -> tuple[Array, Array]:
        """Return mu and logvar as ``encode`` does.

        Raises UsageError if the encoder is deterministic.
        """
        mu, logvar = self.encode(images)
        if logvar is None:
            raise UsageError(f"{self.bundle.path} has a deterministic encoder: it gives mu but no logvar")
        return mu, logvar

    def decode(self, z: Floats) -> Array:
        """Return the mean of p(x|z) as images, float32 (N, C, H, W) in [0, 1].

        Raises UsageError unless z holds finite floats (N, d) or (N, c, h, w), and ProviderError if the decoder fails or
        returns NaN or infinity.
        """
        images = self._decode(z)
        return images if in_unit_interval(images) else self._finite("decoder", images)

    def _decode(self, z: Floats) -> Array:
        """Do what ``decode`` does, but for the check of what the decoder returns."""
        checked = self._checked_latents(z)
        batches = self._batches(len(checked))
        if len(batches) == 1:  # as in _encode
            return np.ascontiguousarray(self._decode_batch(checked))
        images = np.empty((len(checked), *self.image_shape), np.float32)
        for part in batches:
            images[part] = self._decode_batch(checked[part])
        return images

    def _decode_batch(self, z: Array) -> Array:
        """Return the images of a batch, without their padding."""
        channels, height, width = self.image_shape
        below, beside = self.manifest.image.padding
        rows = self._decoded(z)
        self._require("decoder", rows, (len(z), channels, height + below, width + beside))
        return rows[:, :, :height, :width]

    def reconstruct(self, images: Floats) -> Array:
        """Encode images and decode their mu: float32 (N, C, H, W).

        Raises UsageError as ``encode`` does.
        """
        return self.decode(self.encode(images)[0])

    def sample(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        prior: str | None = None,
        temperature: float = 1.0,
        prior_steps: int | None = None,
        label: str | None = None,
        guidance: float = 1.0,
    ) -> Array:
        """Draw n images from the prior, float32 (n, C, H, W).

        Image k of a seed does not depend on n. The arguments and errors are those of ``sample_latents``.
        """
        latents = self.sample_latents(
            n,
            seed=seed,
            prior=prior,
            temperature=temperature,
            prior_steps=prior_steps,
            label=label,
            guidance=guidance,
        )
        return self.decode(latents)

    def sample_latents(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        prior: str | None = None,
        temperature: float = 1.0,
        start: int = 0,
        prior_steps: int | None = None,
        label: str | None = None,
        guidance: float = 1.0,
    ) -> Array:
        """Draw n latents from the prior, float32 (n, d) or (n, c, h, w).

        These are samples ``start`` to ``start + n - 1`` of the seed. ``prior`` is ``flow`` (learned from the encoded
        training images), ``mixture`` (fitted to them) or ``normal``, which is N(0, I); the first of these that the
        bundle has is the default. Sample k of a seed has the same bits on every machine. From the flow, whose
        velocities the provider computes, this is true of where it starts, at the mixture or at N(0, I); its samples
        agree within the bundle's tolerances. ``temperature`` scales the standard deviations, those of the flow's start.
        ``prior_steps`` is the number of steps in which the flow is integrated, the bundle's by default.

        ``label`` is one of ``labels``, for latents of that class; by default classes are as frequent as in training.
        ``guidance`` is for the flow and a label: 1 leaves the class as it was learnt, and more draws latents that are
        more typical of it and less varied. Raises UsageError for values out of range, and for an unknown label.
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
        if prior_steps is not None and prior != "flow":
            raise UsageError(f"steps belong to the flow, and not to the prior {prior}")
        if prior not in self.priors:
            raise UsageError(f"{self.bundle.path} has no {prior} prior: choose one of {', '.join(self.priors)}")
        number = None if label is None else self._number_of_label(label, one_of(PRIORS, prior, "prior"))
        if not (is_number(guidance) and math.isfinite(guidance)):
            raise UsageError(f"the guidance must be a finite number, not {guidance}")
        if guidance != 1 and (prior != "flow" or label is None):
            raise UsageError("guidance needs the flow and a label")
        flow, mixture = self.manifest.flow, self.manifest.mixture
        if prior == "mixture" or (prior == "flow" and flow is not None and flow.start == "mixture"):
            assert mixture is not None
            chosen = mixture if number is None else mixture.of_label(number)
            assert chosen is not None
            drawn = draw_mixture(chosen, n, seed=seed, start=start, temperature=temperature)
        else:
            flat = draw_normal(self.manifest.latent.size, n, seed=seed, start=start, temperature=temperature)
            drawn = flat.reshape(n, *self.latent_shape)
        if prior != "flow":
            return drawn
        return self._flowed(drawn, prior_steps, self._label_numbers(n, seed, start, number), guidance)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the classes that latents can be drawn of; none if the priors know no classes."""
        return self.manifest.labels

    def check_label(self, label: str) -> None:
        """Raise UsageError if there is no such label."""
        if not self.labels:
            raise UsageError(f"{self.bundle.path} has no labels: its images had no classes, or its priors know none")
        self._check_name(label, self.labels)

    def _check_name(self, label: str, names: tuple[str, ...]) -> None:
        if label in names:
            return
        import difflib  # here, because only this message needs it

        (nearest,) = difflib.get_close_matches(str(label), names, n=1, cutoff=0.0)
        more = len(names) - _NAMED_LABELS
        known = ", ".join(names[:_NAMED_LABELS]) + (f" and {more} more" if more > 0 else "")
        raise UsageError(f"{self.bundle.path} has no label {label!r}. The nearest is {nearest!r}; there are {known}")

    def _number_of_label(self, label: str, prior: PriorName) -> int:
        """Return a label's number. Raises UsageError if there is no such label, or the prior does not know it."""
        self.check_label(label)
        number, flow, mixture = self.labels.index(label), self.manifest.flow, self.manifest.mixture
        in_mixture = mixture is not None and mixture.of_label(number) is not None
        known = {
            "flow": flow is not None and bool(flow.label_weights) and (flow.start == "normal" or in_mixture),
            "mixture": in_mixture,
            "normal": False,
        }
        if not known[prior]:
            able = " or ".join(name for name in self.priors if known[name])
            raise UsageError(
                f"the {prior} prior does not know the label {label}" + (f": use the prior {able}" if able else "")
            )
        return number

    def _label_numbers(self, n: int, seed: int, start: int, number: int | None) -> NDArray[np.int64] | None:
        """Return the numbers of the flow's labels of samples, (n,); None if the flow knows no labels."""
        flow, mixture = self.manifest.flow, self.manifest.mixture
        if flow is None or flow.label_weights is None:
            return None
        if number is not None:
            return np.full(n, number)
        size = self.manifest.latent.size
        if flow.start == "mixture" and mixture is not None and mixture.labels is not None:
            return np.asarray(mixture.labels[draw_numbers(mixture.weights, size, n, seed=seed, start=start)])
        return draw_numbers(np.array(flow.label_weights), size, n, seed=seed, start=start)

    def _flowed(self, drawn: Array, steps: int | None, labels: NDArray[np.int64] | None, guidance: float) -> Array:
        """Carry draws (N, …) of the flow's start, with their labels' numbers (N,), to latents along its velocity."""
        flow = self.manifest.flow
        assert flow is not None
        steps = flow.steps if steps is None else as_integer(steps, "number of steps")
        if not 1 <= steps <= MOST_FLOW_STEPS:
            raise UsageError(f"a flow is integrated in 1 to {MOST_FLOW_STEPS} steps, not {steps}")
        mean, std = (np.array(part, np.float32).reshape(-1, *[1] * (drawn.ndim - 2)) for part in (flow.mean, flow.std))
        noise = (drawn - mean) / std if flow.start == "mixture" else drawn
        latents = np.empty_like(noise)
        for part in self._batches(len(noise)):
            of_part = None if labels is None else one_hot(labels[part], len(self.labels))
            velocity = functools.partial(self._guided, of_part, guidance)
            latents[part] = mean + std * integrate(velocity, noise[part], steps)
        return latents

    def _guided(self, labels: Array | None, guidance: float, z: Array, t: Array) -> Array:
        """Return the velocity of z (N, …) at t (N,) for labels (N, K + 1), with guidance."""
        inputs = {"z": z, "t": t}
        if labels is None:
            return self._finite("prior", self._velocity(inputs))
        given = self._finite("prior", self._velocity(inputs | {"label": labels}))
        if guidance == 1:
            return given
        none = one_hot(np.full(len(z), UNLABELLED, np.int64), len(self.labels))
        return guided(given, self._finite("prior", self._velocity(inputs | {"label": none})), guidance)

    def _velocity(self, inputs: Mapping[str, Array]) -> Array:
        velocity = self.graph("prior").run(["velocity"], inputs)[0]
        self._require("prior", velocity, inputs["z"].shape)
        return velocity

    def interpolate(
        self, a: Floats, b: Floats, steps: int = 8, *, mode: str = "linear", latents: bool | None = None
    ) -> Array:
        """Decode latents on a path from a to b, float32 (steps, C, H, W).

        The path includes both ends. Each of a and b is an image (C, H, W), which is encoded to mu, or a latent of
        ``latent_shape``. ``latents`` says which; it may be left out unless images and latents of the model have the
        same shape. ``mode`` is ``linear`` or ``slerp`` (see ``vaekit.maths.latents.interpolate``). Raises UsageError
        for other shapes or modes, for fewer than two steps, or if ``latents`` is needed.
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
        at: tuple[int, int] | None = None,
    ) -> Array:
        """Vary each latent dimension in turn, float32 (dimensions, steps, C, H, W).

        ``base`` is an image (C, H, W), which is encoded to mu, or a latent; by default it is sample 0 of ``seed``. All
        other dimensions keep the base's values. ``latents`` says whether ``base`` is a latent, as for ``interpolate``.
        ``dimensions`` defaults to all of them, most active first.

        A dimension of a vector covers its mean ± ``span`` · max(std, 1), where mean and std are those of mu over the
        held-out images. A channel of a map (c, h, w) is shifted by the same amounts at all positions, around the
        base's own values; ``at`` a row and column, only there.

        Raises UsageError for unknown dimensions or positions, fewer than two steps, or a span that is not positive.
        """
        chosen = self.dimensions if dimensions is None else _as_dimensions(dimensions)
        steps = as_integer(steps, "number of steps")
        d = self.latent_shape[0]
        if not chosen or any(not 0 <= j < d for j in chosen):
            raise UsageError(f"the latent's dimensions are 0 to {d - 1}, not {', '.join(map(str, chosen)) or 'none'}")
        if steps < 2 or not (is_number(span) and 0 < span < _WIDEST_SPAN):
            raise UsageError(f"a traversal needs 2 steps or more and a positive span, not {steps} and {span}")
        place = None if at is None else self._as_position(at)
        latent = self.sample_latents(1, seed=seed)[0] if base is None else self._as_latent(base, latents)
        move = functools.partial(channel_shift, at=place) if self.manifest.latent.is_map else traversal
        rows = [move(latent, j, self.traversed_values(j, steps, span)) for j in chosen]
        return self.decode(np.concatenate(rows)).reshape(len(chosen), steps, *self.image_shape)

    def toward(
        self, base: Floats, labels: Sequence[str], *, steps: int = 9, strength: float = 1.0, latents: bool | None = None
    ) -> Array:
        """Move an image in the direction of each label, float32 (labels, steps, C, H, W).

        ``base`` is an image (C, H, W), which is encoded to mu, or a latent (see ``interpolate``). The decoded latents
        are base + s · direction, with s from 0 to ``strength`` in ``steps`` steps, at all positions of a map. With the
        whole direction, the mean of the label's held-out images takes the place of that of the base's own label.

        ``labels`` may also name known factors, as the built-in shapes have: s is in standard deviations of the factor,
        or if it has a period, such as a hue, in periods (see ``vaekit.maths.attributes``). Raises UsageError as
        ``interpolate`` does, for an unknown name, and if the bundle has no attributes.
        """
        attributes, steps = self.attributes, as_integer(steps, "number of steps")
        if steps < 2 or not (is_number(strength) and 0 < abs(strength) < _WIDEST_SPAN):
            raise UsageError(f"moving needs 2 steps or more and a strength that is not 0, not {steps} and {strength}")
        if not labels:
            raise UsageError("moving needs one label or more")
        for label in labels:
            self._check_name(label, attributes.names)
        latent = self._as_latent(base, latents)
        moves = np.concatenate([attributes.moves(label, latent, np.linspace(0, strength, steps)) for label in labels])
        rows = (latent + moves.reshape(*moves.shape, *[1] * (latent.ndim - 1))).astype(np.float32)
        return self.decode(rows).reshape(len(labels), steps, *self.image_shape)

    @property
    def attributes(self) -> Attributes:
        """Return the directions and the read-out of labels and factors. Raises UsageError if the bundle has none."""
        if self.manifest.attributes is None:
            raise UsageError(f"{self.bundle.path} has no attributes: its held-out images had no classes")
        return self.manifest.attributes

    def _as_position(self, at: tuple[int, int]) -> tuple[int, int]:
        if not self.manifest.latent.is_map:
            raise UsageError(f"the latents of {self.bundle.path} are vectors, which have no positions")
        row, column = (as_integer(place, "position") for place in at)
        _, height, width = self.latent_shape
        if not (0 <= row < height and 0 <= column < width):
            raise UsageError(
                f"the positions of a latent are 0,0 to {height - 1},{width - 1} (row, column) at this size, not "
                f"{row},{column}"
            )
        return row, column

    def traversed_values(self, dimension: int, steps: int, span: float) -> NDArray[np.float64]:
        """Return the values that ``traverse`` uses for a dimension, float64 (steps,).

        A dimension of a vector is set to them; they are added to a map's channel.
        """
        latent = self.manifest.latent
        middle = 0.0 if latent.is_map else latent.mean[dimension]
        reach = span * max(latent.std[dimension], 1.0)
        return np.linspace(middle - reach, middle + reach, steps)

    def elbo_terms(self, images: Floats, *, seed: int = 0) -> Terms:
        """Compute each image's reconstruction E_q log p(x|z) and KL(q ‖ N(0, I)).

        Both are float64 (N,), in nats. The expectation is estimated from one Monte Carlo sample (L = 1). All images
        share one eps, sample 0 of the seed, so an image's terms do not depend on the others. Raises UsageError as
        ``encode`` does, and if the bundle has no ELBO (deterministic encoder, or no likelihood).
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

    def score(
        self, images: Floats, *, seed: int = 0, by: str = "elbo", map_by: str | None = None
    ) -> NDArray[np.float64]:
        """Compute a score of each image, float64 (N,). The higher it is, the less usual is the image.

        ``by`` is ``elbo`` for −ELBO, ``reconstruction`` for −E_q log p(x|z), or ``kl``, in nats (see ``elbo_terms``);
        ``map`` for the mean of the highest hundredth of ``score_map`` by ``map_by``, or ``peak`` for its highest
        number, in standard deviations; ``mahalanobis`` for the distance of mu from the mean of held-out images, in
        standard deviations; or ``density`` for −log p(mu) under the mixture prior, in nats. Raises UsageError as
        ``encode`` does, for another word, and if the bundle lacks what the score needs.
        """
        self.check_score(by)
        if by in MAP_SCORES:
            return scores_of_maps(self.score_map(images, by=map_by))[one_of(MAP_SCORES, by, "score")]
        if by == "mahalanobis":
            latent = self.manifest.latent
            return mahalanobis(self.encode(images)[0], np.array(latent.mean), np.array(latent.std))
        if by == "density":
            assert self.manifest.mixture is not None
            return -self.manifest.mixture.log_density(self.encode(images)[0])
        return scores_of_terms(self.elbo_terms(images, seed=seed))[one_of(ELBO_SCORES, by, "score")]

    def check_score(self, by: str) -> None:
        """Raise UsageError with the reason if this model has no such score (see ``score``)."""
        if by not in SCORES:
            raise UsageError(f"there is no score {by!r}: choose one of {', '.join(SCORES)}")
        if by in ELBO_SCORES:
            self.check_elbo()
        if by in MAP_SCORES:
            self.residual_statistics()
        if by == "density" and (reason := self.manifest.why_no_density):
            raise UsageError(f"{self.bundle.path} cannot score images by density: {reason}")

    def score_map(self, images: Floats, *, by: str | None = None) -> Array:
        """Return where images differ from their reconstructions more than is usual, float32 (N, H, W).

        The numbers are standard deviations above the usual squared error, smoothed, of the reconstruction at z = mu.
        ``by`` says what is usual: the errors of held-out images at the same ``pixel``, for images that are framed
        alike, or at pixels of the same ``gradient`` or ``brightness``, or with the same brightness and distance from
        the border by ``contrast`` (see ``vaekit.maths.surprise``). By default it is ``pixel`` for models of one size;
        for others it is ``contrast``, or ``gradient`` if the bundle has no statistics of contrast. Raises UsageError as
        ``encode`` does, for another word, for ``pixel`` at another size than the bundle's, and for a bundle
        without statistics of residuals.
        """
        statistics, kind = self.residual_statistics(by)
        checked = self._checked_images(images)
        maps = np.empty((len(checked), *self.image_shape[1:]), np.float32)
        for part in self._batches(len(checked)):
            maps[part] = surprise(checked[part], self.reconstruct(checked[part]), statistics, kind)
        return maps

    def residual_statistics(self, by: str | None = None) -> tuple[ResidualStatistics, MapKind]:
        """Return the bundle's statistics of residuals and the kind of map, as ``score_map`` uses them.

        Raises UsageError as ``score_map`` does.
        """
        fixed = self.manifest.image.multiple_of is None
        if by is not None and by not in MAP_KINDS:
            raise UsageError(f"there is no map by {by!r}: choose one of {', '.join(MAP_KINDS)}")
        if self._residuals is None:
            self._residuals = read_residuals(self.bundle)
        kind = by or default_kind(self._residuals, fixed=fixed)
        if kind == "pixel" and self._residuals.pixel_mean.shape != self.image_shape[1:]:
            raise UsageError("a map by pixel needs images of the bundle's own size: take the map by contrast")
        checked = one_of(MAP_KINDS, kind, "map")
        if checked not in self._residuals.kinds:
            raise UsageError(f"{self.bundle.path} has no statistics of residuals by {kind}: export it again")
        return self._residuals, checked

    def check_elbo(self) -> None:
        """Raise UsageError with the reason if this model has no ELBO."""
        if reason := self.manifest.why_no_elbo:
            raise UsageError(f"{self.bundle.path} cannot score images: {reason}")

    def verify(self) -> Verification:
        """Replay the golden vectors and compare: see ``vaekit.verify.verify``."""
        from vaekit.verify import Replay, verify

        vae = self._at_own_size  # the golden vectors have the bundle's own size

        def encode(images: Array) -> tuple[Array, ...]:
            mu, logvar = vae._encode(images)
            return (mu,) if logvar is None else (mu, logvar)

        return verify(
            read_golden(vae.bundle),
            vae.manifest,
            encoder=Replay(vae.graph("encoder"), encode),
            decoder=Replay(vae.graph("decoder"), lambda z: (vae._decode(z),)),
            prior=None if vae.manifest.flow is None else (vae.graph("prior"), vae._velocity),
        )

    def graph(self, name: GraphName) -> GraphSession:
        """Return the session of ``encoder``, ``decoder`` or ``prior``, opening it on first use in this process.

        Its ``placement`` says which providers run its nodes. Raises ProviderError if the selected provider cannot.
        """
        return self._graphs.get(name, lambda: self._opened(name))

    def _opened(self, name: GraphName) -> GraphSession:
        model = self.bundle.files[self.manifest.graphs[name].file]
        if self._limits is not None:
            return open_confined(
                name, model, self._selection, self._limits, threads=self._threads, spinning=self._spinning
            )
        return open_graph(
            name, model, self._selection, probe=self._probe(name), threads=self._threads, spinning=self._spinning
        )

    def tiling(self) -> Tiling | None:
        """Return how images are cut into tiles, or None if they are computed whole.

        Raises UsageError for a tile that is too small, or for a model whose sizes are fixed.
        """
        image = self.manifest.image
        if not self._tile and (self._tile == 0 or image.context is None or image.height * image.width <= LARGE_IMAGE):
            return None
        if image.multiple_of is None:
            raise UsageError(f"{self.bundle.path} takes images of one size only, which are not computed in tiles")
        cell, tile = image.multiple_of, self._tile or DEFAULT_TILE
        margin = -(-(image.context or 0) // cell)
        ramp = 0 if image.context is not None else tile // cell // 4
        least = 2 * margin + max(1, 2 * ramp)
        if tile % cell or tile // cell < least:
            needed = "" if image.context is None else f": what it computes depends on {image.context} pixels around it"
            raise UsageError(
                f"a tile must be a multiple of {cell} pixels, from {cell * least}, for this model, not {tile}{needed}"
            )
        return Tiling(tile // cell, margin, ramp)

    def _encoded(self, names: list[str], images: Array) -> list[Array]:
        """Return the encoder's outputs for images whose sides are multiples."""
        tiling, graph = self.tiling(), self.graph("encoder")
        if tiling is None:
            return graph.run(names, {"image": images})

        def run(part: Array) -> Array:
            return np.concatenate(graph.run(names, {"image": part}), axis=1)

        channels = self.latent_shape[0]
        both = self._in_tiles(run, images, tiling, len(names) * channels, encoding=True)
        return [both[:, first : first + channels] for first in range(0, both.shape[1], channels)]

    def _decoded(self, z: Array) -> Array:
        """Return the decoder's images, with their padding."""
        tiling, graph = self.tiling(), self.graph("decoder")
        if tiling is None:
            return graph.run(["image"], {"z": z})[0]
        return self._in_tiles(
            lambda part: graph.run(["image"], {"z": part})[0], z, tiling, self.image_shape[0], encoding=False
        )

    def _in_tiles(self, run: Run, rows: Array, tiling: Tiling, channels: int, *, encoding: bool) -> Array:
        own = self._at_own_size.manifest
        cell = own.image.multiple_of
        assert cell is not None
        scales = cell, cell * own.latent.shape[1] // own.image.height  # pixels and latents in a cell
        before, after = scales if encoding else scales[::-1]
        cells = rows.shape[2] // before, rows.shape[3] // before
        total, done = len(rows) * count_tiles(cells, tiling), itertools.count(1)

        def checked(part: Array) -> Array:
            found = run(part)
            sides = (side // before * after for side in part.shape[2:])
            self._require("encoder" if encoding else "decoder", found, (len(part), channels, *sides))
            return found

        return run_in_tiles(
            checked, rows, cells, tiling, channels, (before, after), lambda: self.follow(next(done), total)
        )

    def _require(self, name: GraphName, found: Array, shape: tuple[int, ...]) -> None:
        """Raise BundleError if a graph returned an array of another shape than the manifest declares."""
        if found.shape != shape:
            raise BundleError(
                f"{self.bundle.path}: the {name} returned an array of shape {found.shape}, but the manifest declares "
                f"{shape}"
            )

    def _finite(self, name: GraphName, found: Array) -> Array:
        """Return what a graph returned. Raises ProviderError if it is not finite."""
        if not np.isfinite(found).all():
            raise ProviderError(
                f"{self.bundle.path}: the {name} returned NaN or infinity on {self.graph(name).provider}; "
                "`vaekit verify` says whether it does so on the golden vectors"
            )
        return found

    def _padded(self, images: Array) -> Array:
        """Pad images (N, C, H, W) by reflection to the next multiple."""
        below, beside = self.manifest.image.padding
        return np.pad(images, ((0, 0), (0, 0), (0, below), (0, beside)), "reflect") if below or beside else images

    def _probe(self, name: GraphName) -> Feeds:
        own = self._at_own_size
        if name == "encoder":
            return {"image": np.full((1, *own.image_shape), 0.5, np.float32)}
        z = {"z": np.zeros((1, *own.latent_shape), np.float32)}
        if name == "decoder":
            return z
        labels = self._label_numbers(1, 0, 0, None)
        label = {} if labels is None else {"label": one_hot(labels, len(self.labels))}
        return z | {"t": np.zeros(1, np.float32)} | label

    def _batches(self, count: int) -> list[slice]:
        _, height, width = self.image_shape
        rows = min(self.batch_size, max(1, _PIXELS_AT_ONCE // (height * width)))
        return [slice(first, first + rows) for first in range(0, count, rows)]

    def _as_latent(self, value: Floats, is_latent: bool | None) -> Array:
        """Encode an image (C, H, W) to mu, or return a latent unchanged.

        If ``is_latent`` is None, the shape decides.
        """
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
        raise UsageError(f"expected {wanted}, not {array.shape}")

    def _checked_images(self, images: Floats) -> Array:
        array = _as_float32(images, "images", "(N, C, H, W) in [0, 1]", self.image_shape)
        if not in_unit_interval(array):
            raise UsageError("images must be finite and in [0, 1]: divide 8-bit values by 255")
        return array

    def _checked_latents(self, z: Floats) -> Array:
        array = _as_float32(z, "latents", "(N, …)", self.latent_shape)
        if not np.isfinite(array).all():
            raise UsageError("latents must be finite, but these contain NaN or infinity")
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
    tile: int | None = None,
    signed_by: str | Path | None = None,
    untrusted: bool = False,
    memory_limit: float | None = None,
    time_limit: float | None = None,
) -> VAE:
    """Load a bundle from a folder or a .zip file, or ``demo``, the one that comes with vaekit.

    ``provider`` is ``auto``, a short name in ``vaekit.ort.providers.PROVIDERS``, or ONNX Runtime's own name of a
    provider. ``provider_options`` are passed to that provider under ONNX Runtime's option names. A named provider is
    strict: if it cannot run every node, ProviderError is raised when a graph is first used. With ``allow_fallback`` the
    CPU runs the remaining nodes instead.

    ``threads`` defaults to the number of processors that this process may use. ``spinning=False`` stops waiting threads
    from using processor time.

    ``tile`` is the side in pixels of the tiles in which images of a model with free sizes are computed; 0 computes them
    whole. By default, images of more than ``LARGE_IMAGE`` pixels are computed in tiles of ``DEFAULT_TILE``, if the
    manifest's ``image.context`` says that the result is the same but for rounding. Otherwise tiles are blended.

    ``signed_by`` is minisign's public key, or a file with one, that must have signed the bundle. One of the keys in
    ``$VAEKIT_TRUSTED_KEYS`` must have signed it too, if that is set.

    With ``untrusted``, each graph is opened and run on the CPU in a process of its own, which may take ``memory_limit``
    gigabytes, by default 4, and ``time_limit`` seconds for a batch, by default 60 (see ``vaekit.ort.confined``).

    Raises BundleError if a file is missing, altered, of a newer format or unsafe, or if the bundle is not signed as it
    must be; UsageError for arguments out of range; and MissingExtraError without the package that checks signatures.
    """
    limits = _limits_of(untrusted, memory_limit, time_limit)
    bundle = read_bundle(path, signed_by=signed_by)
    return VAE(
        bundle,
        selection=Selection(provider, dict(provider_options or {}), allow_fallback),
        threads=threads,
        batch_size=batch_size,
        spinning=spinning,
        tile=tile,
        limits=limits,
    )


def _limits_of(untrusted: bool, memory: float | None, seconds: float | None) -> Limits | None:
    if not untrusted:
        if memory is not None or seconds is not None:
            raise UsageError("limits of memory and time are for untrusted bundles: ask for that too")
        return None
    from vaekit.ort.confined import Limits

    given = {name: value for name, value in (("memory", memory), ("seconds", seconds)) if value is not None}
    limits = Limits(**given)
    limits.check()
    return limits


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
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # overflow gives infinity, which the callers reject
        return np.ascontiguousarray(array, dtype=np.float32)
