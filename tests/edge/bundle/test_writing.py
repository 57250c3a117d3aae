"""A bundle is written completely and checked, or nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaekit.bundle.reading import Bundle
from vaekit.bundle.writing import check_bundle_target, write_bundle
from vaekit.errors import BundleError, CheckError, VaekitError


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_takes_the_place_of_an_older_one(tiny_bundle: Path, copied_bundle: Path) -> None:
    (copied_bundle / "notes.txt").write_text("old")
    check_bundle_target(copied_bundle)
    write_bundle(copied_bundle, files_of(tiny_bundle))
    assert files_of(copied_bundle) == files_of(tiny_bundle)


@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_bundle_that_fails_its_checks_changes_nothing(tiny_bundle: Path, copied_bundle: Path, damage: str) -> None:
    before, files = files_of(copied_bundle), files_of(tiny_bundle)
    if damage == "missing":
        del files["golden.npz"]
    else:
        files["decoder.onnx"] = files["decoder.onnx"][:-1]
    with pytest.raises(VaekitError, match="failed its own checks, nothing was published"):
        write_bundle(copied_bundle, files)
    assert files_of(copied_bundle) == before
    assert [path.name for path in copied_bundle.parent.iterdir()] == [copied_bundle.name]


def test_a_bundle_that_is_not_proved_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    seen: list[Bundle] = []

    def refuse(bundle: Bundle) -> None:
        seen.append(bundle)
        raise CheckError("no luck")

    with pytest.raises(CheckError, match="no luck"):
        write_bundle(tmp_path / "bundle", files_of(tiny_bundle), refuse)
    assert seen[0].manifest.latent.shape == (4,)
    assert list(tmp_path.iterdir()) == []


def test_only_a_bundle_or_an_empty_folder_may_be_in_the_way(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "letter").write_text("a letter")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").write_text("a photo")
    (tmp_path / "empty").mkdir()
    for name in ("letter", "photos"):
        with pytest.raises(BundleError, match="exists and is not a bundle"):
            check_bundle_target(tmp_path / name)
    for target in (tmp_path / "empty", tmp_path / "new", tiny_bundle):
        check_bundle_target(target)
    with pytest.raises(VaekitError, match="is a file, not a folder"):
        check_bundle_target(tmp_path / "letter" / "bundle")
