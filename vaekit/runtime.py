"""Running a bundle's graphs through ONNX Runtime. Nothing here needs PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.bundle import Bundle, read_bundle
from vaekit.errors import BundleError, ProviderError, UsageError
from vaekit.machine import usable_cpus
from vaekit.prior import draw_mixture, draw_normal

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = ("auto", "cpu")
PRIORS = ("mixture", "normal")
DEFAULT_BATCH_SIZE = 64

_CPU = "CPUExecutionProvider"


def open_session(model: bytes, *, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of a graph on the CPU, with every optimisation on; export gates on this very session.

    ``threads`` defaults to the processors that this process may use. Raises ProviderError without ONNX Runtime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            "no ONNX Runtime is installed here: pip install 'vaekit[cpu]' (or [gpu], [openvino], [directml])"
        ) from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or usable_cpus()
    options.log_severity_level = 3  # errors only: they also come as exceptions
    try:
        # enable_fallback=0: else a failing provider is retried on the CPU, with a message on stdout.
        return onnxruntime.InferenceSession(model, options, providers=[_CPU], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load this graph: {_one_line(error)}"
        ) from error


class VAE:
    """A variational auto-encoder in a bundle, run by ONNX Runtime.

    Images are float32 (N, C, H, W) in [0, 1]; latents are float32 (N, d). Work goes through the graphs
    ``batch_size`` rows at a time, so that memory beyond the result does not grow with N.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, batch_size: int = DEFAULT_BATCH_SIZE) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be 1 or more, not {threads}")
        if batch_size < 1:
            raise UsageError(f"the batch size must be 1 or more, not {batch_size}")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.batch_size = batch_size
        self._threads = threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.manifest.image.shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, (d,)."""
        return self.manifest.latent.shape

    @property
    def priors(self) -> tuple[str, ...]:
        """The priors that ``sample`` knows here, the default one first."""
        return PRIORS if self.manifest.mixture is not None else ("normal",)

    def encode(self, images: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """mu and logvar (natural logarithm of the variance) of q(z|x), each float32 (N, d).

        Raises UsageError unless ``images`` are finite floats (N, C, H, W) in [0, 1].
        """
        checked = self._checked_images(images)
        mu, logvar = (np.empty((len(checked), *self.latent_shape), np.float32) for _ in range(2))
        for part in self._batches(len(checked)):
            mu[part], logvar[part] = self.session("encoder").run(["mu", "logvar"], {"image": checked[part]})
        return mu, logvar

    def decode(self, z: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The mean of p(x|z): images, float32 (N, C, H, W) in [0, 1]. Raises UsageError unless z is finite, (N, d)."""
        checked = self._checked_latents(z)
        images = np.empty((len(checked), *self.image_shape), np.float32)
        for part in self._batches(len(checked)):
            (images[part],) = self.session("decoder").run(["image"], {"z": checked[part]})
        return images

    def sample(
        self, n: int = 1, *, seed: int = 0, prior: str | None = None, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """n images from the prior, float32 (n, C, H, W).

        Image k of a seed does not depend on n: see ``sample_latents``, which also says what is raised.
        """
        return self.decode(self.sample_latents(n, seed=seed, prior=prior, temperature=temperature))

    def sample_latents(
        self, n: int = 1, *, seed: int = 0, prior: str | None = None, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """n latents from the prior, float32 (n, d); latent k of a seed has the same bits on every machine.

        ``prior`` is ``mixture`` (fitted to the encoded training images; the default where the bundle has one) or
        ``normal``, N(0, I). ``temperature`` scales standard deviations. Raises UsageError for values out of range.
        """
        if n < 1:
            raise UsageError(f"the number of samples must be 1 or more, not {n}")
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise UsageError(f"the temperature must be 0 or more, not {temperature}")
        prior = prior or self.priors[0]
        if prior not in PRIORS:
            raise UsageError(f"there is no prior {prior!r}: choose one of {', '.join(self.priors)}")
        if prior == "normal":
            return draw_normal(self.latent_shape[0], n, seed=seed, temperature=temperature)
        if self.manifest.mixture is None:
            raise UsageError(f"{self.bundle.path} carries no mixture prior: use the prior normal")
        return draw_mixture(self.manifest.mixture, n, seed=seed, temperature=temperature)

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """The ONNX Runtime session of ``encoder`` or ``decoder``, opened when it is first asked for."""
        if graph not in self._sessions:
            model = self.bundle.files[self.manifest.graphs[graph].file]
            self._sessions[graph] = open_session(model, threads=self._threads)
        return self._sessions[graph]

    def _batches(self, count: int) -> list[slice]:
        return [slice(first, first + self.batch_size) for first in range(0, count, self.batch_size)]

    def _checked_images(self, images: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        array = _as_float32(images, "images", "(N, C, H, W) in [0, 1]", self.image_shape)
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # not (NaN >= 0)
            raise UsageError("images must lie in [0, 1] and be finite: divide 8-bit values by 255")
        return array

    def _checked_latents(self, z: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        array = _as_float32(z, "latents", "(N, d)", self.latent_shape)
        if not np.isfinite(array).all():
            raise UsageError("latents must be finite: these hold NaN or infinity")
        return array


def load(
    path: str | Path, *, provider: str = "auto", threads: int | None = None, batch_size: int = DEFAULT_BATCH_SIZE
) -> VAE:
    """Load a bundle, a folder or a .zip of one.

    ``provider`` is ``cpu``, or ``auto``, which is the CPU too in this version; ``threads`` defaults to the processors
    that this process may use. Raises BundleError where a file is missing, altered, newer or unsafe, and UsageError for
    arguments out of range.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"there is no provider {provider!r} in this version: choose one of {', '.join(PROVIDERS)}")
    return VAE(read_bundle(path), threads=threads, batch_size=batch_size)


def _as_float32(
    array: NDArray[np.floating[Any]], what: str, axes: str, item_shape: tuple[int, ...]
) -> NDArray[np.float32]:
    array = np.asarray(array)
    if array.dtype.kind != "f":
        raise UsageError(f"{what} must be floats {axes}, not {array.dtype}")
    if array.shape[1:] != item_shape or array.ndim != len(item_shape) + 1:
        sizes = ", ".join(map(str, item_shape))
        raise UsageError(f"{what} must have the shape (N, {sizes}), not {array.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return np.ascontiguousarray(array, dtype=np.float32)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
