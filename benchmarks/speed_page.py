"""Write the tables of docs/speed.md from benchmarks/results.

    python benchmarks/speed_page.py [--check]

Each file of benchmarks/results is what a benchmark of that name wrote with --json. A table stands in the page between
`<!-- table: NAME -->` and `<!-- end -->`. With --check nothing is written, and the exit code is 1 if the page is not
what the results give.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "speed.md", ROOT / "benchmarks" / "results"

_PLACE = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BACKENDS = {
    "weights": "INT8 weights",
    "qdq": "INT8",
    "eager": "PyTorch, eager",
    "jit": "torch.jit, frozen",
    "compile": "torch.compile",
    "openvino": "OpenVINO",
}
_WAYS = {"loop": "a loop with Pillow", "loader": "PyTorch's DataLoader", "bound": "the bound"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the page's tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    before = PAGE.read_text(encoding="utf-8")
    after = _PLACE.sub(lambda place: f"{place[1]}\n{TABLES[place['name']]()}\n\n{place[3]}", before)
    if options.check:
        return 0 if before == after else 1
    PAGE.write_text(after, encoding="utf-8")
    return 0


def result(name: str) -> dict[str, Any]:
    """Return what a benchmark wrote."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(found: dict[str, float]) -> str:
    """Return a ratio with its range."""
    return f"{found['median']:.2f} ({found['min']:.2f}–{found['max']:.2f})"


def cold_start() -> str:
    """Return the table of whole processes."""
    document = result("cold_start")
    aims = {
        "vaekit / bare script": "≤ 1.25",
        "vaekit / bare script, a flow": "≤ 1.25",
        "vaekit / PyTorch's script": "≤ 0.25",
        "vaekit --help / import typer": "≤ 1.5",
    }
    rows = [(what, spread(document["ratios"][what]), aim) for what, aim in aims.items()]
    return markdown(("", "measured", "aim"), rows)


def runtime_overhead() -> str:
    """Return the table of the class VAE beside bare sessions."""
    document = result("runtime_overhead")
    rows = []
    for graph in ("encoder", "decoder"):
        found = document[graph]
        rows.append((f"{graph}, throughput", spread(found["throughput"]), "≥ 0.98"))
        rows.append((f"{graph}, time of one image", spread(found["latency"]), "≤ 1.05"))
    return markdown(("", "relative to a bare loop", "aim"), rows)


def versus_torch() -> str:
    """Return the table of runtimes."""
    document = result("versus_torch")
    names = list(next(iter(document["ratios"].values())))
    rows = []
    for key, ratios in document["ratios"].items():
        graph, batch = key.split()
        ours = statistics.median(times[key] for times in document["seconds"]["bundle"])
        rows.append((f"{graph}, {batch}", f"{1e6 * ours:,.0f} µs", *(spread(ratios[name]) for name in names)))
    return markdown(("graph, batch", "bundle", *(_BACKENDS[name] for name in names)), rows)


def bulk(name: str) -> Callable[[], str]:
    """Return a function that returns the table of encoding a folder."""

    def table() -> str:
        (found,) = (part for key, part in result(name).items() if key != "machine")
        aims = {"loop": "≥ 1.6", "loader": "≥ 1", "bound": "≥ 0.9"}
        rows = [
            (f"{_WAYS[way]}", f"{statistics.median(found['seconds'][way]):.1f} s", spread(found["ratios"][way]), aim)
            for way, aim in aims.items()
        ]
        own = f"{statistics.median(found['seconds']['vaekit']):.1f} s"
        return markdown(("", "time", "vaekit's rate relative to it", "aim"), [("vaekit", own, "", ""), *rows])

    return table


def training() -> str:
    """Return the table of training loops."""
    rates = result("training")["images_per_second"]
    own = statistics.median(rates["vaekit"])
    rows = [
        (
            name,
            f"{statistics.median(found):,.0f}",
            f"{min(found):,.0f}–{max(found):,.0f}",
            f"{own / statistics.median(found):.2f}",
        )
        for name, found in rates.items()
    ]
    return markdown(("", "images a second", "range", "vaekit is"), rows)


def fixed_costs() -> str:
    """Return the table of where a training's time goes."""
    document = result("fixed_costs")
    ordered = sorted(document["seconds"].items(), key=lambda item: -item[1])
    rows = [(name, f"{spent:.1f} s", f"{spent / document['total']:.1%}") for name, spent in ordered if spent >= 0.05]
    return markdown(("", "time", "share"), rows)


def roofline() -> str:
    """Return the table of layers."""
    document = result("roofline")
    rows = []
    for graph, nodes in document["graphs"].items():
        for node in nodes:
            if node["seconds"] < 1e-5:
                continue
            rate = node["flops"] / node["seconds"] / 1e9
            rows.append(
                (
                    f"{graph}, {node['operator']}",
                    "×".join(map(str, node["output"][1:])),
                    f"{node['flops'] / 1e6:.1f}" if node["flops"] else "",
                    f"{node['bytes'] / 1e6:.2f}",
                    f"{1e6 * node['seconds']:,.0f}",
                    f"{rate:.0f}" if node["flops"] else "",
                    f"{node['bound'] / node['seconds']:.0%}",
                )
            )
    return markdown(("layer", "output", "MFLOP", "MB", "µs", "GFLOP/s", "of the bound"), rows)


def transposed() -> str:
    """Return the table of other forms of transposed convolutions."""
    rows = []
    for layer, times in result("transposed")["seconds"].items():
        ins, outs, side = re.findall(r"\d+", layer)
        cells = []
        for use, form in (("runtime", "2x2"), ("runtime", "3x3"), ("training", "2x2")):
            cells.append(f"{times[f'{use}, {form}'] / times[f'{use}, transposed']:.2f}")
        plain = (f"{1e6 * times[f'{use}, transposed']:,.0f} µs" for use in ("runtime", "training"))
        rows.append((f"{ins} to {outs} channels, {side}x{side}", *plain, *cells))
    head = (
        "layer",
        "in ONNX Runtime",
        "a training step",
        "2x2 in ONNX Runtime",
        "3x3 in ONNX Runtime",
        "2x2 in training",
    )
    return markdown(head, rows)


def pareto() -> str:
    """Return the table of presets and precisions."""
    bundles = sorted(result("pareto")["bundles"].items(), key=lambda item: item[1]["ms_batch_64"])
    rows = [
        (
            name,
            f"{found['ms_batch_64']:.2f}, {found['ms_batch_1']:.3f} ms",
            f"{found['kb']:,.0f} KB",
            f"{found['psnr']:.2f} dB",
            f"{found['minus_elbo']:.1f}",
            "yes" if found["front"] else "",
        )
        for name, found in bundles
    ]
    return markdown(("bundle", "decoder, batch 64 and 1", "size", "PSNR", "−ELBO", "front"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "cold_start": cold_start,
    "runtime_overhead": runtime_overhead,
    "versus_torch": versus_torch,
    "bulk_small": bulk("bulk_small"),
    "bulk_photographs": bulk("bulk_photographs"),
    "training": training,
    "fixed_costs": fixed_costs,
    "roofline": roofline,
    "transposed": transposed,
    "pareto": pareto,
}

if __name__ == "__main__":
    sys.exit(main())
