"""Every error that vaekit raises on purpose.

VaekitError            the work failed: files, data, machine (exit code 1)
├── UsageError         an argument or option value is wrong (2)
├── SourceError        images that are missing or cannot be read
├── RunError           not a run folder, or a damaged one, or a non-empty folder
├── BundleError        a bundle that is missing, altered, newer or unsafe
├── ProviderError      an execution provider, or ONNX Runtime itself, cannot run on this machine
├── ExportError        the exporter could not write the graph that was asked for
├── MissingExtraError  a package of an optional extra is not installed
└── CheckError         a check did not hold (3)
    └── ParityError    ONNX Runtime does not compute what PyTorch computed
"""

from __future__ import annotations


class VaekitError(Exception):
    """The work failed. Its message is one line that says what is wrong and what to do."""

    exit_code = 1


class UsageError(VaekitError, ValueError):
    """An argument is wrong."""

    exit_code = 2


class SourceError(VaekitError):
    """Images that cannot be found or read."""


class RunError(VaekitError):
    """Not a run folder, or a damaged one, or a folder that is not empty."""


class BundleError(VaekitError):
    """A bundle that is missing, altered, of a newer format, or unsafe to load."""


class ProviderError(VaekitError):
    """ONNX Runtime, or one of its execution providers, cannot run on this machine."""


class ExportError(VaekitError):
    """The exporter could not write the graph that was asked for."""


class MissingExtraError(VaekitError):
    """A package that belongs to an optional extra is not installed."""


class CheckError(VaekitError):
    """A check did not hold."""

    exit_code = 3


class ParityError(CheckError):
    """ONNX Runtime's results differ from PyTorch's by more than the tolerances."""
