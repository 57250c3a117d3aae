"""Ways to make a bundle's graphs smaller: pruned latent dimensions or lower precision."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np

from vaekit.bundle.manifest import Manifest
from vaekit.errors import BundleError, ExportError
from vaekit.types import Array, GraphName, PrecisionName
from vaekit_export.compress.assemble import Change
from vaekit_export.compress.judge import Graphs, Judge
from vaekit_export.model import Say
from vaekit_export.passes import apply, read, write
from vaekit_export.passes.metadata import tidy
from vaekit_export.passes.precision import WEIGHTS_ONLY, Convert, LowPrecision, layers_of, lower, to_fp16, to_int8
from vaekit_export.passes.prune import prune_decoder, prune_encoder
from vaekit_export.passes.subpixel import as_convolutions
from vaekit_export.passes.weights import lower_weights

MAX_DELTA_ELBO_PRUNED = 0.1
"""Largest fall of the ELBO by pruning, in nats, measured before the precision is lowered."""


def prune_dead(judge: Judge, manifest: Manifest, dead_below: float, say: Say, *, alone: bool) -> Graphs:
    """Prune dead dimensions from both graphs, except those that the ELBO needs.

    If nothing can be pruned, return the parent's graphs, or with ``alone`` raise BundleError.
    """
    kl, means = np.array(manifest.latent.kl), np.array(manifest.latent.mean)
    dead = sorted((j for j in range(len(kl)) if kl[j] < dead_below), key=lambda j: kl[j])[: len(kl) - 1]
    limit = min(MAX_DELTA_ELBO_PRUNED, judge.limits.delta_elbo)
    while dead:
        kept = tuple(j for j in range(len(kl)) if j not in dead)
        graphs = Graphs(
            apply(judge.parent.encoder, partial(prune_encoder, kept=kept), tidy),
            apply(judge.parent.decoder, partial(prune_decoder, kept=kept, means=means), tidy),
            kept,
        )
        delta = judge.delta_elbo(graphs, limit)
        if delta is not None and delta.nats >= -limit:
            delta = judge.delta_elbo(graphs, limit, exactly=True)
        if delta is None or delta.nats >= -limit:
            say(f"pruned {len(dead)} of {len(kl)} dimensions, those with a KL below {dead_below:g} nats")
            return graphs
        without = f"without it and {len(dead) - 1} more, the ELBO changes by {delta.nats:+.2g} nats"
        say(f"dimension {dead[-1]} is kept: {without}")
        dead.pop()
    reason = (
        f"nothing to prune: none of the {len(kl)} dimensions has a KL below {dead_below:g} nats and can be removed "
        f"within the limits; the least is {kl.min():.3g} (--dead-below sets this bound)"
    )
    if alone:
        raise BundleError(f"{reason}; nothing was published")
    say(reason)
    return judge.parent


def lower_weights_only(precision: LowPrecision, graphs: Graphs, judge: Judge, say: Say) -> dict[GraphName, Change]:
    """Lower the precision of both graphs' weights within the limits.

    A graph stays as it is if its file would not get smaller, because weights alone bring no other gain.
    """
    changes: dict[GraphName, Change] = {}
    for name in ("encoder", "decoder"):
        base = graphs.get(name)

        def convert(keep: Collection[str], base: bytes = base) -> bytes:
            return apply(base, partial(lower_weights, precision=precision, keep=keep), tidy)

        changes[name] = Change(base)
        report = partial(_say_failure, say, name, WEIGHTS_ONLY[precision])
        lowered = lower(list(layers_of(read(base))), convert, partial(_headroom, judge, graphs, name), report)
        if lowered is not None and len(lowered.onnx) < len(apply(base, tidy)):
            changes[name] = Change(lowered.onnx, WEIGHTS_ONLY[precision], lowered.in_float)
    return changes


def lower_arithmetic(
    precision: LowPrecision,
    graphs: Graphs,
    images: Array,
    judge: Judge,
    say: Say,
    broken: list[GraphName],
    *,
    keep_transposed: bool,
) -> dict[GraphName, Change]:
    """Lower the precision of weights and activations within the limits.

    INT8 is calibrated on ``images`` and the judge's latents. A graph stays as it is if none of its layers can be
    lowered. Graphs that ONNX Runtime could not convert or run as a whole are added to ``broken``.
    """
    inputs: dict[GraphName, tuple[str, Array]] = {
        "encoder": ("image", images),
        "decoder": ("z", judge.z[:, graphs.kept]),
    }
    changes: dict[GraphName, Change] = {}
    for name, (input_name, rows) in inputs.items():
        base, rewritten = graphs.get(name), 0
        if precision == "int8" and not keep_transposed:
            base, rewritten = _without_transposed(base)
        lowering = partial(to_fp16, base) if precision == "fp16" else partial(to_int8, base, input_name, rows)

        def convert(keep: Collection[str], lowering: Convert = lowering) -> bytes:
            return _tidied(lowering(keep))

        def report(failure: str, name: GraphName = name) -> None:
            broken.append(name)
            _say_failure(say, name, precision, failure)

        lowered = lower(list(layers_of(read(base))), convert, partial(_headroom, judge, graphs, name), report)
        if lowered is None:
            changes[name] = Change(graphs.get(name))
        else:
            changes[name] = Change(lowered.onnx, precision, lowered.in_float, rewritten)
    return changes


def _headroom(judge: Judge, graphs: Graphs, name: GraphName, data: bytes) -> float:
    return judge.headroom(name, graphs.replace(name, data))


def _tidied(data: bytes) -> bytes:
    """Tidy a graph that another tool wrote.

    Raises ExportError if it cannot be read back.
    """
    try:
        return apply(data, tidy)
    except Exception as error:  # onnx and onnx_ir raise many types for an invalid graph
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExportError(f"ONNX Runtime's tool wrote a graph that cannot be read back: {reason}") from error


def _say_failure(say: Say, name: GraphName, precision: PrecisionName, failure: str) -> None:
    say(f"{name}: not all of it can be {precision} on this machine, so some or all layers stay in float: {failure}")


def _without_transposed(data: bytes) -> tuple[bytes, int]:
    """Rewrite transposed convolutions; return the graph and how many."""
    model = read(data)
    count = as_convolutions(model)
    if not count:
        return data, 0
    tidy(model)
    return write(model), count
