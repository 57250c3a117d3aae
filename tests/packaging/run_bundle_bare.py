"""Run a bundle's two graphs on its golden vectors with only numpy and onnxruntime, including old versions.

    python tests/packaging/run_bundle_bare.py BUNDLE

CI runs it on the oldest ONNX Runtime that a bundle names in its manifest (`minimum_onnxruntime`).
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(bundle: Path) -> None:
    """Exit with an error unless both graphs load and reproduce PyTorch's results."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    golden = np.load(bundle / "golden.npz", allow_pickle=False)
    for graph, feed, outputs in (("encoder", "image", ("mu", "logvar")), ("decoder", "z", ("decoded",))):
        model = str(bundle / manifest["graphs"][graph]["file"])
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for name, result in zip(outputs, session.run(None, {feed: golden[feed]})):  # noqa: B905 — works on old Pythons too
            difference = float(np.abs(result - golden[name]).max())
            print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}: {graph} {name} {difference:.1e}")
            if not np.allclose(result, golden[name], rtol=1e-3, atol=1e-4):
                sys.exit(f"{graph}: {name} is not what PyTorch computed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
