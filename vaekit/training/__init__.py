"""Training variational auto-encoders with PyTorch.

Needs the extra `train`, except for ``config``, from which the command line makes its options. Nothing at the edge
imports it.
"""

from __future__ import annotations

from importlib.util import find_spec

from vaekit.errors import MissingExtraError


def check_extra() -> None:
    """Raise MissingExtraError if packages of the extra `train` are missing."""
    if missing := [name for name in ("torch", "safetensors", "sklearn") if find_spec(name) is None]:
        raise MissingExtraError(f"this needs {', '.join(missing)}: pip install 'vaekit[train]'")
