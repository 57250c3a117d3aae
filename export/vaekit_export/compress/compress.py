"""Compression of a bundle by INT8, float16 or pruning; published only if it is good enough."""

from __future__ import annotations

import hashlib
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import vaekit
from vaekit.bundle.manifest import MANIFEST
from vaekit.bundle.onnx_file import read_onnx
from vaekit.bundle.reading import Bundle, read_bundle
from vaekit.bundle.writing import check_bundle_target, write_bundle
from vaekit.errors import BundleError, CheckError, UsageError
from vaekit.ort.providers import Selection
from vaekit.ort.trial import Trial
from vaekit.system.machine import processor_flags, processor_name
from vaekit.types import GRAPHS, Array, GraphName
from vaekit.vae import VAE
from vaekit_export.compress.assemble import GRAPH_FILES, Change, assemble
from vaekit_export.compress.candidates import (
    MAX_DELTA_ELBO_PRUNED,
    lower_arithmetic,
    lower_weights_only,
    prune_dead,
)
from vaekit_export.compress.judge import Graphs, Judge, Limits, rows_in_memory
from vaekit_export.compress.report import Compression, GraphReport, quality_record
from vaekit_export.compress.speed import Speeds, compare_speed
from vaekit_export.images import read_images
from vaekit_export.model import Say
from vaekit_export.passes.precision import LOW_PRECISIONS, LowPrecision

DEAD_BELOW = 0.01
"""KL in nats below which a dimension counts as dead."""
MIN_PSNR: dict[LowPrecision, float] = {"int8": 42.0, "fp16": 60.0}
"""Lowest allowed PSNR of prior samples in dB, by precision; pruning alone has no such limit."""
MAX_DELTA_ELBO: dict[LowPrecision, float] = {"int8": 5.0, "fp16": 0.1}
"""Largest allowed fall of the mean ELBO in nats, by precision."""

_IMAGES = 512  # of a source or samples, fewer if they are large: every second one calibrates, the others measure
_TOLD_FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "f16c", "avx512_fp16"}
_TOLD_FLAGS |= {"asimddp", "i8mm", "fphp", "asimdhp"}
_FASTER = 1.05  # times the speed of lowered weights, from which activations are lowered too

Candidate = Mapping[GraphName, Change]
"""Changes of both graphs."""


def compress_bundle(
    bundle_path: str | Path,
    target_path: str | Path,
    source: str | None = None,
    *,
    precision: LowPrecision | None = None,
    prune: bool = False,
    dead_below: float = DEAD_BELOW,
    min_psnr: float | None = None,
    max_delta_elbo: float | None = None,
    weights_only: bool | None = None,
    keep_transposed: bool = False,
    seconds: float = 0.5,
    say: Say = lambda message: None,
) -> Compression:
    """Write a smaller bundle, or nothing if it is not good enough.

    ``precision`` is ``int8``, ``fp16`` or None. ``prune`` removes latent dimensions whose mean KL over the held-out
    images is below ``dead_below`` nats. Images of ``source`` calibrate INT8 and measure the ELBO; without a source, the
    bundle's own samples do.

    The PSNR between the new and the old bundle's prior samples must be at least ``min_psnr`` dB, and the mean ELBO may
    fall by at most ``max_delta_elbo`` nats. The defaults are MIN_PSNR and MAX_DELTA_ELBO.

    If ``weights_only`` is True, only the weights are converted, and the graphs compute in float32. Their precision is
    then ``int8-weights`` or ``fp16-weights``. If it is False, activations are converted too. If it is None, both are
    tried, and each graph keeps the one that is faster on this machine. ``keep_transposed`` does not rewrite transposed
    convolutions when activations are converted to INT8; ONNX Runtime's CPU provider has no integer kernel for them.

    Each graph is timed for ``seconds`` at two batch sizes in three rounds. With 0 nothing is timed, and None for
    ``weights_only`` means False.

    Raises UsageError for arguments that contradict each other, BundleError for a bundle that cannot be compressed,
    SourceError for images that cannot be read, and CheckError if the result is not good enough.
    """
    target = Path(target_path)
    limits = _limits(precision, prune, dead_below, min_psnr, max_delta_elbo, seconds)
    parent = read_bundle(bundle_path)
    _check_parent(parent, target, prune)
    request = _Request(precision, prune, dead_below, weights_only, keep_transposed, seconds, say)
    images = _images(parent, source, say)
    with Trial() as trial:
        return _compressed(request, parent, images, Judge(_opened(parent), images.measured, limits, trial), target)


