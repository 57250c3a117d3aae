"""What a compression did: sizes, quality and speed, as a document and in words."""

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

_GAIN = 1.05  # images a second over the parent's that count as faster


@dataclass(frozen=True)
class GraphReport:
    """What became of one graph."""

    precision: PrecisionName
    bytes: int
    parent_bytes: int
    nodes: int
    parent_nodes: int
    in_float: tuple[str, ...]
    """Layers left in float32, or with float16 weights among int8 ones, the most sensitive first."""
    transposed: int
    """Transposed convolutions in it."""
    rewritten_transposed: int
    """Transposed convolutions that became ordinary ones."""
    speed: Speeds
    """Over the parent's; empty where nothing was timed."""
    tried: dict[PrecisionName, Speeds]
    """The same of what was timed too and not taken."""

    @property
    def ratio(self) -> float:
        """How many times smaller it is."""
        return self.parent_bytes / self.bytes

    def to_json(self) -> dict[str, Any]:
        """Return its part of the JSON document, speeds by batch size."""
        document = dataclasses.asdict(self) | {"ratio": self.ratio, "in_float": list(self.in_float)}
        del document["transposed"]
        document["speed"] = _speeds_to_json(self.speed)
        document["tried"] = {precision: _speeds_to_json(speeds) for precision, speeds in self.tried.items()}
        return document


@dataclass(frozen=True)
class Compression:
    """A published bundle, and what it lost and gained."""

    path: Path
    manifest: Manifest
    graphs: dict[GraphName, GraphReport]
    pruned: tuple[int, ...]
    """Dimensions of the parent that are gone."""
    psnr: float
    """dB of decoded prior samples against the parent's; infinite where they are equal."""
    delta_elbo: Delta | None
    """Mean ELBO less the parent's; None where there is no likelihood."""
    measured_on: str
    """Which images the ELBO is of."""

    @property
    def bytes(self) -> int:
        """Of both graphs."""
        return sum(graph.bytes for graph in self.graphs.values())

    @property
    def parent_bytes(self) -> int:
        """Of both graphs of the parent."""
        return sum(graph.parent_bytes for graph in self.graphs.values())

    @property
    def ratio(self) -> float:
        """How many times smaller both graphs together are."""
        return self.parent_bytes / self.bytes

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest keeps of the compression: limits, quality and the processor it was measured on."""
        record: dict[str, Any] = self.manifest.provenance["compression"]
        return record

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document of ``vaekit compress --json``; an infinite PSNR is null."""
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
        """Say what was left in float and where there was no gain, with the reason where it is known."""
        flags = frozenset(self.record["processor"]["flags"])
        return [f"{name}: {note}" for name, graph in self.graphs.items() for note in _notes(graph, flags)]


def quality_record(psnr: float, delta: Delta | None) -> dict[str, Any]:
    """What the manifest keeps of the quality that was measured."""
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
        kept = f"float16 weights in {layers}" if graph.precision == "int8-weights" else f"{layers} stayed in float32"
        notes.append(f"{kept}, as the most sensitive")
    if graph.rewritten_transposed == 1:
        notes.append("1 transposed convolution became an ordinary one for integer kernels")
    elif graph.rewritten_transposed:
        notes.append(f"{graph.rewritten_transposed} transposed convolutions became ordinary ones for integer kernels")
    if graph.precision != "fp32" and graph.bytes >= graph.parent_bytes:
        notes.append(f"is no smaller; what {graph.precision} adds to so small a graph is as large as it saves")
    for precision, speeds in graph.tried.items():
        notes.append(f"{graph.precision} was taken, as {precision} runs at {_in_words(speeds)} here")
    no_gain = {batch: speed for batch, speed in graph.speed.items() if speed.median < _GAIN}
    if no_gain:
        verdict = "is slower" if any(_is_slower(speed) for speed in no_gain.values()) else "gains no speed"
        notes.append(f"{verdict} here, {_in_words(no_gain)}{_reason(graph, flags)}")
    return notes


def _is_slower(speed: Speed) -> bool:
    """Beyond what timing the same thing twice gives: in every round, and clearly in the median."""
    return speed.median < 1 / _GAIN and speed.max < 1


def _in_words(speeds: Mapping[int, Speed]) -> str:
    return ", ".join(f"x{speed.median:.2f} at batch size {batch}" for batch, speed in speeds.items())


def _reason(graph: GraphReport, flags: frozenset[str]) -> str:
    """Why there is no gain in speed."""
    match graph.precision:
        case "int8-weights" | "fp16-weights":
            return ": it computes in float32, as the bundle that it was made from"
        case "fp16":
            return ": on most processors ONNX Runtime computes float16 in float32"
        case "int8" if graph.transposed:
            return ": ONNX Runtime has no integer transposed convolution for processors"
        case "int8" if not has_fast_int8(flags):
            return ": this processor has no VNNI or dot product for 8-bit integers"
        case "int8":
            return ": at that size, turning numbers into integers and back costs what it saves"
        case "fp32":
            return ""
