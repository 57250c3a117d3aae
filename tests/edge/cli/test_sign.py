from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vaekit.bundle.manifest import SIGNATURE
from vaekit.bundle.reading import TRUSTED_KEYS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]


@pytest.fixture
def key(vaekit: Run, tmp_path: Path) -> Path:
    """Return a new key, made as users make it."""
    pytest.importorskip("cryptography")
    made = vaekit("sign", "--new-key", "own.key")  # stdin is empty: no password
    assert made.returncode == 0, made.stderr
    assert f"public key {public(tmp_path / 'own.key')}" in made.stdout
    return tmp_path / "own.key"


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().splitlines()[-1]


def test_sign_verify_and_load(vaekit: Run, assert_fails: Fails, copied_bundle: Path, key: Path) -> None:
    assert_fails(vaekit("verify", "-m", copied_bundle, "--signed-by", "own.pub"), 1, "is not signed", "vaekit sign")

    done = vaekit("sign", copied_bundle, "--key", key, "--comment", "of today")
    assert done.returncode == 0, done.stderr
    asked = done.stderr.splitlines()[-1]
    assert asked.endswith(f"vaekit verify -m {copied_bundle} --signed-by {public(key)}")
    checked = vaekit(*asked.partition("vaekit ")[2].split())
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("signed by ")
    assert ": of today\n" in checked.stdout
    found = json.loads(vaekit("verify", "-m", copied_bundle, "--signed-by", "own.pub", "--json").stdout)
    assert found["signature"]["comment"] == "of today"
    assert json.loads(vaekit("verify", "-m", copied_bundle, "--json").stdout)["signature"] is None

    said = vaekit("info", "-m", copied_bundle).stdout
    assert f"said to be by {found['signature']['key']}" in said
    trusted = {TRUSTED_KEYS: str(key.with_suffix(".pub"))}
    assert f"by {found['signature']['key']}: of today" in vaekit("info", "-m", copied_bundle, env=trusted).stdout
    assert vaekit("sample", "-m", copied_bundle, "-n", "1", "-o", "one.png", env=trusted).returncode == 0
    assert_fails(vaekit("sample", "-m", "demo", env=trusted), 1, "not signed")
    assert_fails(vaekit("sample", "-m", "demo", env={TRUSTED_KEYS: ""}), 2, TRUSTED_KEYS)


def test_json(vaekit: Run, copied_bundle: Path, key: Path) -> None:
    done = json.loads(vaekit("sign", copied_bundle, "--key", key, "--json").stdout)
    assert set(done) == {"output", "key", "public_key", "comment", "sha256"}
    assert done["public_key"] == public(key)
    assert done["sha256"] == vaekit("info", "-m", copied_bundle, "--sha256").stdout.strip()
    assert done["comment"].startswith("timestamp:")


def test_a_bundle_that_is_not_trusted_yet_can_be_signed(vaekit: Run, copied_bundle: Path, key: Path) -> None:
    trusted = {TRUSTED_KEYS: public(key)}
    assert vaekit("sign", copied_bundle, "--key", key, env=trusted).returncode == 0
    assert vaekit("verify", "-m", copied_bundle, env=trusted).returncode == 0


def test_mistakes(vaekit: Run, assert_fails: Fails, copied_bundle: Path, key: Path) -> None:
    before = key.read_bytes()
    assert_fails(vaekit("sign"), 2, "--new-key")
    assert_fails(vaekit("sign", copied_bundle), 2, "--key", "--new-key vaekit.key")
    assert_fails(vaekit("sign", copied_bundle, "--key", "absent.key"), 1, "absent.key", "--new-key absent.key")
    assert_fails(vaekit("sign", copied_bundle, "--key", "own.pub"), 1, "not a secret key")
    assert_fails(vaekit("sign", copied_bundle, "--key", key, "--comment", "a\nb"), 2, "one line")
    assert_fails(vaekit("sign", "absent", "--key", key), 1, "no bundle at absent")
    assert_fails(vaekit("sign", "demo", "--key", key), 2, "comes with vaekit")
    assert_fails(vaekit("sign", "--new-key", key), 1, "exists")
    assert_fails(vaekit("sign", "--new-key", "own.pub"), 2, "public key")
    assert_fails(vaekit("sign", "--new-key", "k", "--key", key), 2, "--new-key")
    assert_fails(vaekit("verify", "-m", copied_bundle, "--signed-by", "absent.pub"), 2, "absent.pub")
    assert not (copied_bundle / SIGNATURE).exists()
    assert key.read_bytes() == before


def test_without_the_extra(
    copied_bundle: Path, assert_fails: Fails, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vaekit_cli.main import main

    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr(sys, "argv", ["vaekit", "sign", str(copied_bundle), "--key", "any.key"])
    with pytest.raises(SystemExit) as end:
        main()
    assert_fails(
        subprocess.CompletedProcess([], int(end.value.code or 0), "", capsys.readouterr().err), 1, "vaekit[sign]"
    )
