"""A bundle becomes a smaller one: INT8, float16, dead latent dimensions pruned; published only if it is good enough."""

from __future__ import annotations

import hashlib
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import vaekit
from vaekit.bundle.manifest import MANIFEST, Manifest
from vaekit.bundle.onnx_file import read_onnx
from vaekit.bundle.reading import Bundle, read_bundle
from vaekit.errors import BundleError, CheckError, SourceError, UsageError
from vaekit.images.stream import ImageStream
from vaekit.ort.providers import Selection
from vaekit.system.machine import processor_flags, processor_name
from vaekit.types import PRECISIONS, Array, one_of
from vaekit.vae import VAE
from vaekit_export.compress.assemble import GRAPH_FILES, Change, assemble, publish, write
from vaekit_export.compress.judge import PRIOR_SAMPLES, Delta, Graphs, Judge, Limits
from vaekit_export.compress.speed import Speed, Speeds, compare_speed
from vaekit_export.onnx_export import tidy
from vaekit_export.passes.precision import Convert, layers_of, lower, to_fp16, to_int8
from vaekit_export.passes.prune import prune_decoder, prune_encoder
from vaekit_export.passes.subpixel import as_convolutions
from vaekit_export.passes.weights import lower_weights
from vaekit_export.publish import check_target

DEAD_BELOW = 0.01
"""Nats of KL under which a dimension counts as dead."""
MIN_PSNR = {"int8": 42.0, "fp16": 60.0}
"""dB on prior samples, by precision; pruning alone has no such bound."""
MAX_DELTA_ELBO = {"int8": 5.0, "fp16": 0.1}
"""Nats by which the ELBO may fall, by precision."""
MAX_DELTA_ELBO_PRUNED = 0.1
"""The same for pruning, on its own and before the precision is lowered."""

_IMAGES = 512  # of a source: every second one calibrates, the others measure
_TOLD_FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "f16c", "avx512_fp16"}
_TOLD_FLAGS |= {"asimddp", "i8mm", "fphp", "asimdhp"}
_FASTER = 1.05  # times the speed of weights alone, from which activations are lowered too

Say = Callable[[str], None]


