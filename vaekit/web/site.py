"""Write a static site that runs a bundle in the browser."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vaekit.bundle.reading import Bundle
from vaekit.errors import VaekitError
from vaekit.system.files import check_new_folder, check_writable, replacing_folder

INSTALL = "npm install onnxruntime-web"
PACKAGE = "onnxruntime-web"

_HERE = Path(__file__).parent
_MARK = "vaekit-site.json"  # says that a folder is a site, which may be replaced
_NEEDED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_FOR_GPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")


@dataclass(frozen=True)
class WebRuntime:
    """The files of onnxruntime-web that a site needs."""

    folder: Path
    """Its folder ``dist``."""
    version: str
    files: tuple[str, ...]


def find_runtime(given: Path | None, start: Path) -> WebRuntime:
    """Return onnxruntime-web from a folder, or from the nearest ``node_modules`` at or above ``start``.

    ``given`` is its folder ``dist``, the package's own folder, or ``node_modules``. Raises VaekitError, with the
    command that installs it, if it is not there or lacks files.
    """
    if given is not None:
        candidates = [given, given / "dist", given / PACKAGE / "dist"]
    else:
        candidates = [folder / "node_modules" / PACKAGE / "dist" for folder in (start, *start.parents)]
    found = next((folder for folder in candidates if os.path.isfile(folder / _NEEDED[0])), None)
    if found is None:
        where = "near this folder" if given is None else f"in {given}"
        raise VaekitError(f"{PACKAGE} is not {where}: get it with `{INSTALL}`, or name its folder dist with --runtime")
    if missing := [name for name in _NEEDED if not (found / name).is_file()]:
        raise VaekitError(f"{found} lacks {', '.join(missing)}: get {PACKAGE} again with `{INSTALL}`")
    has_gpu = all((found / name).is_file() for name in _FOR_GPU)
    return WebRuntime(found, _version_of(found.parent), _NEEDED + (_FOR_GPU if has_gpu else ()))


def check_site_target(target: Path) -> None:
    """Raise VaekitError, before any work, unless a site can be written: to a new or empty folder, or over a site."""
    if (target / _MARK).is_file():
        check_writable(target)
        return
    check_new_folder(target)


def write_site(target: Path, bundle: Bundle, runtime: WebRuntime) -> dict[str, int]:
    """Write a site for a bundle, whole or not at all, and return the size of each of its files in bytes.

    A site that is already there is replaced. Raises VaekitError if it cannot be written.
    """
    with replacing_folder(target) as folder:
        shutil.copyfile(_HERE / "index.html", folder / "index.html")
        for part in ("page", "javascript"):
            (folder / part).mkdir()
            for path in (_HERE / part).iterdir():
                if path.suffix in (".css", ".js", ".svg"):
                    shutil.copyfile(path, folder / part / path.name)
        (folder / "bundle").mkdir()
        for name, data in bundle.files.items():
            (folder / "bundle" / name).write_bytes(data)
        (folder / "runtime").mkdir()
        for name in runtime.files:
            shutil.copyfile(runtime.folder / name, folder / "runtime" / name)
        (folder / _MARK).write_text(json.dumps({PACKAGE: runtime.version}) + "\n", encoding="utf-8")
        return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _version_of(package: Path) -> str:
    try:
        return str(json.loads((package / "package.json").read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
