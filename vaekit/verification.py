"""A device proves itself: the golden vectors in a bundle, run again on this machine's provider."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vaekit.bundle import GOLDEN, PROVIDER_CLASSES, Tolerance
from vaekit.errors import BundleError
from vaekit.machine import has_fast_int8, processor_flags
from vaekit.pictures import to_uint8
from vaekit.providers import CPU, Graph, provider_class, spoken

if TYPE_CHECKING:
    from vaekit.runtime import VAE

Array = NDArray[np.float32]

_LARGEST_FLOAT16 = 65504.0
_NO_VNNI = (
    "this processor has no VNNI or dot product: sums of 8-bit products saturate in 16 bits, unless the graph was "
    "quantised with reduce_range"
)


@dataclass(frozen=True)
class OutputCheck:
    """How far one output of one graph lies from PyTorch's on the golden vectors, at batch sizes of one and of many."""

    graph: str
    output: str
    passed: bool
    """Whether |a − b| ≤ atol + rtol·|b| for every element, and all are finite."""
    finite: bool
    max_abs: float
    """Largest |a − b|; infinite where a result is not finite."""
    max_rel: float
    """Largest |a − b| / |b| over elements that are not zero; large where one only crosses zero."""
    psnr: float | None
    """Peak signal-to-noise ratio in dB, the peak being 1 for images and else the range of PyTorch's values; None where
    the results are equal."""
    differing_pixels: int | None
    """For images: pixels that differ once rounded to 8 bits."""
    tolerance: Tolerance


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found."""

    passed: bool
    provider: str
    """The provider that ran the graphs, by vaekit's name where it has one."""
    outputs: tuple[OutputCheck, ...]
    placement: dict[str, dict[str, int]]
    """By graph, nodes by ONNX Runtime's name of the provider that they ran on."""
    fell_back: tuple[str, ...]
    """Why other providers were not taken, and what the one taken left to the CPU."""
    causes: tuple[str, ...]
    """Likely causes, where it did not pass and one is known."""


def verify(vae: VAE) -> Verification:
    """Run the golden vectors through both graphs and compare with what PyTorch computed.

    Those of a compressed bundle are what its own graphs computed where they were made: PyTorch's would ask for
    tolerances as wide as the error of compression, and hide what a device adds.

    The tolerances are the manifest's, for the precision of the graph and the class of the provider that runs it. Raises
    BundleError where the golden vectors cannot be read, ProviderError where the provider does not run.
    """
    golden = _read_golden(vae)
    encoder, decoder = vae.graph("encoder"), vae.graph("decoder")
    outputs = (
        *_check(vae, encoder, lambda rows: _encoded(vae, rows), golden["image"], vae.manifest.encoder_outputs, golden),
        *_check(vae, decoder, lambda rows: (vae.decode(rows),), golden["z"], ("decoded",), golden),
    )
    passed = all(output.passed for output in outputs)
    providers = dict.fromkeys((encoder.provider, decoder.provider))
    return Verification(
        passed=passed,
        provider=" and ".join(providers),
        outputs=outputs,
        placement={graph.name: graph.placement for graph in (encoder, decoder)},
        fell_back=tuple(dict.fromkeys((*encoder.fell_back, *decoder.fell_back))),
        causes=() if passed else tuple(_causes(vae, outputs)),
    )


def _encoded(vae: VAE, images: Array) -> tuple[Array, ...]:
    """The encoder's outputs: mu, and logvar where there is one."""
    mu, logvar = vae.encode(images)
    return (mu,) if logvar is None else (mu, logvar)


