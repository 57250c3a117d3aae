"""A small bundle, and functions that change it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from vaekit.bundle.manifest import MANIFEST, Manifest, dump_json
from vaekit.bundle.reading import read_bundle

Kill = Callable[..., Path]


def save_manifest(bundle: Path, manifest: Manifest) -> None:
    (bundle / MANIFEST).write_text(dump_json(manifest.to_json()))


def replace_graphs(bundle: Path, **graphs: bytes) -> None:
    """Replace graphs of a bundle and update the manifest."""
    manifest = read_bundle(bundle).manifest
    specs = dict(manifest.graphs)
    for name, data in graphs.items():
        (bundle / specs[name].file).write_bytes(data)
        specs[name] = dataclasses.replace(specs[name], sha256=hashlib.sha256(data).hexdigest())
    save_manifest(bundle, dataclasses.replace(manifest, graphs=specs))


def kill_dimensions(bundle: Path, heard: float) -> Path:
    """Make dimensions 1 and 3 of a bundle dead, and scale the decoder's weights for them by ``heard``."""
    files = read_bundle(bundle).files
    encoder = onnx.load_from_string(files["encoder.onnx"])
    for weight in encoder.graph.initializer:
        if weight.name.startswith(("mu.", "logvar.")):
            values = numpy_helper.to_array(weight).copy()
            values[[1, 3]] = 0.02 if weight.name == "mu.bias" else 0.0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    decoder = onnx.load_from_string(files["decoder.onnx"])
    for weight in decoder.graph.initializer:
        if weight.name == "expand.0.weight":
            values = numpy_helper.to_array(weight).copy()
            values[:, [1, 3]] *= heard
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    replace_graphs(bundle, encoder=encoder.SerializeToString(), decoder=decoder.SerializeToString())
    manifest = read_bundle(bundle).manifest
    kl, mean = list(manifest.latent.kl), list(manifest.latent.mean)
    kl[1], kl[3], mean[1], mean[3] = 0.0002, 0.0003, 0.02, 0.02
    latent = dataclasses.replace(manifest.latent, kl=tuple(kl), mean=tuple(mean))
    save_manifest(bundle, dataclasses.replace(manifest, latent=latent))
    return bundle


@pytest.fixture(scope="session")
def small() -> Path:
    """Copy the edge's tiny bundle: real digits of 8 x 8 pixels, four latent dimensions."""
    return Path(__file__).parents[2] / "bundles" / "tiny"


@pytest.fixture
def save() -> Callable[[Path, Manifest], None]:
    """Replace a bundle's manifest."""
    return save_manifest


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Return ``rewrite(bundle, decoder=data)``, which replaces a graph and updates the manifest."""
    return replace_graphs


@pytest.fixture
def kill() -> Kill:
    """Return ``kill(bundle, heard=0.5)``, which makes dimensions 1 and 3 dead."""
    return kill_dimensions


@pytest.fixture
def half_dead(copied_bundle: Path) -> Path:
    """Return the tiny bundle with dimensions 1 and 3 dead.

    Their posteriors are always N(0.02, 1), and their weights in the decoder are zero.
    """
    return kill_dimensions(copied_bundle, heard=1e-3)
