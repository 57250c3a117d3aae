"""A bundle becomes a smaller one: INT8, float16, dead latent dimensions pruned; published only if it is good enough."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

import vaekit
from vaekit.bench import Setting, bench, settings
from vaekit.bundle import (
    DECODER,
    ENCODER,
    GOLDEN,
    MANIFEST,
    PROVIDER_CLASSES,
    Bundle,
    FileSpec,
    Manifest,
    Tolerance,
    dump_json,
    read_bundle,
)
from vaekit.errors import BundleError, CheckError, SourceError, UsageError, VaekitError
from vaekit.files import replacing_folder
from vaekit.machine import processor_flags, processor_name, usable_cpus
from vaekit.onnx_file import TensorInfo, read_onnx
from vaekit.providers import Selection
from vaekit.runtime import VAE
from vaekit.stream import ImageStream
from vaekit_export.lowering import Convert, layers_of, lower, to_fp16, to_int8
from vaekit_export.metadata import describe, with_metadata
from vaekit_export.onnx_export import check_onnx, tidy
from vaekit_export.prune import marginal, prune_decoder, prune_encoder
from vaekit_export.publish import check_target
from vaekit_export.quality import PRIOR_SAMPLES, Graphs, Judge, Limits, run
from vaekit_export.subpixel import as_convolutions

DEAD_BELOW = 0.01
"""Nats of KL under which a dimension counts as dead."""
MIN_PSNR = {"int8": 42.0, "fp16": 60.0}
"""dB on prior samples, by precision; pruning alone has no such bound."""
MAX_DELTA_ELBO = {"int8": 5.0, "fp16": 0.1}
"""Nats by which the ELBO may change, by precision."""
MAX_DELTA_ELBO_PRUNED = 0.1
"""The same for pruning, on its own and before the precision is lowered."""

_FILES = {"encoder": ENCODER, "decoder": DECODER}
_IMAGES = 512  # of a source: every second one calibrates, the others measure
_SPEED_BATCHES = (1, 64)
_SPEED_ROUNDS = 3
_TOLD_FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "f16c", "avx512_fp16"}
_TOLD_FLAGS |= {"asimddp", "i8mm", "fphp", "asimdhp"}
# What a class of provider may differ by, in times what kernels here differ by, and at least.
_TIMES = dict(zip(PROVIDER_CLASSES, (2, 4, 10), strict=True))
_LEAST = dict(zip(PROVIDER_CLASSES, (0.0, 0.0, 2e-2), strict=True))

Array = NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Speed:
    """Images a second over the parent's, both in turn, each time in a process of its own."""

    median: float
    least: float
    largest: float


@dataclass(frozen=True)
class Half:
    """What became of one graph."""

    precision: str
    bytes: int
    parent_bytes: int
    nodes: int
    parent_nodes: int
    in_float: tuple[str, ...]
    """Layers left in float32, the most sensitive first."""
    transposed: int
    """Transposed convolutions in it."""
    rewritten: int
    """Transposed convolutions that became ordinary ones."""
    speed: dict[int, Speed]
    """By batch size; empty where nothing was timed."""


@dataclass(frozen=True)
class Compression:
    """A published bundle, and what it lost and gained."""

    path: Path
    manifest: Manifest
    halves: dict[str, Half]
    """By graph: ``encoder`` and ``decoder``."""
    pruned: tuple[int, ...]
    """Dimensions of the parent that are gone."""
    psnr: float
    """dB of decoded prior samples against the parent's; infinite where they are equal."""
    delta_elbo: float | None
    """Mean ELBO less the parent's, in nats; None where there is no likelihood."""
    measured_on: str
    """Which images the ELBO is of."""


@dataclass(frozen=True)
class _Change:
    """One graph in lower precision, or as it was."""

    onnx: bytes
    precision: str = "fp32"
    in_float: tuple[str, ...] = ()
    rewritten: int = 0


