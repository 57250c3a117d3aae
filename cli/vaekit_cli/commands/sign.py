"""`vaekit sign`: sign a bundle, or make a key to sign with."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vaekit.errors import UsageError
from vaekit_cli.console import command_line, print_document, speaker
from vaekit_cli.options import JsonOption, QuietOption


@dataclass
class Signed:
    """What `--json` prints."""

    output: str
    """The signed bundle, or the new secret key."""
    key: str
    """The key's number, as minisign prints it."""
    public_key: str
    comment: str | None
    sha256: str | None
    """The bundle's hash, as of `vaekit info --sha256`."""


def sign(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="The bundle to sign, a folder or a .zip file.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The secret key, of vaekit or minisign.")] = None,
    new_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make a secret key, and its public key beside it as NAME.pub.")
    ] = None,
    comment: Annotated[
        str | None, typer.Option(help="One line that is signed too.", show_default="the time and the file's name")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Sign a bundle, so that others can check who made it.

    The key's password is asked for on a terminal, and otherwise read from stdin. With an empty one, a new key is not
    protected.
    """
    if (bundle is None) == (new_key is None):
        raise UsageError("give a bundle to sign, or --new-key to make a key")
    say = speaker(quiet or as_json)
    done = _made(new_key, key, comment) if new_key is not None else _signed(bundle, key, comment)
    if as_json:
        print_document(done)
    elif new_key is not None:
        print(f"{done.output}: the secret key {done.key}; keep it to yourself")
        print(f"public key {done.public_key}")
    else:
        print(f"{done.output}: signed by {done.key}")
        verify = command_line("vaekit verify", ("-m", bundle, None), ("--signed-by", done.public_key, None))
        say(f"check it with: {verify}")


def _made(new_key: Path, key: Path | None, comment: str | None) -> Signed:
    from vaekit.bundle.signing import check_keys_target, write_keys
    from vaekit.bundle.signing import new_key as made

    if key is not None or comment is not None:
        raise UsageError("--key and --comment are for signing a bundle, and --new-key for making a key")
    check_keys_target(new_key)
    secret = made()
    write_keys(new_key, secret, _password(new_key, twice=True))
    return Signed(str(new_key), secret.public.name, secret.public.text, None, None)


def _signed(bundle: Path | None, key: Path | None, comment: str | None) -> Signed:
    from vaekit.bundle.reading import read_bundle
    from vaekit.bundle.signature import TAB
    from vaekit.bundle.signing import read_secret_key, sign_bundle

    assert bundle is not None
    if key is None:
        raise UsageError("--key names the secret key: `vaekit sign --new-key vaekit.key` makes one")
    found = read_bundle(bundle, require_signature=False)
    if found.path != bundle:
        raise UsageError(f"{bundle} comes with vaekit and stays as it is: name a bundle of your own")
    secret = read_secret_key(key, lambda: _password(key, twice=False))
    comment = f"timestamp:{int(time.time())}{TAB}file:manifest.json{TAB}hashed" if comment is None else comment
    sign_bundle(found, secret, comment)
    return Signed(str(bundle), secret.public.name, secret.public.text, comment, found.sha256)


def _password(key: Path, *, twice: bool) -> str:
    """Ask for a key's password on a terminal, or read it from stdin."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    import getpass

    password = getpass.getpass(f"password of {key}: ")
    if twice and getpass.getpass("once more: ") != password:
        raise UsageError("the passwords differ")
    return password
