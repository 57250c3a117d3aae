"""Read a bundle from a folder or .zip file, and check it before use.

The hashes in the manifest prove that the files are complete and belong together. Who made them is proved by a
signature (see ``vaekit.bundle.signature``).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vaekit.bundle.manifest import (
    FEATURES,
    FORMAT,
    FORMAT_VERSION,
    LATENT_AXES,
    MANIFEST,
    SIGNATURE,
    GraphSpec,
    Manifest,
)
from vaekit.bundle.onnx_file import OnnxInfo, TensorInfo, read_onnx
from vaekit.errors import BundleError, UsageError
from vaekit.maths.surprise import ResidualStatistics
from vaekit.types import GRAPHS, Array

if TYPE_CHECKING:
    import zipfile

    from vaekit.bundle.signature import Signature

DEMO = "demo"
"""The name of a small bundle that comes with vaekit."""

TRUSTED_KEYS = "VAEKIT_TRUSTED_KEYS"
"""The environment variable that names the keys of which one must have signed every bundle that is read."""

_LARGEST_FILE = 2**31  # protocol buffers, and so single-file ONNX models, are limited to two gigabytes

_SMALL_FILE, _MOST_INFLATION = 1 << 26, 100
"""Bytes of a file in a .zip that are never too many, and the factor by which larger ones may grow."""

_ADDED_RESIDUALS = (
    *("levels", "brightness_mean", "brightness_std"),
    *("contrast_levels", "distances", "contrast_mean", "contrast_std"),
)
"""Arrays of residuals.npz that older bundles do not have."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed its checks."""

    path: Path
    manifest: Manifest
    document: dict[str, Any]
    """The parsed manifest.json, including unknown keys."""
    files: dict[str, bytes]
    """Contents of the manifest and of every file that it names. The hashed bytes are the ones that run."""
    signature: bytes | None = None
    """The signature's file, checked or not."""
    signed: Signature | None = None
    """The signature, if it was checked."""

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the manifest, which holds that of every other file."""
        return hashlib.sha256(self.files[MANIFEST]).hexdigest()


def read_bundle(path: str | Path, *, signed_by: str | Path | None = None, require_signature: bool = True) -> Bundle:
    """Read and check a bundle, a folder or a .zip file.

    The name ``demo`` is the bundle that comes with vaekit, unless something of that name is in the current folder.
    ``signed_by`` is a public key, or a file with one, that must have signed the bundle. If ``$VAEKIT_TRUSTED_KEYS`` is
    set, one of its keys must have signed it too, except with ``require_signature=False``.

    Raises BundleError that names the failed check, UsageError for what is no key, and MissingExtraError without the
    package that checks signatures.
    """
    path = Path(path)
    if not os.path.lexists(path):
        from vaekit.system.files import recover_folder  # local import: it is rarely needed

        recover_folder(path)
        if path == Path(DEMO) and not os.path.lexists(path):
            path = Path(__file__).parents[1] / DEMO
    files = _read_files(path, [MANIFEST], [SIGNATURE])
    signature = files.pop(SIGNATURE, None)
    signed = _check_signer(path, files[MANIFEST], signature, signed_by, require_signature)  # before anything is parsed
    document = _parse_manifest(path, files[MANIFEST])
    manifest = _manifest_of(path, document)
    files |= _read_files(path, [declared.file for declared in manifest.declared_files])
    _check_hashes(path, manifest, files)
    for graph in manifest.graphs.values():
        _check_graph(path / graph.file, graph, files[graph.file])
    _check_declarations(path / MANIFEST, manifest)
    return Bundle(path, manifest, document, files, signature, signed)


def flow_arrays(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of a learned prior's golden vectors; none without one."""
    if manifest.flow is None:
        return ()
    return ("flow_z", "flow_t", *(() if manifest.flow.label_weights is None else ("flow_label",)), "velocity")