def compress_bundle(
    bundle_path: str | Path,
    target_path: str | Path,
    source: str | None = None,
    *,
    precision: str | None = None,
    prune: bool = False,
    dead_below: float = DEAD_BELOW,
    min_psnr: float | None = None,
    max_delta_elbo: float | None = None,
    keep_transposed: bool = False,
    seconds: float = 0.5,
    say: Say = lambda message: None,
) -> Compression:
    """Write a smaller bundle, whole, or nothing where it is not good enough.

    ``precision`` is ``int8``, ``fp16`` or None; ``prune`` takes out dimensions whose KL over the held-out images is
    under ``dead_below`` nats. Images of ``source`` calibrate INT8 and measure the ELBO; without one, the bundle's own
    samples do. The result must decode prior samples to at least ``min_psnr`` dB of the parent's images, with an ELBO
    within ``max_delta_elbo`` nats of its; the defaults are MIN_PSNR and MAX_DELTA_ELBO. ``keep_transposed`` leaves
    transposed convolutions, which no integer kernel of ONNX Runtime's CPU provider runs, as they are. Each half is
    timed for ``seconds`` at two batch sizes in three rounds; 0 times nothing.

    Raises UsageError for arguments that contradict each other, BundleError for a bundle that cannot be compressed,
    SourceError for images that cannot be read, CheckError where the result is not good enough.
    """
    target = Path(target_path)
    limits = _limits(precision, prune, dead_below, min_psnr, max_delta_elbo, seconds)
    parent = read_bundle(bundle_path)
    _check_parent(parent, target, prune)
    calibration, measured, measured_on = _images(parent, source, say)
    judge = Judge(_opened(parent), measured, limits)
    graphs = judge.parent
    if prune:
        graphs = _pruned(judge, parent.manifest, dead_below, say, alone=precision is None)
    changes = {name: _Change(getattr(graphs, name)) for name in _FILES}
    if precision is not None:
        say(f"lowering both graphs to {precision}, calibrated on {len(calibration)} images of {measured_on}")
        changes = _lowered(precision, graphs, calibration, judge, keep_transposed, say)
        graphs = Graphs(changes["encoder"].onnx, changes["decoder"].onnx, graphs.kept)
    psnr, delta = judge.check(graphs)
    changes = {name: _described(parent.manifest, name, change, len(graphs.kept)) for name, change in changes.items()}
    graphs = Graphs(changes["encoder"].onnx, changes["decoder"].onnx, graphs.kept)

    pruned = tuple(sorted(set(judge.parent.kept) - set(graphs.kept)))
    contents = {name: getattr(graphs, half) for half, name in _FILES.items()}
    contents[GOLDEN] = _golden(parent, graphs)
    rows = (measured, judge.z[:, graphs.kept])
    tolerances = _tolerances(parent, zip(changes.values(), rows, strict=True))
    manifest = _manifest(parent, graphs, {name: change.precision for name, change in changes.items()}, contents)
    record = _record(parent, changes, limits) | {
        "pruned": list(pruned),
        "psnr": psnr if math.isfinite(psnr) else None,
        "delta_elbo": delta,
        "measured_on": measured_on,
    }
    manifest = dataclasses.replace(
        manifest,
        tolerances=manifest.tolerances | tolerances,
        provenance=manifest.provenance | {"compression": record},
    )
    contents[MANIFEST] = dump_json(manifest.to_json()).encode()
    with _publishing(target, contents) as folder:
        speeds = _speeds(Path(bundle_path), folder, seconds, say)
    halves = {name: _half(parent, name, change, speeds[name]) for name, change in changes.items()}
    return Compression(target, manifest, halves, pruned, psnr, delta, measured_on)


def _limits(
    precision: str | None,
    prune: bool,
    dead_below: float,
    min_psnr: float | None,
    max_delta_elbo: float | None,
    seconds: float,
) -> Limits:
    if precision is None and not prune:
        raise UsageError("say how to compress: --int8 or --fp16, --prune, or one of the first two with --prune")
    if precision not in (None, *MIN_PSNR):
        raise UsageError(f"the precision is int8 or fp16, not {precision!r}")
    for name, value in (("--dead-below", dead_below), ("--max-delta-elbo", max_delta_elbo), ("--seconds", seconds)):
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{name} must be 0 or more, not {value:g}")
    if min_psnr is not None and not 0 < min_psnr < math.inf:
        raise UsageError(f"--min-psnr must be a positive number of dB, not {min_psnr:g}")
    least = -math.inf if precision is None else MIN_PSNR[precision]
    most = MAX_DELTA_ELBO_PRUNED if precision is None else MAX_DELTA_ELBO[precision]
    return Limits(least if min_psnr is None else min_psnr, most if max_delta_elbo is None else max_delta_elbo)


