"""Write a bundle: to a temporary folder, read back and checked, then renamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vaekit.bundle.reading import Bundle, is_bundle, read_bundle
from vaekit.errors import BundleError, VaekitError
from vaekit.system.files import check_writable, replacing_folder


def check_bundle_target(target: Path) -> None:
    """Check, before any work, that a bundle can be written there.

    Raises BundleError if ``target`` exists and is neither a bundle nor an empty folder, and VaekitError if it is not
    writable.
    """
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not is_bundle(target):
        raise BundleError(f"{target} exists and is not a bundle: choose another place with -o")
    check_writable(target)


def write_bundle(
    target: Path, files: Mapping[str, bytes], prove: Callable[[Bundle], None] = lambda bundle: None
) -> None:
    """Write a bundle's files, by name, replacing an older bundle.

    The files are written to a temporary folder and read back; on any error the target stays unchanged. ``prove`` may
    raise any exception to reject the bundle. Raises VaekitError if the bundle fails its own checks or cannot be
    written.
    """
    with replacing_folder(target) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            bundle = read_bundle(folder, require_signature=False)  # it can only be signed later
        except BundleError as error:
            raise VaekitError(f"the bundle failed its own checks, nothing was published: {error}") from error
        prove(bundle)