@dataclass(frozen=True)
class _Request:
    """How to compress: the arguments of ``compress_bundle``."""

    precision: LowPrecision | None
    prune: bool
    dead_below: float
    weights_only: bool | None
    keep_transposed: bool
    seconds: float
    say: Say


@dataclass(frozen=True)
class _Images:
    """Images (n, C, H, W) that calibrate INT8, and images that the ELBO is measured on."""

    calibration: Array
    measured: Array
    source: str
    """In words."""


def _compressed(request: _Request, parent: Bundle, images: _Images, judge: Judge, target: Path) -> Compression:
    """Try the candidates, choose one for each graph, and write the bundle."""
    graphs, say = judge.parent, request.say
    if request.prune:
        graphs = prune_dead(judge, parent.manifest, request.dead_below, say, alone=request.precision is None)
    candidates = _candidates(request, images, graphs, judge)
    rows: dict[GraphName, Array] = {"encoder": images.measured, "decoder": judge.z[:, graphs.kept]}
    speeds = _speeds(parent, candidates, graphs.kept, rows, request.seconds, say)
    chosen = {name: _chosen([c[name] for c in candidates], [s[name] for s in speeds]) for name in GRAPHS}
    changes = {name: candidates[index][name] for name, index in chosen.items()}

    psnr, delta = judge.check(Graphs(changes["encoder"].onnx, changes["decoder"].onnx, graphs.kept))
    pruned = tuple(sorted(set(judge.parent.kept) - set(graphs.kept)))
    record = _record(parent, changes, judge.limits) | quality_record(psnr, delta)
    record |= {"pruned": list(pruned), "measured_on": images.source}
    files, manifest = assemble(parent, changes, graphs.kept, rows, record)
    if parent.manifest.flow is not None and manifest.flow is None:
        say(f"the learned prior needs all dimensions: it is left out, and {manifest.priors[0]} is the default")
    write_bundle(target, files, _check_replay)
    reports = {
        name: _report(parent, name, files[GRAPH_FILES[name]], candidates, speeds, index)
        for name, index in chosen.items()
    }
    return Compression(target, manifest, reports, pruned, psnr, delta, images.source)


def _candidates(request: _Request, images: _Images, graphs: Graphs, judge: Judge) -> list[Candidate]:
    """Lower both graphs in each way that was asked for; without a precision they stay as they are.

    Raises CheckError if neither graph can be lowered.
    """
    precision, seconds, say = request.precision, request.seconds, request.say
    if precision is None:
        return [{name: Change(graphs.get(name)) for name in GRAPHS}]
    kinds = (True, False) if request.weights_only is None and seconds > 0 else (bool(request.weights_only),)
    say(_what_is_lowered(precision, kinds, len(images.calibration), images.source))
    broken: list[GraphName] = []
    candidates: list[Candidate] = [
        lower_weights_only(precision, graphs, judge, say)
        if kind
        else lower_arithmetic(
            precision, graphs, images.calibration, judge, say, broken, keep_transposed=request.keep_transposed
        )
        for kind in kinds
    ]
    stays = [name for name in broken if candidates[-1][name].precision == "fp32"]
    if stays and request.weights_only is None and kinds == (False,):
        weights = lower_weights_only(precision, graphs, judge, say)
        candidates = [{name: weights[name] if name in stays else candidates[0][name] for name in GRAPHS}]
    _say_what_stays(candidates, precision, judge.limits, say)
    return candidates


def _limits(
    precision: LowPrecision | None,
    prune: bool,
    dead_below: float,
    min_psnr: float | None,
    max_delta_elbo: float | None,
    seconds: float,
) -> Limits:
    if precision is None and not prune:
        raise UsageError("say how to compress: --int8 or --fp16, --prune, or one of the first two with --prune")
    if precision is not None and precision not in LOW_PRECISIONS:
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
    """Raise BundleError or UsageError for what cannot be compressed or written.

    This is called before any work.
    """
    lowered = {graph.precision for graph in parent.manifest.graphs.values()} - {"fp32"}
    if lowered:
        raise BundleError(
            f"{parent.path} is already compressed, to {', '.join(sorted(lowered))}: compress the bundle that it was "
            "made from"
        )
    if target.exists() and target.resolve() == parent.path.resolve():
        raise UsageError(f"{target} is the bundle itself: write the smaller one to another place with -o")
    if prune and parent.manifest.posterior == "deterministic":
        raise BundleError(
            f"{parent.path} has a deterministic encoder, so no KL shows which of its dimensions are dead: there is "
            "nothing to prune"
        )
    check_bundle_target(target)


def _check_replay(bundle: Bundle) -> None:
    if not _opened(bundle).verify().passed:
        raise CheckError("the new bundle's golden vectors do not replay on this machine: nothing was published")


