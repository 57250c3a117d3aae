"""vaekit: train variational auto-encoders and run them anywhere.

>>> import vaekit
>>> vae = vaekit.load("vae-onnx")
>>> images = vae.sample(64, seed=0)  # float32 (64, C, H, W) in [0, 1]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vaekit import errors
from vaekit.errors import VaekitError

if TYPE_CHECKING:
    from vaekit.vae import VAE, load

__version__ = "0.1.0"

__all__ = ["VAE", "VaekitError", "__version__", "errors", "load"]


def __getattr__(name: str) -> Any:
    # NumPy is imported only when a bundle is loaded, so that `vaekit --help` starts quickly.
    if name in ("VAE", "load"):
        from vaekit import vae as runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
