"""The report of a layer-by-layer comparison: parity.json, parity.txt and parity.png."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vaekit.errors import MissingExtraError, VaekitError
from vaekit.output.plots import new_figure, save_figure
from vaekit.output.table import text_table
from vaekit.system.files import replacing_folder
from vaekit_export.explain import DECADES, Explanation
from vaekit_export.parity import Tolerances

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT, TABLE, PLOT = "parity.json", "parity.txt", "parity.png"


def write_report(folder: Path, explanations: Sequence[Explanation], tolerances: Tolerances) -> None:
    """Write a report folder, replacing an older report.

    It has parity.json, parity.txt and, if matplotlib is installed, parity.png. Raises VaekitError if the folder exists
    and is not a report, or cannot be written.
    """
    if folder.exists() and not (folder / REPORT).is_file():
        raise VaekitError(f"{folder} exists and is not a parity report: move it away")
    with replacing_folder(folder) as temporary:
        document = {
            "atol": tolerances.atol,
            "rtol": tolerances.rtol,
            "decades": list(DECADES),
            "graphs": [_document(explanation) for explanation in explanations],
        }
        (temporary / REPORT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        lines = [line for explanation in explanations for line in (*table(explanation), "")]
        (temporary / TABLE).write_text("\n".join(lines), encoding="utf-8")
        try:
            _draw(explanations, temporary / PLOT)
        except MissingExtraError:
            return


def table(explanation: Explanation) -> list[str]:
    """Return a table of the layers, followed by the headline.

    ``->`` marks the first layer that differs, ``!`` later ones.
    """
    rows = [("", "node", "operator", "module", "max |a - b|", "mean |a - b|", "of allowed")]
    for layer in explanation.layers:
        mark = "->" if layer is explanation.first else "" if layer.agrees else "!"
        figures = (f"{layer.max_abs:.2e}", f"{layer.mean_abs:.2e}", f"x{layer.max_ratio:.3g}")
        module = "(output)" if layer.is_output else layer.module
        rows.append((mark, layer.node, layer.operator, module, *figures))
    covered = f"{len(explanation.layers)} layers over {explanation.nodes} nodes, {explanation.rows} rows"
    verdict = explanation.headline() if explanation.first else f"{explanation.graph}: every layer agrees"
    return [*text_table(rows), f"{verdict} ({covered})"]


def _document(explanation: Explanation) -> dict[str, Any]:
    first = explanation.first
    return {
        "graph": explanation.graph,
        "rows": explanation.rows,
        "nodes": explanation.nodes,
        "first": None if first is None else first.node,
        "headline": explanation.headline() if first else None,
        "worst_row": explanation.worst_row,
        "layers": [
            {key: None if value == np.inf else value for key, value in dataclasses.asdict(layer).items()}
            | {"agrees": layer.agrees}
            for layer in explanation.layers
        ],
    }


def _draw(explanations: Sequence[Explanation], path: Path) -> None:
    """Draw errors and histograms by layer, and the worst row of both runtimes."""
    figure = new_figure(13, 4.5 * len(explanations))
    for row, explanation in zip(figure.subplots(len(explanations), 3, squeeze=False), explanations, strict=True):
        _draw_growth(row[0], explanation)
        _draw_histograms(row[1], explanation)
        _draw_worst(row[2], explanation)
    save_figure(figure, path)


def _draw_growth(axes: Axes, explanation: Explanation) -> None:
    places = range(len(explanation.layers))
    names = [f"{layer.operator} {layer.module}".strip() for layer in explanation.layers]
    for label, numbers in (
        ("largest", [layer.max_abs for layer in explanation.layers]),
        ("mean", [layer.mean_abs for layer in explanation.layers]),
    ):
        axes.semilogy(places, np.clip(np.nan_to_num(numbers, posinf=1e30), 1e-12, 1e30), marker="o", label=label)
    if explanation.first is not None:
        axes.axvline(explanation.layers.index(explanation.first), color="red", linestyle=":", label="first to differ")
    axes.set_xticks(places, names, rotation=60, ha="right", fontsize="x-small")
    axes.set_ylabel("|ONNX Runtime - PyTorch|")
    axes.set_title(f"{explanation.graph}: error by layer")
    axes.legend(fontsize="small")


def _draw_histograms(axes: Axes, explanation: Explanation) -> None:
    counts = np.array([layer.histogram for layer in explanation.layers], np.float64)
    axes.imshow(counts / counts.sum(axis=1, keepdims=True), aspect="auto", cmap="Blues")
    labels = ["less", *(f"1e{power}" for power in list(DECADES)[1:]), "more"]
    axes.set_xticks(range(len(labels)), labels, rotation=60, fontsize="x-small")
    axes.set_yticks(range(len(counts)), [layer.node for layer in explanation.layers], fontsize="x-small")
    axes.set_title("share of elements with a difference under")


def _draw_worst(axes: Axes, explanation: Explanation) -> None:
    a, b = explanation.worst_onnx, explanation.worst_torch
    if a.ndim == 3 and a.shape[0] in (1, 3):
        gap = np.ones((a.shape[0], a.shape[1], 1), np.float32)
        pair = np.nan_to_num(np.concatenate((a, gap, b), axis=2)).clip(0, 1).transpose(1, 2, 0)
        axes.imshow(pair if pair.shape[2] == 3 else pair[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"row {explanation.worst_row}: ONNX Runtime, PyTorch")
        return
    axes.plot(b.ravel(), label="PyTorch", linewidth=3, alpha=0.5)
    axes.plot(a.ravel(), label="ONNX Runtime")
    axes.set_title(f"row {explanation.worst_row}: the first output")
    axes.legend(fontsize="small")
