"""Export of a run, or of any other VAE, to a bundle: ONNX graphs, parity gate, golden vectors.

Needs the extra `train`.
"""

from __future__ import annotations

from importlib.util import find_spec

from vaekit.errors import MissingExtraError

if missing := [name for name in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors") if find_spec(name) is None]:
    raise MissingExtraError(f"this needs {', '.join(missing)}: pip install 'vaekit[train]'")

from vaekit_export.description import ForeignVAE, VAEDescription
from vaekit_export.foreign import export_vae
from vaekit_export.publish import export_run

__all__ = ["ForeignVAE", "VAEDescription", "export_run", "export_vae"]
