"""Make tiny-v3: the bundle tiny (format 1) with its manifest converted to format 3.

tiny (format 1) and map, deterministic and free (format 2) must stay as older versions of vaekit wrote them, because
they prove that old bundles can be read. Run `python tests/bundles/make_newest.py` when format 3 gains a key.
"""

import shutil
from pathlib import Path

from vaekit.bundle.manifest import MANIFEST, dump_json
from vaekit.bundle.reading import read_bundle

HERE = Path(__file__).parent


def main() -> None:
    """Write the bundle beside this file."""
    target = HERE / "tiny-v3"
    shutil.copytree(HERE / "tiny", target, dirs_exist_ok=True)
    manifest = read_bundle(target).manifest
    (target / MANIFEST).write_text(dump_json(manifest.to_json()), encoding="utf-8")


if __name__ == "__main__":
    main()
