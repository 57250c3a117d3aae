"""Every error that vaekit raises on purpose.

VaekitError            the work failed because of files, data or the machine (exit code 1)
├── UsageError         an argument or option value is wrong (exit code 2)
├── SourceError        images are missing or unreadable
├── RunError           not a run folder, or a damaged one, or a non-empty folder
├── BundleError        a bundle is missing, altered, of a newer format, or unsafe
├── ProviderError      an execution provider, or ONNX Runtime itself, cannot run on this machine
├── ExportError        the exporter could not write the graph
├── MissingExtraError  a package of an optional extra is not installed
└── CheckError         a check failed (exit code 3)
    └── ParityError    ONNX Runtime's results differ from PyTorch's
"""

from __future__ import annotations


class VaekitError(Exception):
    """The base class. Its message is one line: what is wrong and what to do."""

    exit_code = 1


class UsageError(VaekitError, ValueError):
    """An argument or option value is wrong."""

    exit_code = 2


class SourceError(VaekitError):
    """Images are missing or unreadable."""


class RunError(VaekitError):
    """Not a run folder, or a damaged one, or a non-empty folder."""


class BundleError(VaekitError):
    """A bundle is missing, altered, of a newer format, or unsafe to load."""


class ProviderError(VaekitError):
    """ONNX Runtime, or one of its execution providers, cannot run on this machine."""


class ExportError(VaekitError):
    """The exporter could not write the graph."""


class MissingExtraError(VaekitError):
    """A package that belongs to an optional extra is not installed."""


class CheckError(VaekitError):
    """A check failed."""

    exit_code = 3


class ParityError(CheckError):
    """ONNX Runtime's results differ from PyTorch's by more than the tolerances."""
