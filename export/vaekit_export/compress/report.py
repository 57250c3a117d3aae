"""The result of a compression: sizes, quality and speed, as JSON and as notes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaekit.bundle.manifest import Manifest
from vaekit.system.machine import has_fast_int8
from vaekit.types import GraphName, PrecisionName
from vaekit_export.compress.judge import Delta
from vaekit_export.compress.speed import Speed, Speeds

_GAIN = 1.05  # times the parent's images per second, from which a graph counts as faster


@dataclass(frozen=True)
class GraphReport:
    """The result for one graph."""

    precision: PrecisionName
    bytes: int
    parent_bytes: int
    nodes: int
    parent_nodes: int
    in_float: tuple[str, ...]
    """Layers that stay in float32, or have float16 weights in an ``int8-weights`` graph, the most sensitive first."""
    transposed: int
    """Number of transposed convolutions in the new graph."""
    rewritten_transposed: int
    """Number of transposed convolutions rewritten as ordinary ones."""
    speed: Speeds
    """Speed divided by the parent's; empty if nothing was timed."""
    tried: dict[PrecisionName, Speeds]
    """Speeds of the precisions that were timed and not chosen."""

    @property
    def ratio(self) -> float:
        """Return how many times smaller the graph is than the parent's."""
        return self.parent_bytes / self.bytes

    def to_json(self) -> dict[str, Any]:
        """Return the graph's part of the JSON document."""
        document = dataclasses.asdict(self) | {"ratio": self.ratio, "in_float": list(self.in_float)}
        del document["transposed"]
        document["speed"] = _speeds_to_json(self.speed)
        document["tried"] = {precision: _speeds_to_json(speeds) for precision, speeds in self.tried.items()}
        return document


@dataclass(frozen=True)
class Compression:
    """A published bundle compared with its parent."""

    path: Path
    manifest: Manifest
    graphs: dict[GraphName, GraphReport]
    pruned: tuple[int, ...]
    """The parent's latent dimensions that were removed."""
    psnr: float
    """PSNR in dB between its prior samples and the parent's; infinite if they are equal."""
    delta_elbo: Delta | None
    """Mean ELBO minus the parent's; None for a model without an ELBO."""
    measured_on: str
    """The images that the ELBO was measured on, in words."""

    @property
    def bytes(self) -> int:
        """Return the size of both graphs in bytes."""
        return sum(graph.bytes for graph in self.graphs.values())

    @property
    def parent_bytes(self) -> int:
        """Return the size of the parent's graphs in bytes."""
        return sum(graph.parent_bytes for graph in self.graphs.values())

    @property
    def ratio(self) -> float:
        """Return how many times smaller both graphs together are."""
        return self.parent_bytes / self.bytes

    @property
    def record(self) -> dict[str, Any]:
        """Return the manifest's record: limits, quality and processor."""
        record: dict[str, Any] = self.manifest.provenance["compression"]
        return record

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document of ``vaekit compress --json``.

        An infinite PSNR becomes null.
        """
        kept = ("psnr", "min_psnr", "delta_elbo", "delta_elbo_standard_error", "max_delta_elbo", "measured_on")
        return {
            "output": str(self.path),
            "latent": self.manifest.latent.shape[0],
            "pruned": list(self.pruned),
            **{key: self.record[key] for key in kept},
            "bytes": self.bytes,
            "parent_bytes": self.parent_bytes,
            "ratio": self.ratio,
            "graphs": {name: graph.to_json() for name, graph in self.graphs.items()},
            "processor": self.record["processor"],
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """Return notes on layers left in float and on missing gains.

        Each gives the reason if it is known.
        """
        flags = frozenset(self.record["processor"]["flags"])
        return [f"{name}: {note}" for name, graph in self.graphs.items() for note in _notes(graph, flags)]


def quality_record(psnr: float, delta: Delta | None) -> dict[str, Any]:
    """Return the measured quality for the manifest."""
    return {
        "psnr": psnr if math.isfinite(psnr) else None,
        "delta_elbo": None if delta is None else delta.nats,
        "delta_elbo_standard_error": None if delta is None else delta.standard_error,
    }


def _speeds_to_json(speeds: Speeds) -> dict[str, dict[str, float]]:
    return {str(batch): dataclasses.asdict(speed) for batch, speed in speeds.items()}


def _notes(graph: GraphReport, flags: frozenset[str]) -> list[str]:
    notes = []
    if graph.in_float:
        layers = ", ".join(graph.in_float)
        kept = "have float16 weights" if graph.precision == "int8-weights" else "stay in float32"
        notes.append(f"the most sensitive layers {kept}: {layers}")
    if graph.rewritten_transposed == 1:
        notes.append("1 transposed convolution became an ordinary one for integer kernels")
    elif graph.rewritten_transposed:
        notes.append(f"{graph.rewritten_transposed} transposed convolutions became ordinary ones for integer kernels")
    if graph.precision != "fp32" and graph.bytes >= graph.parent_bytes:
        notes.append(f"not smaller: in so small a graph, {graph.precision} adds as many bytes as it saves")
    for precision, speeds in graph.tried.items():
        notes.append(f"{graph.precision} was chosen; {precision} runs at {_in_words(speeds)} on this machine")
    no_gain = {batch: speed for batch, speed in graph.speed.items() if speed.median < _GAIN}
    if no_gain:
        verdict = "slower" if any(_is_slower(speed) for speed in no_gain.values()) else "not faster"
        notes.append(f"{verdict} on this machine, {_in_words(no_gain)}{_reason(graph, flags)}")
    return notes


def _is_slower(speed: Speed) -> bool:
    """Return whether a graph is clearly slower.

    It must be slower in every round, and clearly in the median. A smaller difference also occurs when the same graph is
    timed twice.
    """
    return speed.median < 1 / _GAIN and speed.max < 1


def _in_words(speeds: Mapping[int, Speed]) -> str:
    return ", ".join(f"x{speed.median:.2f} at batch size {batch}" for batch, speed in speeds.items())


def _reason(graph: GraphReport, flags: frozenset[str]) -> str:
    """Return why a graph is not faster, as the end of a note."""
    match graph.precision:
        case "int8-weights" | "fp16-weights":
            return ": it computes in float32, like the bundle that it was made from"
        case "fp16":
            return ": on most processors ONNX Runtime computes float16 in float32"
        case "int8" if graph.transposed:
            return ": ONNX Runtime's CPU provider has no integer kernel for transposed convolutions"
        case "int8" if not has_fast_int8(flags):
            return ": this processor has no VNNI or other dot product for 8-bit integers"
        case "int8":
            return ": at this size, the conversion to integers and back takes the time that is saved"
        case "fp32":
            return ""
