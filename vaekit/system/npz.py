"""The exceptions that reading a damaged or encrypted .npy or .npz file can raise."""

from __future__ import annotations

import tokenize
import zipfile
import zlib

try:
    from lzma import LZMAError
except ImportError:  # a Python built without lzma cannot unpack such archives

    class LZMAError(Exception):  # type: ignore[no-redef]
        """Never raised."""


NPZ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,  # NumPy's second look at a damaged header
    RuntimeError,  # an encrypted archive; NotImplementedError, an unknown compression
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
)
