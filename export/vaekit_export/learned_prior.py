"""The graph of a learned prior: its export, its parity, its golden vectors and its part of the manifest.

Parity is checked on rows that hold z and t together: t is one more dimension or channel behind those of z.
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

STEPS = 8
"""Steps in which the edge integrates a flow, unless it is asked for others."""
_ROWS = 256
_BATCH = 64


class _Packed(nn.Module):
    """The velocity of rows that hold z and t."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, rows: Tensor) -> Tensor:
        velocity: Tensor = self.inner(rows[:, :-1], rows[:, -1].flatten(1)[:, 0] if rows.ndim > 2 else rows[:, -1])
        return velocity


def _unpacked(rows: Array) -> dict[str, Array]:
    t = rows[:, -1].reshape(len(rows), -1)[:, 0]
    return {"z": np.ascontiguousarray(rows[:, :-1]), "t": np.ascontiguousarray(t)}


def _packed(z: Array, t: Array) -> Array:
    last = np.broadcast_to(t.reshape(-1, *[1] * (z.ndim - 1)), (len(z), 1, *z.shape[2:]))
    return np.concatenate((z, last), axis=1).astype(np.float32)


@dataclass(frozen=True)
class LearnedPrior:
    """A flow that passed its parity check."""

    graph: ExportedGraph
    results: list[Result]
    spec: FlowSpec
    golden: dict[str, Array]
    """``flow_z``, ``flow_t`` and PyTorch's ``velocity``."""


def export_flow(flow: Flow, model: Model, opset: int, tolerances: Tolerances, golden_rows: int) -> LearnedPrior:
    """Export a flow and compare it with PyTorch.

    Raises ExportError and ParityError as ``vaekit_export.publish.export_run`` does.
    """
    z, t = torch.randn(2, *model.latent_shape), torch.rand(2)
    examples = {"z": (z, model.latent_axes), "t": (t, BATCH_AXIS)}
    data = export_with_inputs(flow.network, examples, ("velocity",), model.latent_axes, opset=opset)
    metadata = describe("prior", "fp32", model.image_spec, model.latent_shape, model.posterior, model.likelihood)
    described = apply(data, partial(set_metadata, metadata=metadata))
    packed = _Packed(flow.network).eval()
    graph = ExportedGraph("prior", packed, described, "z", ("velocity",), model.latent_axes, _unpacked)
    count = rows_of_images(model.image_shape, _ROWS)
    noise = draw_normal(int(np.prod(model.latent_shape)), 2 * count).reshape(2 * count, *model.latent_shape)
    times = np.random.default_rng(0).random(2 * count, np.float32)
    rows = _packed(noise, times)
    inputs = {"noise at times in [0, 1]": rows[:count], "the same, three times as far": rows[count:] * _far(rows)}
    results = check_parity(graph, inputs, tolerances)
    golden = rows[:golden_rows]
    (velocity,) = in_batches(torch_runner(packed, "prior"), golden, _BATCH)
    vectors = {f"flow_{name}": part for name, part in _unpacked(golden).items()} | {"velocity": velocity}
    mean, std = (tuple(map(float, part)) for part in (flow.mean, flow.std))
    return LearnedPrior(graph, results, FlowSpec(STEPS, mean, std), vectors)


def _far(rows: Array) -> Array:
    """Return factors of 3 for z and 1 for t, for rows (N, d + 1, …)."""
    factors = np.full((1, rows.shape[1], *[1] * (rows.ndim - 2)), 3, np.float32)
    factors[:, -1] = 1
    return factors
