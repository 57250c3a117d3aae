"""Sign bundles with secret keys in minisign's format (see ``vaekit.bundle.signature``)."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vaekit.bundle.manifest import MANIFEST, SIGNATURE
from vaekit.bundle.reading import Bundle
from vaekit.bundle.signature import (
    KEY_BYTES,
    NUMBER_BYTES,
    PLAIN,
    PREHASHED,
    TRUSTED,
    UNTRUSTED,
    PublicKey,
    decode,
    need_cryptography,
)
from vaekit.errors import UsageError, VaekitError
from vaekit.system.files import check_file_target, replacing_file

# A key file is, in base64: algorithm 2, key derivation 2, checksum's algorithm 2, salt 32, two limits of 8 bytes each,
# and then, mixed by XOR with what is derived from the password: number 8, secret key 32, public key 32, checksum 32.
_SCRYPT, _UNPROTECTED, _BLAKE2B = b"Sc", b"\0\0", b"B2"
_HEAD, _SALT, _PROTECTED = 54, slice(6, 38), NUMBER_BYTES + 3 * KEY_BYTES
_OPERATIONS, _MEMORY = 1 << 25, 1 << 30  # minisign's own choice: about 4 seconds, and a gigabyte of memory
_MOST_MEMORY = 1 << 31


@dataclass(frozen=True)
class SecretKey:
    """A secret key and its number."""

    number: bytes
    seed: bytes

    @property
    def public(self) -> PublicKey:
        """Return the public key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return PublicKey(self.number, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032), 64 bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)


def new_key() -> SecretKey:
    """Return a random key. Raises MissingExtraError without the package that it needs."""
    need_cryptography()
    return SecretKey(secrets.token_bytes(NUMBER_BYTES), secrets.token_bytes(KEY_BYTES))


def check_keys_target(path: Path) -> None:
    """Raise VaekitError if a secret key or its public key exists or cannot be written, before any work."""
    if path == _public_path(path):
        raise UsageError(f"{path} would be the name of the public key: choose another one")
    for file in (path, _public_path(path)):
        check_file_target(file)
        if os.path.lexists(file):
            raise VaekitError(
                f"cannot write {file}: it exists, and a lost key cannot be had again; choose another name"
            )


