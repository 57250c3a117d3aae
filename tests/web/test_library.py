"""The JavaScript library does in Node.js and in Chromium what the Python class does."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import vaekit as package
from vaekit.errors import BundleError, ProviderError, UsageError
from vaekit.images.picture import fit
from vaekit.maths import noise

Call = Callable[..., Any]

BUNDLES = ("tiny", "tiny-v3", "labels", "flow", "free", "map", "deterministic")
SCORED = ("tiny", "labels", "flow", "free", "map")
quick = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    derandomize=True,
    database=None,
)


def close(found: Any, expected: Any) -> bool:
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=2e-6)


def images_of(vae: package.VAE, n: int = 5) -> Any:
    return np.random.default_rng(3).random((n, *vae.image_shape), np.float32)


@pytest.fixture
def python(bundles: Path) -> Callable[[str], package.VAE]:
    return lambda name: package.load(bundles / name, provider="cpu")


@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 2**80), dimensions=st.integers(1, 9))
@quick
def test_noise_has_the_same_bits(javascript: Call, seed: int, start: int, dimensions: int) -> None:
    found = javascript(None, "standardNormal", seed, start, 3, dimensions).reshape(3, dimensions)
    assert np.array_equal(found, noise.standard_normal(seed, start, 3, dimensions))


def test_ten_thousand_latents_have_the_same_bits(javascript: Call) -> None:
    found = javascript(None, "standardNormal", 7, 0, 10_000, 16).reshape(10_000, 16)
    assert np.array_equal(found, noise.standard_normal(7, 0, 10_000, 16))


@pytest.mark.parametrize("name", BUNDLES)
def test_encode_and_decode(javascript: Call, python: Callable[[str], package.VAE], bundles: Path, name: str) -> None:
    vae = python(name)
    images = images_of(vae)
    mu, logvar = vae.encode(images)
    found = javascript(bundles / name, "encode", images, batchSize=2)
    assert close(found["mu"], mu)
    assert found["logvar"] is None if logvar is None else close(found["logvar"], logvar)
    assert close(javascript(bundles / name, "decode", mu, batchSize=2), vae.decode(mu))
    assert close(javascript(bundles / name, "reconstruct", images), vae.reconstruct(images))


@pytest.mark.parametrize("name", BUNDLES)
def test_properties(node: Call, python: Callable[[str], package.VAE], bundles: Path, name: str) -> None:
    vae = python(name)
    assert node(bundles / name, "imageShape") == list(vae.image_shape)
    assert node(bundles / name, "latentShape") == list(vae.latent_shape)
    assert node(bundles / name, "priors") == list(vae.priors)
    assert node(bundles / name, "labels") == list(vae.labels)
    assert node(bundles / name, "dimensions") == list(vae.dimensions)


@pytest.mark.parametrize("name", ["tiny", "labels", "map"])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_latents_have_the_same_bits(
    javascript: Call, python: Callable[[str], package.VAE], bundles: Path, name: str, seed: int
) -> None:
    prior = "normal" if name == "map" else "mixture"
    options = {"seed": seed, "temperature": 0.7, "prior": prior, "start": 5}
    found = javascript(bundles / name, "sampleLatents", 300, options)
    assert np.array_equal(found, python(name).sample_latents(300, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", ["flow", "mixture"])
@pytest.mark.parametrize("label", ["top", "left", "right"])
def test_labels(javascript: Call, python: Callable[[str], package.VAE], bundles: Path, prior: str, label: str) -> None:
    options = {"seed": 3, "label": label, "prior": prior}
    expected = python("labels").sample_latents(50, seed=3, label=label, prior=prior)
    found = javascript(bundles / "labels", "sampleLatents", 50, options)
    assert np.array_equal(found, expected) if prior == "mixture" else close(found, expected)


@pytest.mark.parametrize("name", ["flow", "labels"])
def test_flow(javascript: Call, python: Callable[[str], package.VAE], bundles: Path, name: str) -> None:
    vae = python(name)
    assert close(javascript(bundles / name, "sample", 20, {"seed": 7}, batchSize=7), vae.sample(20, seed=7))
    options = {"seed": 1, "priorSteps": 3, "start": 10, "temperature": 0.5}
    expected = vae.sample_latents(9, seed=1, prior_steps=3, start=10, temperature=0.5)
    assert close(javascript(bundles / name, "sampleLatents", 9, options), expected)


def test_guidance(javascript: Call, python: Callable[[str], package.VAE], bundles: Path) -> None:
    expected = python("labels").sample(6, seed=2, label="left", guidance=2.5)
    assert close(javascript(bundles / "labels", "sample", 6, {"seed": 2, "label": "left", "guidance": 2.5}), expected)


@pytest.mark.parametrize("name", ["tiny", "map"])
@pytest.mark.parametrize("mode", ["linear", "slerp"])
def test_interpolate(
    javascript: Call, python: Callable[[str], package.VAE], bundles: Path, name: str, mode: str
) -> None:
    vae = python(name)
    a, b = images_of(vae, 2)
    assert close(
        javascript(bundles / name, "interpolate", a, b, {"steps": 5, "mode": mode}), vae.interpolate(a, b, 5, mode=mode)
    )
    one, other = vae.sample_latents(2, seed=4)
    found = javascript(bundles / name, "interpolate", one, other, {"mode": mode, "latents": True})
    assert close(found, vae.interpolate(one, other, mode=mode, latents=True))


def test_traverse(javascript: Call, python: Callable[[str], package.VAE], bundles: Path) -> None:
    for name in ("tiny", "map"):
        vae = python(name)
        (image,) = images_of(vae, 1)
        assert close(javascript(bundles / name, "traverse"), vae.traverse())
        options = {"base": image, "dimensions": [1, 0], "steps": 3, "span": 1.5}
        found = javascript(bundles / name, "traverse", options)
        assert close(found, vae.traverse(image, dimensions=[1, 0], steps=3, span=1.5))
    assert close(javascript(bundles / "map", "traverse", {"at": [1, 2], "seed": 9}), vae.traverse(at=(1, 2), seed=9))


def test_toward(javascript: Call, python: Callable[[str], package.VAE], bundles: Path) -> None:
    vae = python("labels")
    (image,) = images_of(vae, 1)
    names = vae.attributes.names
    found = javascript(bundles / "labels", "toward", image, list(names), {"steps": 4, "strength": 0.7})
    assert close(found, vae.toward(image, names, steps=4, strength=0.7))


@pytest.mark.parametrize("name", SCORED)
def test_elbo_scores(javascript: Call, python: Callable[[str], package.VAE], bundles: Path, name: str) -> None:
    vae = python(name)
    images = images_of(vae)
    for by in ("elbo", "reconstruction", "kl", "mahalanobis"):
        found = javascript(bundles / name, "score", images, {"by": by, "seed": 5})
        assert found == pytest.approx(vae.score(images, by=by, seed=5), rel=1e-4)


def test_the_density_of_mu(javascript: Call, python: Callable[[str], package.VAE], bundles: Path) -> None:
    for name in ("tiny", "labels"):
        images = images_of(python(name))
        expected = python(name).score(images, by="density")
        assert javascript(bundles / name, "score", images, {"by": "density"}) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UsageError, match="has no mixture prior, whose density this score is: none is fitted to maps"):
        javascript(bundles / "map", "score", np.zeros((1, 3, 16, 12)), {"by": "density"})


@pytest.mark.parametrize("name", ["tiny", "free"])
def test_maps_of_surprise(javascript: Call, with_residuals: Callable[..., Path], name: str) -> None:
    path = with_residuals(name)
    vae = package.load(path, provider="cpu")
    images = images_of(vae)
    for by in ("pixel", "gradient", "brightness", "contrast"):
        found, expected = javascript(path, "scoreMap", images, {"by": by}), vae.score_map(images, by=by)
        assert found.shape == expected.shape
        assert np.isclose(found, expected, rtol=1e-3, atol=1e-3).mean() > 0.99  # the rest lies between two classes
        for score in ("map", "peak"):
            scores = javascript(path, "score", images, {"by": score, "mapBy": by})
            assert scores == pytest.approx(vae.score(images, by=score, map_by=by), rel=0.02)
    assert close(
        javascript(path, "scoreMap", images), javascript(path, "scoreMap", images, {"by": vae.residual_statistics()[1]})
    )


def test_free_sizes(javascript: Call, python: Callable[[str], package.VAE], bundles: Path) -> None:
    vae = python("free").at(21, 14)
    images = images_of(vae)
    found = javascript(bundles / "free", "encode", images, at=[21, 14])
    assert close(found["mu"], vae.encode(images)[0])
    assert close(javascript(bundles / "free", "reconstruct", images, at=[21, 14]), vae.reconstruct(images))
    assert close(javascript(bundles / "free", "sample", 2, {"seed": 3}, at=[21, 14]), vae.sample(2, seed=3))


@pytest.mark.parametrize("name", BUNDLES)
def test_verify(javascript: Call, bundles: Path, name: str) -> None:
    verified = javascript(bundles / name, "verify")
    assert verified["passed"]
    assert verified["provider"] in ("cpu", "wasm")
    graphs = ["encoder", "decoder", *(["prior"] if name in ("labels", "flow") else [])]
    assert list(dict.fromkeys(check["graph"] for check in verified["outputs"])) == graphs


def test_verify_sees_a_difference(javascript: Call, bundles: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles / "tiny", tmp_path / "copy"))
    with np.load(copy / "golden.npz") as arrays:
        golden = dict(arrays)
    golden["mu"][3, 1] += 0.01
    np.savez(copy / "golden.npz", **golden)
    change_manifest(copy, lambda document: document["golden"].update(sha256=sha256(copy / "golden.npz")))
    verified = javascript(copy, "verify")
    assert not verified["passed"]
    (mu,) = (check for check in verified["outputs"] if check["output"] == "mu")
    assert mu["maxAbs"] == pytest.approx(0.01, rel=1e-3)


@given(
    height=st.integers(1, 70), width=st.integers(1, 70), mode=st.sampled_from(["L", "RGB", "RGBA"]), seed=st.integers(0)
)
@quick
def test_pictures_are_resized_as_pillow_does(javascript: Call, height: int, width: int, mode: str, seed: int) -> None:
    bundle = Path(__file__).parents[1] / "bundles" / ("tiny" if seed % 2 else "map")
    shape = (1, 8, 8) if seed % 2 else (3, 16, 12)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, len(mode)), np.uint8)
    if mode == "RGBA":
        pixels[..., 3] = 255
    opaque = Image.fromarray(pixels[..., :3] if len(mode) > 1 else pixels[..., 0])
    expected = fit(opaque.convert("L" if shape[0] == 1 else "RGB"), shape[1:])
    (found,) = javascript(bundle, "imagesOf", [pixels])
    assert np.array_equal(np.rint(found * 255), expected)


def test_transparency_is_over_white(javascript: Call, bundles: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:, 3] = 255
    (found,) = javascript(bundles / "tiny", "imagesOf", [pixels])
    assert (found[0, :, :4] == 1).all()
    assert (found[0, :, 4:] == 0).all()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


def zipped(bundle: Path, prefix: str = "", names: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in bundle.iterdir():
            if not names or path.name in names:
                archive.write(path, prefix + path.name)
    return buffer.getvalue()


@pytest.mark.parametrize("prefix", ["", "vae-onnx/"])
def test_a_zip_is_a_bundle(javascript: Call, bundles: Path, prefix: str) -> None:
    assert javascript(zipped(bundles / "tiny", prefix), "verify")["passed"]


def test_a_zip_on_disk_is_a_bundle(node: Call, bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(zipped(bundles / "tiny"))
    assert node(tmp_path / "bundle.zip", "verify")["passed"]


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        ("sample", [0], "1 or more, not 0"),
        ("sample", [1.5], "whole number"),
        ("sample", [1, {"seed": -1}], "out of range"),
        ("sample", [1, {"seed": 2**64}], "out of range"),
        ("sample", [1, {"seed": 0.5}], "whole number"),
        ("sample", [1, {"temperature": -1}], "0 or more, not -1"),
        ("sample", [1, {"prior": "flow"}], "has no flow prior: choose one of mixture, normal"),
        ("sample", [1, {"prior": "other"}], "no prior 'other'"),
        ("sample", [1, {"priorSteps": 3}], "steps belong to the flow"),
        ("sample", [1, {"label": "top"}], "has no labels"),
        ("sample", [1, {"guidance": 2}], "guidance needs the flow and a label"),
        ("sample", [1, {"start": -1}], "the start must be 0 or more"),
        ("decode", [np.zeros((2, 3))], r"the shape \(N, 4\), not \(2, 3\)"),
        ("decode", [np.full((2, 4), np.nan)], "finite"),
        ("encode", [np.full((1, 1, 8, 8), 2.0)], "divide 8-bit values by 255"),
        ("encode", [np.zeros((1, 3, 8, 8))], r"the shape \(N, 1, 8, 8\)"),
        ("interpolate", [np.zeros(4), np.zeros(4), {"steps": 1}], "2 steps or more"),
        ("interpolate", [np.zeros(4), np.zeros(4), {"mode": "cubic"}], "no interpolation mode 'cubic'"),
        ("interpolate", [np.zeros(5), np.zeros(4)], "expected an image of shape"),
        ("traverse", [{"dimensions": [4]}], "dimensions are 0 to 3, not 4"),
        ("traverse", [{"steps": 1}], "2 steps or more"),
        ("traverse", [{"at": [0, 0]}], "vectors, which have no positions"),
        ("toward", [np.zeros(4), ["top"]], "has no attributes"),
        ("score", [np.zeros((1, 1, 8, 8)), {"by": "beauty"}], "no score 'beauty'"),
        ("scoreMap", [np.zeros((1, 1, 8, 8))], "no statistics of residuals"),
        ("at", [16, 16], "only a bundle that was exported with free sizes"),
    ],
)
def test_wrong_arguments(javascript: Call, bundles: Path, call: str, arguments: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        javascript(bundles / "tiny", call, *arguments)


def test_an_unknown_label_names_the_nearest(node: Call, bundles: Path) -> None:
    with pytest.raises(UsageError, match=r"no label 'lift'. The nearest is 'left'; there are top, left, right"):
        node(bundles / "labels", "sample", 1, {"label": "lift"})
    with pytest.raises(UsageError, match="the normal prior does not know the label top: use the prior flow or mixture"):
        node(bundles / "labels", "sample", 1, {"label": "top", "prior": "normal"})


def test_a_deterministic_encoder_has_no_score(node: Call, bundles: Path) -> None:
    with pytest.raises(UsageError, match="deterministic"):
        node(bundles / "deterministic", "score", np.zeros((1, 3, 16, 12)))


def test_a_provider_that_is_not_here(node: Call, bundles: Path) -> None:
    with pytest.raises(ProviderError, match="cuda cannot run the decoder: "):
        node(bundles / "tiny", "sample", providers=["cuda"])


def test_providers_are_tried_in_order(node: Call, bundles: Path) -> None:
    opened = node(bundles / "tiny", "graph", "decoder", providers=["cuda", "cpu"])
    assert opened["provider"] == "cpu"
    assert opened["fellBack"][0].startswith("cuda cannot run the decoder: ")


def flip_a_byte(bundle: Path) -> None:
    data = bytearray((bundle / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "decoder.onnx").write_bytes(data)


def replace_decoder(data: bytes) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / "decoder.onnx").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        change_manifest(bundle, lambda document: document["graphs"]["decoder"].update(sha256=digest))

    return change


def manifest_with(**changes: Any) -> Callable[[Path], None]:
    return lambda bundle: change_manifest(bundle, lambda document: document.update(changes))


def swap_graphs(bundle: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        graphs = document["graphs"]
        graphs["decoder"] = graphs["encoder"]

    change_manifest(bundle, change)


def file_outside(bundle: Path) -> None:
    change_manifest(bundle, lambda document: document["golden"].update(file="../golden.npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_a_byte, "decoder.onnx was changed after export: its sha256 differs"),
        (lambda bundle: (bundle / "golden.npz").unlink(), "golden.npz is missing"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "is not a bundle: it has no manifest.json"),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), "damaged or not a vaekit manifest"),
        (lambda bundle: (bundle / "manifest.json").write_text("[" * 100_000), "damaged or not a vaekit manifest"),
        (manifest_with(format="other"), "not a vaekit manifest"),
        (manifest_with(format_version=99), "has bundle format 99; this vaekit reads up to 3"),
        (manifest_with(requires=["teleport"]), "requires unknown features: teleport"),
        (manifest_with(requires="teleport"), "requires is not a list of names"),
        (manifest_with(posterior="other"), "unknown posterior 'other'"),
        (manifest_with(latent=None), "a part of it is missing"),
        (manifest_with(verify={}), "no tolerances for fp32 graphs"),
        (file_outside, r"'\.\./golden.npz' is not a plain file name"),
        (swap_graphs, "contradicts itself: the decoder's inputs are declared as image"),
        (replace_decoder(b"not ONNX"), "decoder.onnx cannot be used: it is not a complete ONNX file"),
        (replace_decoder(b""), "decoder.onnx cannot be used: it is not a complete ONNX file"),
    ],
)
def test_damaged_bundles(
    node: Call, bundles: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    copy = Path(shutil.copytree(bundles / "tiny-v3", tmp_path / "copy"))
    change(copy)
    with pytest.raises(BundleError, match=message):
        node(copy, "sample")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .zip file"),
        (b"PK\x05\x06" + b"\xff" * 18, "list of files is damaged|Offset is outside"),
    ],
)
def test_damaged_archives(javascript: Call, data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        javascript(data, "sample")


def test_archives_without_one_bundle(node: Call, bundles: Path) -> None:
    with pytest.raises(BundleError, match=r"has no decoder\.onnx"):
        node(zipped(bundles / "tiny", names=("manifest.json", "encoder.onnx")), "sample")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        node(zipped(bundles / "tiny", names=("encoder.onnx",)), "sample")
    buffer = io.BytesIO(zipped(bundles / "tiny"))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("other/manifest.json", "{}")
    with pytest.raises(BundleError, match="contains 2 bundles"):
        node(buffer.getvalue(), "sample")


def test_a_larger_entry_than_the_archive_says(node: Call, bundles: Path) -> None:
    data = bytearray(zipped(bundles / "tiny"))
    size = (bundles / "tiny" / "golden.npz").stat().st_size
    entry = data.rindex(b"golden.npz") - 46
    assert int.from_bytes(data[entry + 24 : entry + 28], "little") == size
    data[entry + 24 : entry + 28] = (size - 1).to_bytes(4, "little")
    with pytest.raises(BundleError, match=r"golden\.npz is (larger|damaged)"):
        node(bytes(data), "verify")


def test_nothing_there(node: Call, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no bundle at .*absent: write one with"):
        node(tmp_path / "absent", "sample")