def _opened(bundle: Bundle) -> VAE:
    return VAE(bundle, selection=Selection("cpu"))


def _images(parent: Bundle, source: str | None, say: Say) -> _Images:
    """Read the images of a source, or draw the bundle's own samples."""
    shape = parent.manifest.image.shape
    if source is None:
        images = _opened(parent).sample(rows_in_memory(shape, _IMAGES))
        return _Images(images[::2], images[1::2], "the bundle's own samples")
    images = read_images(source, shape, rows_in_memory(shape, _IMAGES), say)
    measured = images[1::2] if len(images) > 1 else images
    return _Images(images[::2], measured, Path(source).resolve().name)


def _what_is_lowered(precision: LowPrecision, kinds: tuple[bool, ...], calibrating: int, measured_on: str) -> str:
    if kinds == (True,):
        return f"lowering the weights of both graphs to {precision}"
    calibrated = f", calibrated on {calibrating} images of {measured_on}" if precision == "int8" else ""
    return f"lowering both graphs to {precision}{calibrated}"


def _say_what_stays(candidates: Sequence[Candidate], precision: LowPrecision, limits: Limits, say: Say) -> None:
    """Report a graph that could not be lowered.

    Raises CheckError if neither could.
    """
    stays = [name for name in GRAPHS if all(candidate[name].precision == "fp32" for candidate in candidates)]
    if len(stays) == len(GRAPHS):
        raise CheckError(
            f"no layer of either graph can be {precision} within the limits ({limits.psnr:g} dB on prior samples, "
            f"{limits.delta_elbo:g} nats of ELBO), or {precision} makes neither file smaller: nothing was published. "
            "--min-psnr and --max-delta-elbo set the limits."
        )
    for name in stays:
        say(
            f"{name}: no layer can be {precision} within the limits, or {precision} does not make the file smaller; "
            "it stays as it is"
        )


def _speeds(
    parent: Bundle,
    candidates: Sequence[Candidate],
    kept: tuple[int, ...],
    rows: Mapping[GraphName, Array],
    seconds: float,
    say: Say,
) -> list[dict[GraphName, Speeds]]:
    """Time each candidate against the parent; return no speeds for 0 seconds."""
    if not seconds:
        return [{name: {} for name in GRAPHS} for _ in candidates]
    say(f"timing {len(candidates) + 1} bundles in turn")
    with tempfile.TemporaryDirectory(prefix="vaekit-") as folder:
        bundles = [Path(folder, str(index)) for index in range(len(candidates))]
        for bundle, candidate in zip(bundles, candidates, strict=True):
            write_bundle(bundle, assemble(parent, candidate, kept, rows, {})[0])
        return compare_speed(parent.path, bundles, seconds)


def _chosen(changes: Sequence[Change], speeds: Sequence[Speeds]) -> int:
    """Return the index of the change to use for one graph.

    This is the first with a lower precision, unless a later one is clearly faster.
    """
    best = next((index for index, change in enumerate(changes) if change.precision != "fp32"), 0)
    for index, change in enumerate(changes):
        if change.precision != "fp32" and _mean_speed(speeds[index]) > _FASTER * _mean_speed(speeds[best]):
            best = index
    return best


def _mean_speed(speeds: Speeds) -> float:
    """Return the geometric mean over batch sizes, or 1 if nothing was timed."""
    return statistics.geometric_mean([speed.median for speed in speeds.values()] or [1.0])


def _record(parent: Bundle, changes: Candidate, limits: Limits) -> dict[str, Any]:
    """Return the manifest's record of how the bundle was made."""
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


def _report(
    parent: Bundle,
    name: GraphName,
    data: bytes,
    candidates: Sequence[Candidate],
    speeds: Sequence[Mapping[GraphName, Speeds]],
    chosen: int,
) -> GraphReport:
    """Report on one graph.

    ``data`` is the new graph, and ``chosen`` the index of the candidate that it comes from.
    """
    before = parent.files[parent.manifest.graphs[name].file]
    operators, old = read_onnx(data).operators, read_onnx(before).operators
    change = candidates[chosen][name]
    tried = {candidate[name].precision: speed[name] for candidate, speed in zip(candidates, speeds, strict=True)}
    return GraphReport(
        precision=change.precision,
        bytes=len(data),
        parent_bytes=len(before),
        nodes=operators.total(),
        parent_nodes=old.total(),
        in_float=change.in_float,
        transposed=operators["", "ConvTranspose"],
        rewritten_transposed=change.rewritten,
        speed=speeds[chosen][name],
        tried={precision: other for precision, other in tried.items() if precision not in ("fp32", change.precision)},
    )