def write_keys(path: Path, key: SecretKey, password: str) -> None:
    """Write a secret key, which only its owner can read, and beside it its public key, ``NAME.pub``.

    An empty password leaves the key unprotected. Raises as ``check_keys_target`` does.
    """
    check_keys_target(path)
    secret = key.number + key.seed + key.public.key
    body = secret + hashlib.blake2b(PLAIN + secret, digest_size=32).digest()
    limits = b"".join(limit.to_bytes(8, "little") for limit in (_OPERATIONS, _MEMORY))
    salt = secrets.token_bytes(32)
    if password:
        data = PLAIN + _SCRYPT + _BLAKE2B + salt + limits + _mixed(body, password, salt, _OPERATIONS, _MEMORY)
    else:
        data = PLAIN + _UNPROTECTED + _BLAKE2B + bytes(_HEAD - 6) + body
    encoded = base64.b64encode(data).decode()
    with replacing_file(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(f"{UNTRUSTED}minisign secret key of vaekit\n{encoded}\n", encoding="utf-8")
    with replacing_file(_public_path(path)) as temporary:
        text = f"{UNTRUSTED}minisign public key {key.public.name}\n{key.public.text}\n"
        temporary.write_text(text, encoding="utf-8")


def _public_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.pub")


def read_secret_key(path: Path, password: Callable[[], str]) -> SecretKey:
    """Read a secret key, and ask for its password if it has one.

    Raises VaekitError if it is not a key or the password is wrong, and MissingExtraError without the package.
    """
    need_cryptography()
    try:
        data = decode(path.read_text(encoding="utf-8").splitlines()[-1])
    except FileNotFoundError:
        raise VaekitError(f"there is no key at {path}: make one with `vaekit sign --new-key {path}`") from None
    except OSError as error:
        raise VaekitError(f"cannot read the key {path}: {error.strerror or error}") from error
    except (ValueError, IndexError) as error:
        raise VaekitError(f"{path} is not a secret key of minisign's") from error
    kind = data[2:4]
    if len(data) != _HEAD + _PROTECTED or data[:2] != PLAIN or kind not in (_SCRYPT, _UNPROTECTED):
        raise VaekitError(f"{path} is not a secret key of minisign's")
    body = data[_HEAD:]
    if kind == _SCRYPT:
        operations, memory = (int.from_bytes(data[at : at + 8], "little") for at in (38, 46))
        body = _mixed(body, password(), data[_SALT], operations, memory)
        if hashlib.blake2b(PLAIN + body[:-32], digest_size=32).digest() != body[-32:]:
            raise VaekitError(f"the password is not that of the key {path}")
    return SecretKey(body[:NUMBER_BYTES], body[NUMBER_BYTES : NUMBER_BYTES + KEY_BYTES])


def sign_bundle(bundle: Bundle, key: SecretKey, comment: str) -> None:
    """Write a bundle's signature beside its manifest, in place of an older one.

    ``comment``, of one line, is signed too. Raises UsageError for a comment of several lines, and VaekitError if the
    signature cannot be written.
    """
    if len(comment.splitlines()) > 1:
        raise UsageError("the comment of a signature must be one line")
    signature = key.sign(hashlib.blake2b(bundle.files[MANIFEST]).digest())
    lines = (
        f"{UNTRUSTED}signature of a bundle of vaekit",
        base64.b64encode(PREHASHED + key.number + signature).decode(),
        TRUSTED + comment,
        base64.b64encode(key.sign(signature + comment.encode())).decode(),
    )
    text = "".join(f"{line}\n" for line in lines)
    if bundle.path.is_dir():
        with replacing_file(bundle.path / SIGNATURE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        _sign_zip(bundle.path, text)


def _sign_zip(path: Path, text: str) -> None:
    """Write a .zip anew, with a signature beside its manifest."""
    import zipfile

    with zipfile.ZipFile(path) as old, replacing_file(path) as temporary, zipfile.ZipFile(temporary, "w") as new:
        names = {entry.filename: entry for entry in old.infolist()}
        manifest = next(name for name in names if name.rpartition("/")[2] == MANIFEST)
        place = manifest.removesuffix(MANIFEST) + SIGNATURE
        for name, entry in names.items():
            if name != place:
                new.writestr(entry, old.read(entry), entry.compress_type)
        new.writestr(place, text)


def _mixed(body: bytes, password: str, salt: bytes, operations: int, memory: int) -> bytes:
    """XOR the secret part of a key file with what scrypt derives from the password.

    Raises VaekitError if that needs more memory than there is.
    """
    rounds, blocks, lanes = _scrypt_parameters(operations, memory)
    try:
        stream = hashlib.scrypt(
            password.encode(), salt=salt, n=rounds, r=blocks, p=lanes, maxmem=_MOST_MEMORY - 1, dklen=len(body)
        )
    except (ValueError, MemoryError) as error:
        needed = 128 * rounds * blocks / 1e9
        raise VaekitError(f"the key's password cannot be checked: that needs {needed:.1f} GB of memory") from error
    return bytes(a ^ b for a, b in zip(body, stream, strict=True))


def _scrypt_parameters(operations: int, memory: int) -> tuple[int, int, int]:
    """Return scrypt's N, r and p for limits, as libsodium's crypto_pwhash_scryptsalsa208sha256 chooses them."""
    operations, blocks = max(operations, 32768), 8
    if operations < memory // 32:
        return _power_below(operations // (4 * blocks)), blocks, 1
    rounds = _power_below(memory // (128 * blocks))
    return rounds, blocks, min(operations // 4 // rounds, 0x3FFFFFFF) // blocks


def _power_below(most: int) -> int:
    """Return the largest power of two that is not above ``most``, from 2 on."""
    return 1 << max(1, most.bit_length() - 1)
