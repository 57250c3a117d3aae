"""Check who made a bundle: Ed25519 signatures in the format of minisign, of the manifest.

The manifest holds the SHA-256 of every other file, so its signature is one of the whole bundle, and
``minisign -Vm manifest.json`` checks it too. The format is at https://jedisct1.github.io/minisign.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaekit.bundle.manifest import SIGNATURE
from vaekit.errors import BundleError, MissingExtraError, UsageError

PLAIN, PREHASHED = b"Ed", b"ED"
"""What was signed: the file itself, or its BLAKE2b hash of 512 bits."""
NUMBER_BYTES, KEY_BYTES, SIGNATURE_BYTES = 8, 32, 64

UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
TAB = "\t"  # which minisign writes between the parts of its comments


@dataclass(frozen=True)
class PublicKey:
    """A public key and the number that minisign gave it."""

    number: bytes
    key: bytes

    @property
    def name(self) -> str:
        """Return the number as minisign prints it, 16 hexadecimal digits."""
        return key_name(self.number)

    @property
    def text(self) -> str:
        """Return the key as one word, as minisign prints it."""
        return base64.b64encode(PLAIN + self.number + self.key).decode()


@dataclass(frozen=True)
class Signature:
    """A signature and the comment that it covers."""

    algorithm: bytes
    number: bytes
    """The number of the key that made it."""
    signature: bytes
    comment: str
    of_comment: bytes
    """The signature of ``signature`` and the comment."""

    def describe(self) -> str:
        """Return the key's number and the comment, on one line."""
        return f"{self.key_name}: {self.comment.replace(TAB, ' ')}"

    @property
    def key_name(self) -> str:
        """Return the number of the key, as minisign prints it."""
        return key_name(self.number)


def key_name(number: bytes) -> str:
    """Return a key's number as minisign prints it."""
    return f"{int.from_bytes(number, 'little'):016X}"


def read_public_key(text: str | Path) -> PublicKey:
    """Return a public key from its text or from the file of that name.

    Raises UsageError if it is neither.
    """
    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if os.path.isfile(path) else [str(text)]
        decoded = decode(lines[-1])
        if len(decoded) != len(PLAIN) + NUMBER_BYTES + KEY_BYTES or not decoded.startswith(PLAIN):
            raise ValueError("it has another length, or another algorithm")
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{text} is neither a public key, 56 characters from RW on, nor a file with one") from error
    return PublicKey(decoded[2:10], decoded[10:])


def read_public_keys(texts: str, variable: str) -> tuple[PublicKey, ...]:
    """Return the keys that an environment variable names: keys and files of keys, separated as in ``$PATH``.

    Raises UsageError if it names none, so that a mistake never means that everything is trusted.
    """
    keys = tuple(read_public_key(text) for text in texts.split(os.pathsep) if text)
    if not keys:
        raise UsageError(f"{variable} is set, but names no key: name one, or unset it to load any bundle")
    return keys


def parse_signature(data: bytes) -> Signature:
    """Parse a signature file. Raises ValueError if it is not one."""
    first, signature, comment, of_comment = data.decode("utf-8").splitlines()
    decoded, global_signature = decode(signature), decode(of_comment)
    if not first.startswith(UNTRUSTED) or not comment.startswith(TRUSTED):
        raise ValueError("it has no comments")
    if len(decoded) != 2 + NUMBER_BYTES + SIGNATURE_BYTES or len(global_signature) != SIGNATURE_BYTES:
        raise ValueError("its signatures have other lengths")
    if decoded[:2] not in (PLAIN, PREHASHED):
        raise ValueError("its algorithm is unknown")
    return Signature(decoded[:2], decoded[2:10], decoded[10:], comment.removeprefix(TRUSTED), global_signature)


def check_signature(path: Path, manifest: bytes, signature: bytes | None, keys: Sequence[PublicKey]) -> Signature:
    """Check that one of the keys signed a bundle's manifest, and return the signature.

    Raises BundleError if none did, and MissingExtraError without the package that checks it.
    """
    names = " or ".join(key.name for key in keys)
    if signature is None:
        raise BundleError(
            f"{path} is not signed, but must be by {names}: take one that is, or sign it with `vaekit sign`"
        )
    try:
        found = parse_signature(signature)
    except ValueError as error:
        raise BundleError(f"{path / SIGNATURE} is not a signature of minisign's: {error}") from error
    key = next((key for key in keys if key.number == found.number), None)
    if key is None:
        raise BundleError(f"{path} is signed by {found.key_name}, but must be by {names}")
    digest = hashlib.blake2b(manifest).digest() if found.algorithm == PREHASHED else manifest
    if not _is_valid(key, found.signature, digest):
        raise BundleError(f"{path} was changed after {key.name} signed it: its manifest does not fit its signature")
    if not _is_valid(key, found.of_comment, found.signature + found.comment.encode()):
        raise BundleError(f"{path / SIGNATURE} was changed after {key.name} signed it: its comment is another")
    return found


def decode(line: str) -> bytes:
    """Decode base64. Raises ValueError for anything else."""
    try:
        return base64.b64decode(line.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError("it is not base64") from error


def need_cryptography() -> None:
    """Raise MissingExtraError if the package that signs and checks is missing."""
    import importlib.util

    if importlib.util.find_spec("cryptography") is None:
        raise MissingExtraError("signatures need the package cryptography: pip install 'vaekit[sign]'")


def _is_valid(key: PublicKey, signature: bytes, data: bytes) -> bool:
    need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(signature, data)
    except (InvalidSignature, ValueError):  # ValueError for a key that is no point of the curve
        return False
    return True