def _check_parent(parent: Bundle, target: Path, prune: bool) -> None:
    """Refuse, before any work, what cannot be compressed or written."""
    lowered = {graph.precision for graph in parent.manifest.graphs.values()} - {"fp32"}
    if lowered:
        raise BundleError(
            f"{parent.path} is compressed already, to {', '.join(sorted(lowered))}: compress the bundle that it was "
            "made from"
        )
    if target.exists() and target.resolve() == parent.path.resolve():
        raise UsageError(f"{target} is the bundle itself: write the smaller one to another place with -o")
    if prune and len(parent.manifest.latent.shape) != 1:
        raise BundleError(f"{parent.path} has latents of shape {parent.manifest.latent.shape}: only vectors are pruned")
    check_target(target)


def _opened(parent: Bundle) -> VAE:
    return VAE(parent, selection=Selection("cpu"))


def _images(parent: Bundle, source: str | None, say: Say) -> tuple[Array, Array, str]:
    """Images to calibrate on, images to measure the ELBO on, both (n, C, H, W), and what they are in words."""
    if source is None:
        images = _opened(parent).sample(2 * PRIOR_SAMPLES)
        return images[::2], images[1::2], "the bundle's own samples"
    with ImageStream([source], parent.manifest.image.shape) as stream:
        total = len(stream)
        if not total:
            raise SourceError(f"there are no images in {source}")
        failures: list[str] = []
        parts = []
        for chunk in stream.chunks(every=-(-total // _IMAGES)):
            failures += chunk.failures
            parts.append(chunk.images)
    for failure in failures:
        say(f"left out: {failure}")
    images = np.concatenate(parts) if parts else np.empty((0, *parent.manifest.image.shape), np.float32)
    if not len(images):
        raise SourceError(f"none of the {total:,} images of {source} could be read; the first: {failures[0]}")
    measured = images[1::2] if len(images) > 1 else images
    return images[::2], measured, Path(source).resolve().name


def _pruned(judge: Judge, manifest: Manifest, dead_below: float, say: Say, *, alone: bool) -> Graphs:
    """Both halves without the dead dimensions, but for those that the ELBO is found to miss.

    Raises BundleError where nothing is dead and nothing else is to be done.
    """
    kl, means = np.array(manifest.latent.kl), np.array(manifest.latent.mean)
    dead = sorted((j for j in range(len(kl)) if kl[j] < dead_below), key=lambda j: kl[j])[: len(kl) - 1]
    while dead:
        kept = tuple(j for j in range(len(kl)) if j not in dead)
        graphs = Graphs(
            tidy(prune_encoder(judge.parent.encoder, kept)),
            tidy(prune_decoder(judge.parent.decoder, kept, means)),
            kept,
        )
        delta = judge.delta_elbo(graphs)
        if delta is None or abs(delta) <= min(MAX_DELTA_ELBO_PRUNED, judge.limits.delta_elbo):
            say(f"pruned {len(dead)} of {len(kl)} dimensions, of KL under {dead_below:g} nats")
            return graphs
        say(f"dimension {dead[-1]} stays: without it and {len(dead) - 1} more the ELBO changes by {delta:+.2g} nats")
        dead.pop()
    reason = (
        f"nothing to prune: of {len(kl)} dimensions none has a KL under {dead_below:g} nats that can be missed; the "
        f"least is {kl.min():.3g} (--dead-below moves that bound)"
    )
    if alone:
        raise BundleError(f"{reason}; nothing was published")
    say(reason)
    return judge.parent


def _lowered(
    precision: str, graphs: Graphs, images: Array, judge: Judge, keep_transposed: bool, say: Say
) -> dict[str, _Change]:
    """Both halves in lower precision, as far as the limits allow. Raises CheckError where that is nowhere."""
    inputs = {"encoder": ("image", images), "decoder": ("z", judge.z[:, graphs.kept])}
    headroom = {"encoder": judge.encoder_headroom, "decoder": judge.decoder_headroom}
    changes = {}
    for name, (input_name, rows) in inputs.items():
        whole: bytes = getattr(graphs, name)
        left = partial(_headroom_with, headroom[name], graphs, name)
        if precision == "fp16":
            base, rewritten = whole, 0
            convert: Convert = partial(to_fp16, base)
        else:
            base, rewritten = (whole, 0) if keep_transposed else _without_transposed(whole)
            convert = partial(to_int8, base, input_name, rows)
        lowered = lower(list(layers_of(base)), convert, left)
        if lowered is None:
            say(f"{name}: no layer of it can be {precision} within the limits; it stays as it is")
            changes[name] = _Change(whole)
        else:
            changes[name] = _Change(tidy(lowered.onnx), precision, lowered.in_float, rewritten)
    if all(change.precision == "fp32" for change in changes.values()):
        raise CheckError(
            f"no layer of either graph can be {precision} at {judge.limits.psnr:g} dB on prior samples and "
            f"{judge.limits.delta_elbo:g} nats of ELBO, nothing was published; --min-psnr and --max-delta-elbo move "
            "these bounds"
        )
    return changes


def _headroom_with(headroom: Callable[[Graphs], float], graphs: Graphs, name: str, data: bytes) -> float:
    """What is left to the limits with another graph in the place of one half."""
    encoder, decoder = (data if half == name else getattr(graphs, half) for half in _FILES)
    return headroom(Graphs(encoder, decoder, graphs.kept))


def _described(manifest: Manifest, name: str, change: _Change, dimensions: int) -> _Change:
    """A graph that says in its own metadata what it has become."""
    latent = (dimensions, *manifest.latent.shape[1:])
    metadata = describe(name, change.precision, manifest.image, latent, manifest.posterior, manifest.likelihood)
    return dataclasses.replace(change, onnx=with_metadata(change.onnx, metadata))


def _without_transposed(data: bytes) -> tuple[bytes, int]:
    model = onnx.load_from_string(data)
    count = as_convolutions(model)
    return (tidy(model.SerializeToString()), count) if count else (data, 0)


def _golden(parent: Bundle, graphs: Graphs) -> bytes:
    """golden.npz: the parent's inputs with what these graphs compute here.

    PyTorch's outputs would ask for tolerances as wide as the error of compression, which would hide what a device adds.
    """
    with np.load(io.BytesIO(parent.files[GOLDEN]), allow_pickle=False) as arrays:
        golden = {name: arrays[name] for name in ("image", "z")}
    golden["z"] = _kept_of(golden["z"], graphs.kept)
    encoded = run(graphs.encoder, golden["image"])
    names = [output.name for output in parent.manifest.graphs["encoder"].outputs]
    golden |= dict(zip(names, encoded, strict=True)) | {"decoded": run(graphs.decoder, golden["z"])[0]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden)
    return buffer.getvalue()


def _manifest(parent: Bundle, graphs: Graphs, precisions: dict[str, str], contents: dict[str, bytes]) -> Manifest:
    """The parent's manifest with the graphs, golden vectors and latent that these graphs have.

    What the parity gate measured stays, as it is the parent's proof; the scores' quantiles too.
    """
    old = parent.manifest
    specs = {}
    for name, file in _FILES.items():
        inputs, outputs = (
            tuple(_with_latent(tensor, old, len(graphs.kept)) for tensor in tensors)
            for tensors in (old.graphs[name].inputs, old.graphs[name].outputs)
        )
        check_onnx(contents[file], inputs=inputs, outputs=outputs, opset=old.graphs[name].opset)
        specs[name] = dataclasses.replace(
            old.graphs[name],
            sha256=hashlib.sha256(contents[file]).hexdigest(),
            ir_version=read_onnx(contents[file]).ir_version,
            precision=precisions[name],
            inputs=inputs,
            outputs=outputs,
        )
    latent = old.latent
    if len(graphs.kept) < latent.shape[0]:
        mean, std, kl = (tuple(numbers[j] for j in graphs.kept) for numbers in (latent.mean, latent.std, latent.kl))
        latent = dataclasses.replace(latent, shape=(len(graphs.kept),), mean=mean, std=std, kl=kl)
    return dataclasses.replace(
        old,
        latent=latent,
        mixture=old.mixture if old.mixture is None or latent is old.latent else marginal(old.mixture, graphs.kept),
        graphs=specs,
        golden=FileSpec(GOLDEN, hashlib.sha256(contents[GOLDEN]).hexdigest()),
    )


def _with_latent(tensor: TensorInfo, manifest: Manifest, dimensions: int) -> TensorInfo:
    if tensor.name == "image" or dimensions == manifest.latent.shape[0]:
        return tensor
    return dataclasses.replace(tensor, shape=(tensor.shape[0], dimensions))


def _tolerances(parent: Bundle, changes: Iterable[tuple[_Change, Array]]) -> dict[str, dict[str, Tolerance]]:
    """What a device may differ by from these graphs here, by the precisions that they were lowered to.

    Another kernel rounds otherwise, and a rounding that falls the other way moves a result by a step of the precision.
    How far that goes is measured on each graph's rows: its results with ONNX Runtime's integer kernels against those
    operator by operator in float32, and against those for inputs that are off by float32's own rounding.
    """
    spread: dict[str, float] = {}
    for change, rows in changes:
        if change.precision != "fp32":
            here = run(change.onnx, rows)
            others = (_unoptimised(change.onnx, rows), run(change.onnx, rows * np.float32(1 + 1e-6)))
            furthest = max(float(np.abs(a - b).max()) for other in others for a, b in zip(here, other, strict=True))
            spread[change.precision] = max(spread.get(change.precision, 0.0), furthest)
    floor = parent.manifest.tolerances["fp32"]
    return {
        precision: {
            kind: Tolerance(max(floor[kind].atol, _LEAST[kind], float(f"{_TIMES[kind] * off:.2g}")), floor[kind].rtol)
            for kind in PROVIDER_CLASSES
        }
        for precision, off in spread.items()
    }


def _unoptimised(data: bytes, rows: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: rows})
    return outputs


def _kept_of(z: Array, kept: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(z[:, kept]) if len(kept) < z.shape[1] else z


def _record(parent: Bundle, changes: dict[str, _Change], limits: Limits) -> dict[str, Any]:
    """What the manifest tells of how the bundle was made, and of what."""
    return {
        "precision": {name: change.precision for name, change in changes.items()},
        "in_float": {name: list(change.in_float) for name, change in changes.items()},
        "rewritten_transposed": {name: change.rewritten for name, change in changes.items()},
        "min_psnr": limits.psnr if math.isfinite(limits.psnr) else None,
        "max_delta_elbo": limits.delta_elbo,
        "processor": {"name": processor_name(), "flags": sorted(processor_flags() & _TOLD_FLAGS)},
        "parent": {
            "manifest_sha256": hashlib.sha256(parent.files[MANIFEST]).hexdigest(),
            "graphs_sha256": {name: graph.sha256 for name, graph in parent.manifest.graphs.items()},
            "compression": parent.manifest.provenance.get("compression"),
        },
        "tools": {module.__name__: str(module.__version__) for module in (vaekit, onnx, onnxruntime, np)},
    }


@contextmanager
def _publishing(target: Path, contents: dict[str, bytes]) -> Iterator[Path]:
    """Yield the new bundle's folder, whole and checked, which takes the target's place when the block ends well."""
    with replacing_folder(target) as folder:
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            raise VaekitError(f"the bundle does not pass its own checks, nothing was published: {error}") from error
        if not _opened(bundle).verify().passed:
            raise CheckError("the new bundle's golden vectors do not replay here, nothing was published")
        yield folder


def _speeds(parent: Path, new: Path, seconds: float, say: Say) -> dict[str, dict[int, Speed]]:
    """Speed over the parent's by graph and batch size, on every processor that may be used; empty for 0 seconds."""
    speeds: dict[str, dict[int, Speed]] = {name: {} for name in _FILES}
    if seconds == 0:
        return speeds
    chosen = settings(_SPEED_BATCHES, [usable_cpus()])
    say(f"timing both bundles in turn, {_SPEED_ROUNDS} rounds")
    ratios: dict[Setting, list[float]] = {setting: [] for setting in chosen}
    for _ in range(_SPEED_ROUNDS):
        for setting in chosen:
            before, after = (
                next(bench(path, Selection("cpu"), [setting], seconds=seconds)).images_per_second
                for path in (parent, new)
            )
            ratios[setting].append(after / before)
    for setting, found in ratios.items():
        name = {"encode": "encoder", "decode": "decoder"}[setting.graph]
        speeds[name][setting.batch] = Speed(statistics.median(found), min(found), max(found))
    return speeds


def _half(parent: Bundle, name: str, change: _Change, speed: dict[int, Speed]) -> Half:
    before = parent.files[parent.manifest.graphs[name].file]
    operators, old = read_onnx(change.onnx).operators, read_onnx(before).operators
    return Half(
        change.precision,
        len(change.onnx),
        len(before),
        operators.total(),
        old.total(),
        change.in_float,
        operators["", "ConvTranspose"],
        change.rewritten,
        speed,
    )