def read_golden(bundle: Bundle) -> dict[str, Array]:
    """Return a bundle's golden vectors, float32, by name.

    Raises BundleError if they are unreadable or do not fit the manifest.
    """
    from vaekit.system.npz import NPZ_ERRORS, read_arrays  # local import: it loads zipfile, and few commands need it

    file = bundle.manifest.golden.file
    path = bundle.path / file
    try:
        names = ("image", *bundle.manifest.encoder_outputs, "z", "decoded", *flow_arrays(bundle.manifest))
        arrays = read_arrays(io.BytesIO(bundle.files[file]), names)
        golden = {name: arrays[name] for name in names}
    except NPZ_ERRORS as error:
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again.") from error
    images, latents = golden["image"].shape[:1], golden["z"].shape[:1]
    shapes = {
        "image": images + bundle.manifest.image.shape,
        "mu": images + bundle.manifest.latent.shape,
        "logvar": images + bundle.manifest.latent.shape,
        "z": latents + bundle.manifest.latent.shape,
        "decoded": latents + bundle.manifest.image.shape,
        "flow_z": latents + bundle.manifest.latent.shape,
        "flow_t": latents,
        "flow_label": (*latents, len(bundle.manifest.labels) + 1),
        "velocity": latents + bundle.manifest.latent.shape,
    }
    for name, array in golden.items():
        if array.dtype != np.float32 or array.shape != shapes[name] or not array.size:
            raise BundleError(f"{path} is damaged: {name} is {array.dtype} {array.shape}, not float32 {shapes[name]}")
        is_image = name in ("image", "decoded")
        if not np.isfinite(array).all() or (is_image and not (array.min() >= 0 and array.max() <= 1)):
            raise BundleError(f"{path} is damaged: {name} holds NaN, infinity, or pixels outside [0, 1]")
    return golden


def read_residuals(bundle: Bundle) -> ResidualStatistics:
    """Return a bundle's statistics of residuals.

    Raises UsageError if it has none, and BundleError if they are unreadable or do not fit the manifest.
    """
    from vaekit.system.npz import NPZ_ERRORS, read_arrays

    declared = bundle.manifest.residuals
    if declared is None:
        raise UsageError(
            f"{bundle.path} has no statistics of residuals, without which nothing is surprising: export it again"
        )
    path = bundle.path / declared.file
    names = ("pixel_mean", "pixel_std", "edges", "gradient_mean", "gradient_std")
    try:
        arrays = read_arrays(io.BytesIO(bundle.files[declared.file]), ("smooth", *names, *_ADDED_RESIDUALS))
        added = (name for name in _ADDED_RESIDUALS if name in arrays)
        parts = {name: arrays[name].astype(np.float32) for name in (*names, *added)}
        statistics = ResidualStatistics(smooth=float(arrays["smooth"]), **parts)
    except NPZ_ERRORS as error:
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again.") from error
    return statistics


