"""Fixtures for the tests of providers and sessions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vaekit.ort import session
from vaekit.ort.providers import plugins


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return ``plug_in(source)``, which makes a package onnxruntime_abacus importable."""

    def forget() -> None:
        plugins.cache_clear()
        session._register.cache_clear()
        sys.modules.pop("onnxruntime_abacus", None)
        importlib.invalidate_caches()

    def put(source: str) -> None:
        package = tmp_path / "onnxruntime_abacus"
        package.mkdir()
        (package / "__init__.py").write_text(source)
        (tmp_path / "onnxruntime_abacus-1.0.dist-info").mkdir()
        (tmp_path / "onnxruntime_stray_file.py").write_text("raise RuntimeError")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        forget()

    yield put
    forget()