@dataclass(frozen=True)
class Half:
    """What became of one graph."""

    precision: str
    bytes: int
    parent_bytes: int
    nodes: int
    parent_nodes: int
    in_float: tuple[str, ...]
    """Layers left in float32, or with float16 weights among int8 ones, the most sensitive first."""
    transposed: int
    """Transposed convolutions in it."""
    rewritten: int
    """Transposed convolutions that became ordinary ones."""
    speed: dict[int, Speed]
    """By batch size; empty where nothing was timed."""
    tried: dict[str, dict[int, Speed]]
    """The same of what was timed too and not taken, by precision."""


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
    delta_elbo: Delta | None
    """Mean ELBO less the parent's; None where there is no likelihood."""
    measured_on: str
    """Which images the ELBO is of."""


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
    weights_only: bool | None = None,
    keep_transposed: bool = False,
    seconds: float = 0.5,
    say: Say = lambda message: None,
) -> Compression:
    """Write a smaller bundle, whole, or nothing where it is not good enough.

    ``precision`` is ``int8``, ``fp16`` or None; ``prune`` takes out dimensions whose KL over the held-out images is
    under ``dead_below`` nats. Images of ``source`` calibrate INT8 and measure the ELBO; without one, the bundle's own
    samples do. The result must decode prior samples to at least ``min_psnr`` dB of the parent's images, with an ELBO
    no more than ``max_delta_elbo`` nats under its; the defaults are MIN_PSNR and MAX_DELTA_ELBO.

    ``weights_only`` lowers the weights and leaves activations and arithmetic in float32 (the graph's precision is then
    ``int8-weights`` or ``fp16-weights``); False lowers both; None does both, and each half keeps the one that is faster
    here. Each half is timed for ``seconds`` at two batch sizes in three rounds; 0 times nothing, and None is then
    False. ``keep_transposed`` leaves transposed convolutions, which no integer kernel of ONNX Runtime's CPU provider
    runs, as they are where activations are lowered.

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
    ways = [{name: Change(getattr(graphs, name)) for name in GRAPH_FILES}]
    if precision is not None:
        kinds = (True, False) if weights_only is None and seconds > 0 else (bool(weights_only),)
        if kinds == (True,):
            say(f"lowering the weights of both graphs to {precision}")
        else:
            calibrated = f", calibrated on {len(calibration)} images of {measured_on}" if precision == "int8" else ""
            say(f"lowering both graphs to {precision}{calibrated}")
        ways = [_lowered(precision, kind, graphs, calibration, judge, keep_transposed) for kind in kinds]
        _say_what_stays(ways, precision, limits, say)
    rows = {"encoder": measured, "decoder": judge.z[:, graphs.kept]}
    speeds = _speeds(parent, ways, graphs.kept, rows, seconds, say)
    chosen = {name: _chosen([way[name] for way in ways], [speed[name] for speed in speeds]) for name in GRAPH_FILES}
    changes = {name: ways[index][name] for name, index in chosen.items()}

    psnr, delta = judge.check(Graphs(changes["encoder"].onnx, changes["decoder"].onnx, graphs.kept))
    pruned = tuple(sorted(set(judge.parent.kept) - set(graphs.kept)))
    record = _record(parent, changes, limits) | {
        "pruned": list(pruned),
        "psnr": psnr if math.isfinite(psnr) else None,
        "delta_elbo": None if delta is None else delta.nats,
        "delta_elbo_standard_error": None if delta is None else delta.standard_error,
        "measured_on": measured_on,
    }
    contents, manifest = assemble(parent, changes, graphs.kept, rows, record)
    publish(target, contents)
    halves = {}
    for name, index in chosen.items():
        tried: dict[str, dict[int, Speed]] = {
            way[name].precision: speed[name] for way, speed in zip(ways, speeds, strict=True)
        }
        halves[name] = _half(parent, name, changes[name], contents[GRAPH_FILES[name]], speeds[index][name], tried)
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
    limit = min(MAX_DELTA_ELBO_PRUNED, judge.limits.delta_elbo)
    while dead:
        kept = tuple(j for j in range(len(kl)) if j not in dead)
        graphs = Graphs(
            tidy(prune_encoder(judge.parent.encoder, kept)),
            tidy(prune_decoder(judge.parent.decoder, kept, means)),
            kept,
        )
        delta = judge.delta_elbo(graphs, limit)
        if delta is not None and delta.nats >= -limit:
            delta = judge.delta_elbo(graphs, limit, exactly=True)
        if delta is None or delta.nats >= -limit:
            say(f"pruned {len(dead)} of {len(kl)} dimensions, of KL under {dead_below:g} nats")
            return graphs
        without = f"without it and {len(dead) - 1} more the ELBO changes by {delta.nats:+.2g} nats"
        say(f"dimension {dead[-1]} stays: {without}")
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
    precision: str, weights_only: bool, graphs: Graphs, images: Array, judge: Judge, keep_transposed: bool
) -> dict[str, Change]:
    """Both halves in lower precision, as far as the limits allow; as they were where that is nowhere.

    A half whose file would not shrink keeps its weights: there is nothing else to gain by weights alone.
    """
    inputs = {"encoder": ("image", images), "decoder": ("z", judge.z[:, graphs.kept])}
    headroom = {"encoder": judge.encoder_headroom, "decoder": judge.decoder_headroom}
    changes = {}
    for name, (input_name, rows) in inputs.items():
        base: bytes = getattr(graphs, name)
        rewritten = 0
        convert: Convert = partial(lower_weights, base, precision)
        if not weights_only:
            if precision == "int8" and not keep_transposed:
                base, rewritten = _without_transposed(base)
            convert = partial(to_fp16, base) if precision == "fp16" else partial(to_int8, base, input_name, rows)
        changes[name] = Change(getattr(graphs, name))
        lowered = lower(list(layers_of(base)), convert, partial(_headroom_with, headroom[name], graphs, name))
        if lowered is None:
            continue
        data = tidy(lowered.onnx)
        if not weights_only or len(data) < len(tidy(base)):
            told = f"{precision}-weights" if weights_only else precision
            changes[name] = Change(data, one_of(PRECISIONS, told, "precision"), lowered.in_float, rewritten)
    return changes


def _speeds(
    parent: Bundle,
    ways: Sequence[Mapping[str, Change]],
    kept: tuple[int, ...],
    rows: Mapping[str, Array],
    seconds: float,
    say: Say,
) -> list[Speeds]:
    """How fast each way of changing both graphs is, over the parent; empty speeds for 0 seconds."""
    if not seconds:
        return [{name: {} for name in GRAPH_FILES} for _ in ways]
    say(f"timing {len(ways) + 1} bundles in turn")
    with tempfile.TemporaryDirectory(prefix="vaekit-") as folder:
        bundles = [
            write(Path(folder, str(index)), assemble(parent, way, kept, rows, {})[0]) for index, way in enumerate(ways)
        ]
        return compare_speed(parent.path, bundles, seconds)


def _chosen(changes: Sequence[Change], speeds: Sequence[Mapping[int, Speed]]) -> int:
    """Which change of one half to take: the first that was lowered at all, but for one that is faster."""
    best = next((index for index, change in enumerate(changes) if change.precision != "fp32"), 0)
    for index, change in enumerate(changes):
        if change.precision != "fp32" and _mean_speed(speeds[index]) > _FASTER * _mean_speed(speeds[best]):
            best = index
    return best


def _mean_speed(speeds: Mapping[int, Speed]) -> float:
    """Geometric mean over batch sizes; 1 where nothing was timed."""
    return statistics.geometric_mean([speed.median for speed in speeds.values()] or [1.0])


def _say_what_stays(ways: Sequence[Mapping[str, Change]], precision: str, limits: Limits, say: Say) -> None:
    """Name a half that could be lowered in no way. Raises CheckError where neither could."""
    stays = [name for name in GRAPH_FILES if all(way[name].precision == "fp32" for way in ways)]
    if len(stays) == len(GRAPH_FILES):
        raise CheckError(
            f"no layer of either graph can be {precision} at {limits.psnr:g} dB on prior samples and "
            f"{limits.delta_elbo:g} nats of ELBO, or would be smaller so, nothing was published; --min-psnr and "
            "--max-delta-elbo move these bounds"
        )
    for name in stays:
        say(f"{name}: no layer of it can be {precision} within the limits, or would be smaller so; it stays as it is")


def _headroom_with(headroom: Callable[[Graphs], float], graphs: Graphs, name: str, data: bytes) -> float:
    """What is left to the limits with another graph in the place of one half."""
    encoder, decoder = (data if half == name else getattr(graphs, half) for half in GRAPH_FILES)
    return headroom(Graphs(encoder, decoder, graphs.kept))


def _without_transposed(data: bytes) -> tuple[bytes, int]:
    model = onnx.load_from_string(data)
    count = as_convolutions(model)
    return (tidy(model.SerializeToString()), count) if count else (data, 0)


def _record(parent: Bundle, changes: Mapping[str, Change], limits: Limits) -> dict[str, Any]:
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


def _half(
    parent: Bundle,
    name: str,
    change: Change,
    data: bytes,
    speed: dict[int, Speed],
    tried: dict[str, dict[int, Speed]],
) -> Half:
    before = parent.files[parent.manifest.graphs[name].file]
    operators, old = read_onnx(data).operators, read_onnx(before).operators
    return Half(
        change.precision,
        len(data),
        len(before),
        operators.total(),
        old.total(),
        change.in_float,
        operators["", "ConvTranspose"],
        change.rewritten,
        speed,
        {precision: other for precision, other in tried.items() if precision not in ("fp32", change.precision)},
    )