def _read_golden(vae: VAE) -> dict[str, Array]:
    path = vae.bundle.path / GOLDEN
    try:
        with np.load(io.BytesIO(vae.bundle.files[GOLDEN]), allow_pickle=False) as arrays:
            golden = {name: arrays[name] for name in ("image", *vae.manifest.encoder_outputs, "z", "decoded")}
    # RuntimeError is zipfile's word for encryption.
    except (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again.") from error
    images, latents = golden["image"].shape[:1], golden["z"].shape[:1]
    shapes = {
        "image": images + vae.image_shape,
        "mu": images + vae.latent_shape,
        "logvar": images + vae.latent_shape,
        "z": latents + vae.latent_shape,
        "decoded": latents + vae.image_shape,
    }
    for name, array in golden.items():
        if array.dtype != np.float32 or array.shape != shapes[name] or not array.size:
            raise BundleError(f"{path} is damaged: {name} is {array.dtype} {array.shape}, not float32 {shapes[name]}")
        is_image = name in ("image", "decoded")
        if not np.isfinite(array).all() or (is_image and not (array.min() >= 0 and array.max() <= 1)):
            raise BundleError(f"{path} is damaged: {name} holds numbers that no model gave")
    return golden


def _check(
    vae: VAE,
    graph: Graph,
    run: Callable[[Array], tuple[Array, ...]],
    rows: Array,
    names: tuple[str, ...],
    golden: dict[str, Array],
) -> list[OutputCheck]:
    """Each output, the whole batch at once and row by row: the worse of the two."""
    singly = [np.concatenate(parts) for parts in zip(*(run(row[None]) for row in rows), strict=True)]
    tolerance = _tolerance(vae, graph)
    checks = []
    for name, together, alone in zip(names, run(rows), singly, strict=True):
        output = "image" if name == "decoded" else name
        both = [compare(graph.name, output, actual, golden[name], tolerance) for actual in (together, alone)]
        checks.append(max(both, key=lambda check: (not check.passed, check.max_abs)))
    return checks


def _tolerance(vae: VAE, graph: Graph) -> Tolerance:
    """The loosest of those for the classes of provider that hold nodes of the graph."""
    classes = {provider_class(name) for name in graph.placement}
    loosest = max(classes, key=PROVIDER_CLASSES.index)
    return vae.manifest.tolerances[vae.manifest.graphs[graph.name].precision][loosest]


def compare(graph: str, output: str, actual: Array, expected: Array, tolerance: Tolerance) -> OutputCheck:
    """Compare an output with PyTorch's, both float32 of one shape; for images both lie in [0, 1]."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    finite = bool(np.isfinite(a).all())
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(np.isfinite(a), np.abs(a - b), np.inf)
        relative = difference[b != 0] / np.abs(b[b != 0])
        mse = float((difference**2).mean())
    is_image = output == "image"
    peak = 1.0 if is_image else float(np.ptp(b)) or 1.0
    return OutputCheck(
        graph=graph,
        output=output,
        passed=bool((difference <= tolerance.atol + tolerance.rtol * np.abs(b)).all()),
        finite=finite,
        max_abs=float(difference.max()),
        max_rel=float(relative.max(initial=0.0)),
        psnr=None if mse == 0 else 10 * math.log10(peak**2 / mse) if math.isfinite(mse) else -math.inf,
        differing_pixels=_differing_pixels(actual, expected) if is_image else None,
        tolerance=tolerance,
    )


def _differing_pixels(actual: Array, expected: Array) -> int:
    """Pixels of images (N, C, H, W) that differ in any channel once rounded to 8 bits; NaN and infinity differ."""
    finite = np.isfinite(actual)
    differ = (to_uint8(np.where(finite, actual, 0.0)) != to_uint8(expected)) | ~finite
    return int(differ.any(axis=1).sum())


def _causes(vae: VAE, outputs: tuple[OutputCheck, ...]) -> list[str]:
    """Likely causes of failed outputs, in words."""
    causes: dict[str, None] = {}
    for check in outputs:
        if check.passed:
            continue
        precision, graph = vae.manifest.graphs[check.graph].precision, vae.graph(check.graph)
        flags = processor_flags()
        if precision == "int8" and CPU in graph.placement and flags and not has_fast_int8(flags):
            causes[_NO_VNNI] = None
        if precision == "fp16" and (not check.finite or check.max_abs > _LARGEST_FLOAT16 / 2):
            causes["numbers beyond 65504 overflow in float16: use the fp32 bundle on this device"] = None
        for name in graph.placement:
            if provider_class(name) == "reduced":
                causes[f"{spoken(name)} computes in less than float32"] = None
        if graph.options.get("use_tf32") == "1":
            causes["use_tf32=1 rounds products to 10 bits: leave that option out"] = None
    return list(causes)
