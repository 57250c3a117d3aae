"""Graphs can be used by runtimes that do not know vaekit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from vaekit.bundle.manifest import ImageSpec
from vaekit.maths.elbo import Likelihood
from vaekit_export.compress.compress import compress_bundle
from vaekit_export.passes import apply
from vaekit_export.passes.metadata import KEYS, describe, set_metadata
from vaekit_export.passes.precision import LowPrecision
from vaekit_export.publish import Export

FREE = "vaekit.image_multiple_of"  # only if sizes are free


def metadata_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_both_graphs_say_what_they_are(published: Export) -> None:
    manifest = published.manifest
    for name in ("encoder", "decoder"):
        told = metadata_of(published.path / f"{name}.onnx")
        assert set(told) == KEYS - {FREE}
        assert told["vaekit.graph"] == name
        assert told["vaekit.image_shape"] == "3,16,13"
        assert told["vaekit.latent_shape"] == "2"
        assert told["vaekit.posterior"] == manifest.posterior
        assert told["vaekit.likelihood"] == "gaussian"
        assert float(told["vaekit.sigma"]) == manifest.likelihood.sigma
        assert told["vaekit.preprocessing"] == manifest.image.preprocessing


def test_metadata_names_nothing_of_the_machine(published: Export) -> None:
    for name in ("encoder", "decoder"):
        data = (published.path / f"{name}.onnx").read_bytes()
        for path in (Path.cwd(), Path.home(), Path(__file__).parents[2]):
            assert str(path).encode() not in data


def test_a_model_without_a_sigma_says_none() -> None:
    told = describe("decoder", "fp32", ImageSpec(1, 8, 8, "as it is"), (4,), "diagonal", Likelihood("bernoulli", None))
    assert set(told) == KEYS - {FREE, "vaekit.sigma"}


def test_a_model_of_free_size_says_its_step() -> None:
    image = ImageSpec(1, 8, 8, "as it is", multiple_of=4)
    told = describe("decoder", "fp32", image, (2, 2, 2), "diagonal", Likelihood("gaussian", 0.1))
    assert set(told) == KEYS
    assert told[FREE] == "4"


def test_metadata_takes_the_place_of_what_was_there(published: Export) -> None:
    told = partial(set_metadata, metadata={"vaekit.graph": "decoder"})
    data = apply((published.path / "decoder.onnx").read_bytes(), told)
    assert [(e.key, e.value) for e in onnx.load_from_string(data).metadata_props] == [("vaekit.graph", "decoder")]


def test_a_compressed_graph_says_its_precision(tiny_bundle: Path, tmp_path: Path) -> None:
    compress_bundle(tiny_bundle, tmp_path / "small", precision="fp16", seconds=0)
    told = metadata_of(tmp_path / "small" / "decoder.onnx")
    assert told["vaekit.precision"] == "fp16"
    assert told["vaekit.latent_shape"] == "4"


def test_onnxs_own_reference_computes_the_golden_vectors(published: Export) -> None:
    with np.load(published.path / "golden.npz") as golden:
        for name, feed, outputs in (("encoder", "image", ("mu", "logvar")), ("decoder", "z", ("decoded",))):
            results = ReferenceEvaluator(str(published.path / f"{name}.onnx")).run(None, {feed: golden[feed]})
            for output, result in zip(outputs, results, strict=True):
                np.testing.assert_allclose(result, golden[output], atol=1e-4, rtol=1e-3)


def test_openvino_computes_the_golden_vectors_and_reads_what_they_are(published: Export) -> None:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    with np.load(published.path / "golden.npz") as golden:
        for name, feed, outputs in (("encoder", "image", ("mu", "logvar")), ("decoder", "z", ("decoded",))):
            model = core.read_model(published.path / f"{name}.onnx")
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            results = compiled({feed: golden[feed]})
            for output in outputs:
                result = results["image" if output == "decoded" else output]
                np.testing.assert_allclose(result, golden[output], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_runtimes_give_back_weights_in_lower_precision(
    published: Export, tmp_path: Path, precision: LowPrecision
) -> None:
    openvino = pytest.importorskip("openvino")
    small = compress_bundle(published.path, tmp_path / "small", precision=precision, weights_only=True, seconds=0).path
    compiled = openvino.Core().compile_model(small / "decoder.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with np.load(small / "golden.npz") as golden:
        by_reference: Any = ReferenceEvaluator(str(small / "decoder.onnx")).run(None, {"z": golden["z"]})
        for result in (compiled({"z": golden["z"]})["image"], by_reference[0]):
            np.testing.assert_allclose(result, golden["decoded"], atol=1e-4, rtol=1e-3)


def test_the_manifest_is_not_needed(published: Export) -> None:
    """The decoder's file is enough to make a picture."""
    path = published.path / "decoder.onnx"
    told = metadata_of(path)
    z = np.zeros((2, *map(int, told["vaekit.latent_shape"].split(","))), np.float32)
    results: Any = ReferenceEvaluator(str(path)).run(None, {"z": z})
    image: Any = results[0]
    assert image.shape == (2, *map(int, told["vaekit.image_shape"].split(",")))
    low, high = map(float, told["vaekit.image_range"].split(","))
    assert image.min() >= low
    assert image.max() <= high
    assert json.loads((published.path / "manifest.json").read_text())["image"]["channels"] == image.shape[1]
