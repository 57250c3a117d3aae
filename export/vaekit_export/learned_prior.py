"""The graph of a learned prior: its export, its parity, its golden vectors and its part of the manifest.

Parity is checked on rows that hold z, t and label together: they are further dimensions or channels behind those of z.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vaekit.bundle.manifest import FlowSpec
from vaekit.maths.prior import draw_normal
from vaekit.training.flow import Flow
from vaekit.types import Array
from vaekit_export.model import Model, rows_of_images
from vaekit_export.onnx_export import BATCH_AXIS, ExportedGraph, export_with_inputs
from vaekit_export.parity import Result, Tolerances, check_parity, in_batches, torch_runner
from vaekit_export.passes import apply
from vaekit_export.passes.metadata import describe, set_metadata

STEPS = 4
"""Steps in which the edge integrates a flow, unless it is asked for others."""
_ROWS = 256
_FAR = 3
_BATCH = 64


class _Packed(nn.Module):
    """The velocity of rows that hold all inputs; ``size`` is the number of z's dimensions or channels."""

    def __init__(self, inner: nn.Module, size: int) -> None:
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, rows: Tensor) -> Tensor:
        inputs = _unpacked(rows.numpy(), self.size)
        velocity: Tensor = self.inner(*map(torch.from_numpy, inputs.values()))
        return velocity


def _unpacked(rows: Array, size: int) -> dict[str, Array]:
    others = rows[:, size:].reshape(len(rows), rows.shape[1] - size, -1)[:, :, 0]
    inputs = {"z": rows[:, :size], "t": others[:, 0]} | ({"label": others[:, 1:]} if others.shape[1] > 1 else {})
    return {name: np.ascontiguousarray(part) for name, part in inputs.items()}


def _packed(z: Array, t: Array, label: Array) -> Array:
    """Return rows of z (N, …), t (N,) and label (N, K + 1), or (N, 0) without labels."""
    others = np.concatenate((t[:, None], label), axis=1)
    others = np.broadcast_to(others.reshape(*others.shape, *[1] * (z.ndim - 2)), (*others.shape, *z.shape[2:]))
    return np.concatenate((z, others), axis=1).astype(np.float32)


@dataclass(frozen=True)
class LearnedPrior:
    """A flow that passed its parity check."""

    graph: ExportedGraph
    results: list[Result]
    spec: FlowSpec
    golden: dict[str, Array]
    """``flow_z``, ``flow_t``, ``flow_label`` if there are labels, and PyTorch's ``velocity``."""


def export_flow(flow: Flow, model: Model, opset: int, tolerances: Tolerances, golden_rows: int) -> LearnedPrior:
    """Export a flow and compare it with PyTorch.

    Raises ExportError and ParityError as ``vaekit_export.publish.export_run`` does.
    """
    z, t, size = torch.randn(2, *model.latent_shape), torch.rand(2), model.latent_shape[0]
    columns = len(flow.labels) + 1 if flow.labels else 0
    examples = {"z": (z, model.latent_axes), "t": (t, BATCH_AXIS)}
    if columns:
        examples["label"] = torch.eye(columns)[:2], BATCH_AXIS
    data = export_with_inputs(flow.network, examples, ("velocity",), model.latent_axes, opset=opset)
    metadata = describe("prior", "fp32", model.image_spec, model.latent_shape, model.posterior, model.likelihood)
    described = apply(data, partial(set_metadata, metadata=metadata))
    packed = _Packed(flow.network, size).eval()
    unpacked = partial(_unpacked, size=size)
    graph = ExportedGraph("prior", packed, described, "z", ("velocity",), model.latent_axes, unpacked)
    count = rows_of_images(model.image_shape, _ROWS)
    noise = draw_normal(int(np.prod(model.latent_shape)), 2 * count).reshape(2 * count, *model.latent_shape)
    times = np.random.default_rng(0).random(2 * count, np.float32)
    labels = np.resize(np.eye(columns, dtype=np.float32), (2 * count, columns))  # each in turn
    rows = _packed(noise, times, labels)
    inputs = {
        "noise at times in [0, 1]": rows[:count],
        "the same, three times as far": _packed(_FAR * noise, times, labels)[count:],
    }
    results = check_parity(graph, inputs, tolerances)
    golden = rows[:golden_rows]
    (velocity,) = in_batches(torch_runner(packed, "prior"), golden, _BATCH)
    vectors = {f"flow_{name}": part for name, part in unpacked(golden).items()} | {"velocity": velocity}
    mean, std = (tuple(map(float, part)) for part in (flow.mean, flow.std))
    weights = None if flow.label_weights is None else tuple(map(float, flow.label_weights))
    spec = FlowSpec(STEPS, mean, std, weights, "normal" if flow.mixture is None else "mixture")
    return LearnedPrior(graph, results, spec, vectors)
