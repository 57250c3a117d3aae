"""What does each opset cost, and which ONNX Runtime loads it? Both graphs of the default model at every opset.

    python benchmarks/compatibility.py [--run vae] [--opsets 17 21] [--versions 1.15.0 1.17.0] [--json FILE]

Reports for each opset that the installed tools support: the IR version, the nodes, the bytes, the speed at batch size
64 relative to the first opset, and the oldest ONNX Runtime that loads and runs both files. Timings are interleaved and
run in separate processes; the first opset against itself shows the noise. To find the oldest version, each of
--versions is installed in its own venv, oldest first, and runs tests/packaging/run_bundle_bare.py. Versions that cannot
be installed are reported and skipped. Needs the extra `train` and a package index. Takes some minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

from timing import write_json

from vaekit_export.compress.speed import compare_speed
from vaekit_export.onnx_export import MIN_OPSET, newest_opset
from vaekit_export.publish import export_run

BARE = Path(__file__).parents[1] / "tests" / "packaging" / "run_bundle_bare.py"
VERSIONS = (
    "1.15.0",
    "1.16.0",
    "1.17.0",
    "1.18.0",
    "1.19.0",
    "1.20.0",
    "1.21.0",
    "1.22.0",
    "1.23.0",
    "1.24.1",
    "1.25.0",
    "1.26.0",
    "1.27.0",
    "1.28.0",
    "1.29.0",
    "1.30.0",
    "1.31.0",
    "1.32.0",
)
NUMPY_2_FROM = (1, 19)
BATCH = 64


def main() -> None:
    """Export at each opset and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("vae"))
    parser.add_argument("--opsets", type=int, nargs="+", default=[*range(MIN_OPSET, newest_opset() + 1)])
    parser.add_argument("--versions", nargs="*", default=list(VERSIONS), help="versions of ONNX Runtime, oldest first")
    parser.add_argument("--seconds", type=float, default=0.3, help="seconds to time each graph in each round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        bundles = {}
        rows: dict[int, dict[str, Any]] = {}
        for opset in options.opsets:
            done = export_run(options.run, Path(scratch, f"opset-{opset}"), opset=opset)
            bundles[opset] = done.path
            size = sum(size for name, size in done.files.items() if name.endswith(".onnx"))
            rows[opset] = {"ir": done.manifest.graphs["decoder"].ir_version, "nodes": done.nodes, "bytes": size}
        for opset, version in oldest(bundles, options.versions, Path(scratch)).items():
            rows[opset]["oldest_onnxruntime"] = version
        timed = compare_speed(bundles[options.opsets[0]], list(bundles.values()), options.seconds)
        for opset, speeds in zip(bundles, timed, strict=True):
            rows[opset]["speed"] = {graph: dataclasses.asdict(by_batch[BATCH]) for graph, by_batch in speeds.items()}
        print(f"{'opset':>5} {'IR':>3} {'nodes':>9} {'MB':>6} {'oldest ONNX Runtime':>20}  speed of encode, decode")
        for opset, row in rows.items():
            nodes = " + ".join(str(count) for count in row["nodes"].values())
            speeds_text = ", ".join(
                f"x{s['median']:.2f} ({s['min']:.2f}-{s['max']:.2f})" for s in row["speed"].values()
            )
            found = row["oldest_onnxruntime"] or "none of those tried"
            print(f"{opset:>5} {row['ir']:>3} {nodes:>9} {row['bytes'] / 1e6:>6.2f} {found:>20}  {speeds_text}")
        write_json(options.json, {"opsets": rows})


def oldest(bundles: dict[int, Path], versions: list[str], scratch: Path) -> dict[int, str | None]:
    """Return, for each opset, the first version that runs both graphs on the golden vectors."""
    found: dict[int, str | None] = dict.fromkeys(bundles)
    for version in versions:
        waiting = [opset for opset, known in found.items() if known is None]
        if not waiting:
            break
        folder = scratch / f"onnxruntime-{version}"
        venv.create(folder, with_pip=True)
        numpy = "numpy" if tuple(map(int, version.split(".")[:2])) >= NUMPY_2_FROM else "numpy<2"
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", f"onnxruntime=={version}", numpy]
        if subprocess.run(pip, capture_output=True, check=False).returncode != 0:
            print(f"skipped onnxruntime {version}: it cannot be installed on this machine")
            continue
        for opset in waiting:
            bare = [str(folder / "bin" / "python"), str(BARE), str(bundles[opset])]
            if subprocess.run(bare, capture_output=True, check=False).returncode == 0:
                found[opset] = version
    return found


if __name__ == "__main__":
    main()
