"""The files in signatures/ were made by minisign 0.10: keys, and signatures of tests/bundles/tiny/manifest.json."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vaekit
from vaekit.bundle.manifest import SIGNATURE
from vaekit.bundle.reading import TRUSTED_KEYS, read_bundle
from vaekit.bundle.signature import read_public_key
from vaekit.errors import BundleError, MissingExtraError, UsageError, VaekitError

MADE = Path(__file__).parent / "signatures"
PUBLIC = str(MADE / "unprotected.pub")
NAME = "BED42EA1F328ADDB"


@pytest.fixture
def signed(copied_bundle: Path) -> Path:
    """Return a bundle that minisign signed."""
    pytest.importorskip("cryptography")
    shutil.copy(MADE / "tiny.minisig", copied_bundle / SIGNATURE)
    return copied_bundle


@pytest.mark.parametrize("made", ["tiny.minisig", "tiny-legacy.minisig"])
def test_signatures_of_minisign_are_checked(signed: Path, made: str) -> None:
    shutil.copy(MADE / made, signed / SIGNATURE)
    found = read_bundle(signed, signed_by=PUBLIC).signed
    assert found is not None
    assert found.key_name == NAME
    assert found.comment.startswith("timestamp:1796084069\tfile:manifest.json")


def test_a_key_is_given_as_text_or_as_a_file(signed: Path) -> None:
    text = Path(PUBLIC).read_text().splitlines()[-1]
    assert read_public_key(text) == read_public_key(PUBLIC)
    assert read_public_key(text).text == text
    assert read_bundle(signed, signed_by=Path(PUBLIC)).signed is not None
    assert vaekit.load(signed, signed_by=text).bundle.signed is not None


@pytest.mark.parametrize(
    ("line", "old", "new", "reason"),
    [
        (1, b"1WBg", b"1WBh", "changed after"),
        (2, b"1796084069", b"1796084068", "comment is another"),
        (3, b"ux1L", b"ux1M", "comment is another"),
    ],
)
def test_a_changed_signature_is_refused(signed: Path, line: int, old: bytes, new: bytes, reason: str) -> None:
    lines = (signed / SIGNATURE).read_bytes().splitlines()
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    (signed / SIGNATURE).write_bytes(b"\n".join(lines))
    with pytest.raises(BundleError, match=reason):
        read_bundle(signed, signed_by=PUBLIC)


def test_a_changed_manifest_is_refused_even_if_it_is_valid(signed: Path) -> None:
    manifest = signed / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    read_bundle(signed)
    with pytest.raises(BundleError, match="changed after"):
        read_bundle(signed, signed_by=PUBLIC)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"one\ntwo\nthree\nfour", b"untrusted comment: \nRUQ=\ntrusted comment: \n"]
)
def test_what_is_no_signature_is_refused(signed: Path, data: bytes) -> None:
    (signed / SIGNATURE).write_bytes(data)
    with pytest.raises(BundleError, match="not a signature"):
        read_bundle(signed, signed_by=PUBLIC)
    read_bundle(signed)  # nobody asked who signed it


def test_the_signature_of_another_key_is_refused(signed: Path) -> None:
    with pytest.raises(BundleError, match=f"signed by {NAME}, but must be by AED67320DE976380"):
        read_bundle(signed, signed_by=str(MADE / "protected.pub"))


def test_a_key_of_the_same_number_proves_nothing(signed: Path, tmp_path: Path) -> None:
    from vaekit.bundle.signing import SecretKey, sign_bundle

    number = read_public_key(PUBLIC).number
    sign_bundle(read_bundle(signed), SecretKey(number, bytes(32)), "forged")
    with pytest.raises(BundleError, match="changed after"):
        read_bundle(signed, signed_by=PUBLIC)


@pytest.mark.parametrize("text", ["", "nothing", "RWTbrSjz", "RW" + "A" * 53 + "é", str(MADE / "tiny.minisig")])
def test_what_is_no_public_key_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="neither a public key"):
        read_public_key(text)


def test_trusted_keys_refuse_unsigned_bundles(tiny_bundle: Path, signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, os.pathsep.join([str(MADE / "protected.pub"), PUBLIC]))
    assert read_bundle(signed).signed is not None
    for unsigned in (tiny_bundle, "demo"):
        with pytest.raises(BundleError, match=f"not signed, but must be by AED67320DE976380 or {NAME}"):
            vaekit.load(unsigned)


def test_a_bundle_satisfies_the_environment_and_the_argument(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, str(MADE / "protected.pub"))
    with pytest.raises(BundleError, match="must be by AED67320DE976380"):
        read_bundle(signed, signed_by=PUBLIC)


@pytest.mark.parametrize("value", ["", os.pathsep])
def test_trusted_keys_that_are_none_trust_nobody(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, value)
    with pytest.raises(UsageError, match="names no key"):
        read_bundle(tiny_bundle)


def test_without_the_extra_nothing_is_trusted(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    shutil.copy(MADE / "tiny.minisig", copied_bundle / SIGNATURE)
    monkeypatch.setenv(TRUSTED_KEYS, PUBLIC)
    with pytest.raises(MissingExtraError, match=r"vaekit\[sign\]"):
        read_bundle(copied_bundle)


def test_in_a_zip(signed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for file in signed.iterdir():
            archive.write(file, f"model/{file.name}")
    assert read_bundle(tmp_path / "bundle.zip", signed_by=PUBLIC).signed is not None


def test_sign_a_folder_and_a_zip_and_check_with_minisign(
    copied_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    from vaekit.bundle.signing import new_key, read_secret_key, sign_bundle, write_keys

    def none() -> str:
        raise AssertionError("a key without a password")

    write_keys(tmp_path / "own.key", new_key(), "")
    key = read_secret_key(tmp_path / "own.key", none)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in copied_bundle.iterdir():
            archive.write(file, f"model/{file.name}")
        archive.writestr("README", "kept")
    for bundle in (copied_bundle, tmp_path / "b.zip"):
        for comment in ("first", "second: é"):  # the second takes the first one's place
            sign_bundle(read_bundle(bundle), key, comment)
        found = read_bundle(bundle, signed_by=key.public.text).signed
        assert found is not None
        assert found.comment == "second: é"
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("README") == b"kept"
        assert sorted(archive.namelist())[:2] == ["README", "model/decoder.onnx"]
        assert archive.namelist().count(f"model/{SIGNATURE}") == 1
    if not shutil.which("minisign"):
        pytest.skip("minisign is not installed")
    subprocess.run(["minisign", "-Vm", copied_bundle / "manifest.json", "-p", tmp_path / "own.pub"], check=True)
    assert "second: é" in capfd.readouterr().out


def test_the_password_of_a_key(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from vaekit.bundle.signing import new_key, read_secret_key, write_keys

    of_minisign = read_secret_key(MADE / "protected.key", lambda: "pw2")
    assert of_minisign.public == read_public_key(str(MADE / "protected.pub"))
    with pytest.raises(VaekitError, match="password"):
        read_secret_key(MADE / "protected.key", lambda: "pw3")

    own = new_key()
    write_keys(tmp_path / "own.key", own, "pässword")
    assert read_secret_key(tmp_path / "own.key", lambda: "pässword") == own
    assert (tmp_path / "own.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(VaekitError, match="exists"):
        write_keys(tmp_path / "own.key", new_key(), "")


@pytest.mark.parametrize("name", ["absent.key", "unprotected.pub", "tiny.minisig"])
def test_what_is_no_secret_key_is_named(name: str) -> None:
    pytest.importorskip("cryptography")
    from vaekit.bundle.signing import read_secret_key

    with pytest.raises(VaekitError, match=r"there is no key at|not a secret key"):
        read_secret_key(MADE / name, lambda: "")


def test_a_key_that_asks_for_too_much_memory_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    import base64

    from vaekit.bundle.signing import read_secret_key

    comment, text = (MADE / "protected.key").read_text().splitlines()
    data = bytearray(base64.b64decode(text))
    data[38:54] = (1 << 40).to_bytes(8, "little") * 2
    (tmp_path / "greedy.key").write_text(f"{comment}\n{base64.b64encode(data).decode()}\n")
    with pytest.raises(VaekitError, match="GB of memory"):
        read_secret_key(tmp_path / "greedy.key", lambda: "pw2")
