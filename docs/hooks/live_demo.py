"""The live demo of docs/javascript.md: the site that `vaekit web` writes, if onnxruntime-web is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vaekit.bundle.reading import read_bundle
from vaekit.errors import VaekitError
from vaekit.web.site import INSTALL, WebRuntime, find_runtime, write_site

_ROOT = Path(__file__).parents[2]
_PLACE = "live"
_MARK = "<!-- live demo -->"
_FRAME = f"""## Live

<iframe src="../{_PLACE}/index.html" title="The demo bundle in your browser" width="100%" height="900"></iframe>
"""
_NOTE = f"*These pages were built without onnxruntime-web (`{INSTALL}`), and so without the live demo.*"


def _runtime() -> WebRuntime | None:
    for given in (None, _ROOT / "tests" / "web" / "node_modules"):
        try:
            return find_runtime(given, _ROOT)
        except VaekitError:
            continue
    return None


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the demo in place of its mark, or a note if it cannot be built."""
    return markdown.replace(_MARK, _NOTE if _runtime() is None else _FRAME)


def on_post_build(config: Any, **_: Any) -> None:
    """Write the demo beside the pages."""
    runtime = _runtime()
    if runtime is not None:
        write_site(Path(config["site_dir"]) / _PLACE, read_bundle("demo"), runtime)