def is_bundle(path: Path) -> bool:
    """Return whether a folder's manifest declares it a bundle, even a damaged one."""
    try:
        return bool(json.loads((path / MANIFEST).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _read_files(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, bytes]:
    """Read files of a bundle by their plain names, and optional ones if they are there."""
    if os.path.isdir(path):  # False for a name that is too long; Path.is_dir would raise
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}. `vaekit export` writes one.")
        present = [name for name in optional if (path / name).is_file()]
        return {name: _read_file(path / name) for name in (*names, *present)}
    if os.path.isfile(path):
        return _read_zip(path, names, optional)
    raise BundleError(
        f"there is no bundle at {path}: write one with `vaekit export -o {path}`, or name one with -m, such as {DEMO}"
    )


def _read_file(path: Path) -> bytes:
    from vaekit.system.files import is_regular

    try:
        if not is_regular(path):
            raise BundleError(f"{path} is a device or a pipe, not a file")
        if path.stat().st_size > _LARGEST_FILE:
            raise BundleError(f"{path} is larger than two gigabytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: export the bundle again, or copy all of its files") from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error


def _read_zip(path: Path, names: Sequence[str], optional: Sequence[str]) -> dict[str, bytes]:
    """Read files of the bundle in a .zip, at its root or in a folder."""
    import zipfile  # local import: most bundles are folders, and this would slow down a cold start

    from vaekit.system.npz import NPZ_ERRORS

    try:
        with zipfile.ZipFile(path) as archive:
            found = _bundle_entries(path, archive.infolist())
            present = [name for name in optional if name in found]
            for name in (*names, *present):
                if name not in found:
                    raise BundleError(f"{path} is not a complete bundle: it has no {name}")
                _check_size(path, found[name])
            return {name: archive.read(found[name]) for name in (*names, *present)}
    except NPZ_ERRORS as error:
        raise BundleError(f"{path} is neither a bundle's folder nor a readable .zip file: {error}") from error


def _check_size(path: Path, entry: zipfile.ZipInfo) -> None:
    """Raise BundleError for a file that would take more memory than a bundle's does."""
    if entry.file_size > _LARGEST_FILE:
        raise BundleError(f"{entry.filename} in {path} is larger than two gigabytes")
    if entry.file_size > max(_SMALL_FILE, _MOST_INFLATION * entry.compress_size):
        raise BundleError(
            f"{entry.filename} in {path} would be {entry.file_size / max(1, entry.compress_size):,.0f} times as large "
            "as it is in the .zip, which no bundle's is: unpack it yourself if you trust it"
        )


def _bundle_entries(path: Path, entries: Iterable[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the entries in the manifest's folder by name.

    Raises BundleError unless the .zip has exactly one manifest.
    """
    by_folder: dict[str, dict[str, zipfile.ZipInfo]] = {}
    for entry in entries:
        folder, _, name = entry.filename.rpartition("/")
        by_folder.setdefault(folder, {})[name] = entry
    bundles = [files for files in by_folder.values() if MANIFEST in files]
    if not bundles:
        raise BundleError(f"{path} is not a complete bundle: it has no {MANIFEST}")
    if len(bundles) > 1:
        raise BundleError(f"{path} contains {len(bundles)} bundles: put only one bundle in a .zip file")
    return bundles[0]


def _check_signer(
    path: Path, manifest: bytes, signature: bytes | None, signed_by: str | Path | None, required: bool
) -> Signature | None:
    """Check who signed a manifest, and return the signature; None if nobody asks for one."""
    trusted = os.environ.get(TRUSTED_KEYS) if required else None
    if signed_by is None and trusted is None:
        return None
    from vaekit.bundle.signature import check_signature, read_public_key, read_public_keys  # rarely needed

    signed = None
    if trusted is not None:
        signed = check_signature(path, manifest, signature, read_public_keys(trusted, TRUSTED_KEYS))
    if signed_by is not None:
        signed = check_signature(path, manifest, signature, [read_public_key(signed_by)])
    return signed


def _parse_manifest(path: Path, data: bytes) -> dict[str, Any]:
    """Parse the manifest, and check that this version of vaekit can read it."""
    try:
        document = json.loads(data)
        kind, version, features = document["format"], document["format_version"], document.get("requires", [])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged or not a vaekit manifest. Export the bundle again.") from error
    if kind != FORMAT:
        raise BundleError(f"{path / MANIFEST} is not a vaekit manifest: its format is {kind!r}")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has bundle format {version}; this vaekit reads up to {FORMAT_VERSION}. Upgrade vaekit: "
            "pip install -U vaekit"
        )
    if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
        raise BundleError(f"{path / MANIFEST} is damaged: requires is not a list of names. Export the bundle again.")
    if unknown := [name for name in features if name not in FEATURES]:
        raise BundleError(
            f"{path} requires unknown features: {', '.join(unknown)}. Upgrade vaekit: pip install -U vaekit"
        )
    assert isinstance(document, dict)
    return document


def _manifest_of(path: Path, document: dict[str, Any]) -> Manifest:
    try:
        return Manifest.from_json(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        detail = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{path / MANIFEST} is damaged: {detail}. Export the bundle again.") from error


def _check_hashes(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    for declared in manifest.declared_files:
        if hashlib.sha256(files[declared.file]).hexdigest() != declared.sha256:
            raise BundleError(
                f"{path / declared.file} was changed after export: its sha256 differs from the manifest's. "
                "Copy or export the bundle again."
            )


def _check_declarations(path: Path, manifest: Manifest) -> None:
    """Check that the manifest's sizes, tensors, statistics and mixture agree."""
    image = TensorInfo("image", "float32", ("batch", *manifest.image.axes))
    latent_axes = (
        manifest.latent.shape if manifest.image.multiple_of is None else (manifest.latent.shape[0], *LATENT_AXES)
    )
    *codes, z = (TensorInfo(name, "float32", ("batch", *latent_axes)) for name in (*manifest.encoder_outputs, "z"))
    encoder, decoder = (manifest.graphs[name] for name in GRAPHS)
    wanted = {
        "the encoder's inputs": (encoder.inputs, (image,)),
        "the encoder's outputs": (encoder.outputs, tuple(codes)),
        "the decoder's inputs": (decoder.inputs, (z,)),
        "the decoder's outputs": (decoder.outputs, (image,)),
    }
    graphs = [encoder, decoder]
    if manifest.flow is not None:
        if "prior" not in manifest.graphs:
            raise BundleError(f"{path} contradicts itself: it has a learned prior, but no graph of that name")
        graphs.append(prior := manifest.graphs["prior"])
        velocity = TensorInfo("velocity", "float32", z.shape)
        columns = () if manifest.flow.label_weights is None else (len(manifest.flow.label_weights),)
        labels = [TensorInfo("label", "float32", ("batch", *columns))] if columns else []
        wanted["the prior's inputs"] = (prior.inputs, (z, TensorInfo("t", "float32", ("batch",)), *labels))
        wanted["the prior's outputs"] = (prior.outputs, (velocity,))
    for what, (declared, expected) in wanted.items():
        if declared != expected:
            raise BundleError(
                f"{path} contradicts itself: {what} are declared as {_describe(declared)}, but its sizes require "
                f"{_describe(expected)}"
            )
    if missing := {graph.precision for graph in graphs} - set(manifest.tolerances):
        raise BundleError(f"{path} contradicts itself: it has no tolerances for {', '.join(sorted(missing))} graphs")
    latent, d = manifest.latent, manifest.latent.shape[0]
    kl = 0 if manifest.posterior == "deterministic" else d
    if (len(latent.mean), len(latent.std), len(latent.kl)) != (d, d, kl):
        raise BundleError(f"{path} contradicts itself: its latent statistics do not have {d} dimensions")
    if manifest.mixture is not None and manifest.mixture.means.shape[1:] != latent.shape:
        raise BundleError(f"{path} contradicts itself: its mixture prior does not have {d} dimensions")
    if manifest.flow is not None and manifest.flow.start == "mixture" and manifest.mixture is None:
        raise BundleError(f"{path} contradicts itself: its learned prior starts from a mixture, but it has none")
    if manifest.flow is not None and (len(manifest.flow.mean), len(manifest.flow.std)) != (d, d):
        raise BundleError(f"{path} contradicts itself: its learned prior does not have {d} dimensions")
    if manifest.attributes is not None and manifest.attributes.means.shape[1] != d:
        raise BundleError(f"{path} contradicts itself: its attributes do not have {d} dimensions")
    if manifest.scores is not None and manifest.why_no_elbo is not None:
        raise BundleError(f"{path} contradicts itself: it has scores, but {manifest.why_no_elbo}")


def _check_graph(path: Path, declared: GraphSpec, data: bytes) -> None:
    try:
        info = read_onnx(data)
    except ValueError as error:
        raise BundleError(f"{path} cannot be used: {error}") from error
    if info.external_data:
        raise BundleError(f"{path} stores tensors in other files; vaekit only loads single-file models")
    if unknown := sorted(domain for domain, _ in info.operators if domain):
        raise BundleError(f"{path} has operators of an unknown domain: {', '.join(unknown)}")
    for kind, found, wanted in (("inputs", info.inputs, declared.inputs), ("outputs", info.outputs, declared.outputs)):
        if tuple(found) != wanted:
            raise BundleError(f"{path} has {kind} {_describe(found)}, but the manifest declares {_describe(wanted)}")
    _check_versions(path, info, declared)


def _check_versions(path: Path, info: OnnxInfo, declared: GraphSpec) -> None:
    if info.opsets.get("") != declared.opset or info.ir_version != declared.ir_version:
        raise BundleError(
            f"{path} has opset {info.opsets.get('')} and IR version {info.ir_version}, but the manifest declares "
            f"{declared.opset} and {declared.ir_version}"
        )


def _describe(tensors: list[TensorInfo] | tuple[TensorInfo, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype} ({', '.join(map(str, t.shape))})" for t in tensors) or "none"
