"""Defaults of `vaekit export` that the command line shows without importing PyTorch."""

from __future__ import annotations

OPSET = 17
"""ONNX opset of exported graphs."""
ATOL, RTOL = 1e-5, 1e-4
"""Tolerances of the parity gate: |a − b| ≤ ATOL + RTOL·|b|, where b is PyTorch's result."""
SMOOTH = 1.5
"""Standard deviation in pixels of the Gaussian that smooths the residuals of maps of surprise."""
