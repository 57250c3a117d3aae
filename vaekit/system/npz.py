"""Reading .npy and .npz files: the one list of what a damaged, encrypted or foreign one raises."""

from __future__ import annotations

import tokenize
import zipfile
import zlib

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it cannot unpack such archives

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
