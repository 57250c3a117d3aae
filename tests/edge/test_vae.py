from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaekit
from vaekit.errors import BundleError, ProviderError, UsageError
from vaekit.maths import elbo as scoring
from vaekit.maths import latents
from vaekit.maths.prior import draw_mixture, draw_normal
from vaekit.ort.session import open_on_cpu
from vaekit.types import Array
from vaekit.vae import VAE, load


@pytest.fixture
def vae(tiny_bundle: Path) -> VAE:
    return vaekit.load(tiny_bundle)


@pytest.fixture
def golden(tiny_bundle: Path) -> dict[str, Array]:
    with np.load(tiny_bundle / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def without_mixture(copied_bundle: Path) -> VAE:
    document = json.loads((copied_bundle / "manifest.json").read_text())
    document["prior"] = {"default": "normal"}
    (copied_bundle / "manifest.json").write_text(json.dumps(document))
    return load(copied_bundle)


def images(count: int) -> Array:
    return np.random.default_rng(0).random((count, 1, 8, 8), np.float32)


def test_shapes_are_the_bundles(vae: VAE) -> None:
    assert (vae.image_shape, vae.latent_shape) == ((1, 8, 8), (4,))
    assert vae.priors == ("mixture", "normal")


@pytest.mark.parametrize("count", [0, 1, 7, 65, 129])
def test_what_comes_back_has_the_form_that_is_promised(vae: VAE, count: int) -> None:
    mu, logvar = vae.posterior(images(count))
    assert (mu.shape, logvar.shape) == ((count, 4), (count, 4))
    decoded = vae.decode(mu)
    assert decoded.shape == (count, 1, 8, 8)
    assert mu.dtype == logvar.dtype == decoded.dtype == np.float32
    assert ((decoded >= 0) & (decoded <= 1)).all()
    assert np.isfinite(mu).all()
    assert np.isfinite(logvar).all()


def test_samples_have_the_form_that_is_promised(vae: VAE) -> None:
    sampled = vae.sample(5)
    assert sampled.shape == (5, 1, 8, 8)
    assert sampled.dtype == np.float32
    assert sampled.min() >= 0
    assert sampled.max() <= 1
    assert sampled.std() > 0.1
    assert vae.sample().shape == (1, 1, 8, 8)


def test_results_are_those_of_pytorch(vae: VAE, golden: dict[str, Array]) -> None:
    mu, logvar = vae.encode(golden["image"])
    assert mu == pytest.approx(golden["mu"], abs=1e-5)
    assert logvar == pytest.approx(golden["logvar"], abs=1e-5)
    assert vae.decode(golden["z"]) == pytest.approx(golden["decoded"], abs=1e-5)


def test_far_latents_still_give_images(vae: VAE) -> None:
    decoded = vae.decode(np.array([[-1e6] * 4, [1e6] * 4]))
    assert ((decoded >= 0) & (decoded <= 1)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_any_width_are_taken(vae: VAE, dtype: type[np.floating]) -> None:
    rounded = images(3).astype(np.float16)
    mu, _ = vae.encode(rounded.astype(dtype))
    assert np.array_equal(mu, vae.encode(rounded.astype(np.float32))[0])


def test_arrays_that_are_not_contiguous_are_taken(vae: VAE) -> None:
    pixels = images(6)
    assert np.array_equal(vae.encode(pixels[::2])[0], vae.encode(pixels[::2].copy())[0])
    turned = pixels.transpose(0, 1, 3, 2)
    assert np.array_equal(vae.encode(turned)[0], vae.encode(turned.copy())[0])


def test_what_is_given_is_not_changed(vae: VAE) -> None:
    pixels, z = images(3), np.ones((3, 4), np.float32)
    vae.encode(pixels)
    vae.decode(z)
    assert np.array_equal(pixels, images(3))
    assert (z == 1).all()


@pytest.mark.parametrize("prior", ["mixture", "normal"])
def test_a_sample_depends_neither_on_n_nor_on_the_batch_size(tiny_bundle: Path, prior: str) -> None:
    one, many = (load(tiny_bundle, batch_size=size) for size in (1, 64))
    latents = many.sample_latents(64, seed=5, prior=prior)
    assert many.sample_latents(8, seed=5, prior=prior).tobytes() == latents[:8].tobytes()
    assert one.sample_latents(64, seed=5, prior=prior).tobytes() == latents.tobytes()
    drawn = many.sample(64, seed=5, prior=prior)
    assert many.sample(8, seed=5, prior=prior) == pytest.approx(drawn[:8], abs=1e-6)
    assert one.sample(64, seed=5, prior=prior) == pytest.approx(drawn, abs=1e-6)


def test_codes_do_not_depend_on_the_batch_size(tiny_bundle: Path) -> None:
    one, many = (load(tiny_bundle, batch_size=size).posterior(images(70)) for size in (1, 64))
    assert np.concatenate(one) == pytest.approx(np.concatenate(many), abs=1e-5)


def test_no_more_rows_than_the_batch_size_go_through_a_graph(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = load(tiny_bundle, batch_size=16)
    rows: list[int] = []

    class Watched:
        def run(self, outputs: list[str], inputs: dict[str, Array]) -> list[Array]:
            rows.append(len(inputs["z"]))
            return [np.zeros((len(inputs["z"]), 1, 8, 8), np.float32)]

    monkeypatch.setattr(vae, "graph", lambda graph: Watched())
    vae.decode(np.zeros((40, 4)))
    assert rows == [16, 16, 8]


def test_a_graph_is_opened_once(vae: VAE) -> None:
    assert vae.graph("encoder") is vae.graph("encoder")
    assert vae.graph("encoder") is not vae.graph("decoder")


def test_samples_are_decoded_latents_of_the_prior(vae: VAE) -> None:
    mixture = vae.manifest.mixture
    assert mixture is not None
    latents = vae.sample_latents(6, seed=3)
    assert np.array_equal(latents, draw_mixture(mixture, 6, seed=3))
    assert np.array_equal(vae.sample(6, seed=3), vae.decode(latents))
    normal = vae.sample_latents(6, seed=3, prior="normal", temperature=0.5)
    assert np.array_equal(normal, draw_normal(4, 6, seed=3, temperature=0.5))


def test_seeds_differ_and_repeat(vae: VAE) -> None:
    assert not np.array_equal(vae.sample(4, seed=0), vae.sample(4, seed=1))
    assert np.array_equal(vae.sample(4, seed=1), vae.sample(4, seed=1))


def test_temperature_zero_of_the_normal_prior_decodes_the_origin(vae: VAE) -> None:
    cold = vae.sample(2, prior="normal", temperature=0.0)
    assert cold == pytest.approx(vae.decode(np.zeros((2, 4))), abs=1e-6)


def test_a_bundle_without_a_mixture_draws_from_the_normal_prior(without_mixture: VAE) -> None:
    assert without_mixture.priors == ("normal",)
    expected = without_mixture.sample_latents(3, prior="normal")
    assert np.array_equal(without_mixture.sample_latents(3), expected)
    with pytest.raises(UsageError, match="has no mixture"):
        without_mixture.sample(1, prior="mixture")


BAD_IMAGES: dict[str, Any] = {
    "no batch axis": np.zeros((1, 8, 8), np.float32),
    "another size": np.zeros((2, 1, 8, 9), np.float32),
    "channels last": np.zeros((2, 8, 8, 1), np.float32),
    "an axis too many": np.zeros((2, 1, 8, 8, 1), np.float32),
    "a number": np.float32(0.5),
    "bytes": np.zeros((2, 1, 8, 8), np.uint8),
    "integers": np.ones((2, 1, 8, 8), np.int64),
    "booleans": np.zeros((2, 1, 8, 8), np.bool_),
    "complex numbers": np.zeros((2, 1, 8, 8), np.complex64),
    "objects": np.full((2, 1, 8, 8), None),
    "NaN": np.full((2, 1, 8, 8), np.nan, np.float32),
    "one NaN": np.where(np.arange(64).reshape(1, 1, 8, 8) == 40, np.nan, 0.5),
    "infinity": np.full((2, 1, 8, 8), np.inf, np.float32),
    "above 1": np.full((2, 1, 8, 8), 1.01, np.float32),
    "below 0": np.full((2, 1, 8, 8), -0.01, np.float32),
    "0 to 255": np.full((2, 1, 8, 8), 255.0),
    "beyond float32": np.full((2, 1, 8, 8), 1e300),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_arrays_that_are_no_images_are_refused(vae: VAE, what: str) -> None:
    with pytest.raises(UsageError, match="images must"):
        vae.encode(BAD_IMAGES[what])


BAD_LATENTS: dict[str, Any] = {
    "one latent": np.zeros(4, np.float32),
    "another dimension": np.zeros((2, 5), np.float32),
    "an axis too many": np.zeros((2, 4, 1), np.float32),
    "integers": np.zeros((2, 4), np.int64),
    "NaN": np.full((2, 4), np.nan),
    "infinity": np.full((2, 4), -np.inf),
    "beyond float32": np.full((2, 4), 1e300),
}


@pytest.mark.parametrize("what", BAD_LATENTS)
def test_arrays_that_are_no_latents_are_refused(vae: VAE, what: str) -> None:
    with pytest.raises(UsageError, match="latents must"):
        vae.decode(BAD_LATENTS[what])


BAD_CALLS: dict[str, tuple[Callable[[VAE], object], str]] = {
    "n of 0": (lambda vae: vae.sample(0), "number of samples"),
    "n of -1": (lambda vae: vae.sample_latents(-1), "number of samples"),
    "unknown prior": (lambda vae: vae.sample(1, prior="uniform"), "uniform"),
    "negative temperature": (lambda vae: vae.sample(1, temperature=-0.1), "temperature"),
    "NaN temperature": (lambda vae: vae.sample(1, temperature=float("nan")), "temperature"),
    "infinite temperature": (lambda vae: vae.sample(1, temperature=float("inf")), "temperature"),
    "temperature beyond float32": (lambda vae: vae.sample(1, temperature=1e300), "temperature|finite"),
    "negative seed": (lambda vae: vae.sample(1, seed=-1), "seed"),
    "seed of 2**64": (lambda vae: vae.sample(1, seed=2**64), "seed"),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_samples_out_of_range_are_refused(vae: VAE, what: str) -> None:
    call, word = BAD_CALLS[what]
    with pytest.raises(UsageError, match=word):
        call(vae)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": -2}, "threads"),
        ({"batch_size": 0}, "batch size"),
        ({"provider": "abacus"}, "abacus"),
        ({"provider_options": {"a": "1"}}, "provider"),
        ({"provider": "cpu", "provider_options": {"a": "1"}}, "cpu has no options"),
        ({"provider": ""}, "provider"),
    ],
)
def test_options_out_of_range_are_refused(tiny_bundle: Path, options: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        load(tiny_bundle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1.5, 2.0, np.float32(3), True, np.True_, "2", None, [2]])
def test_what_is_no_whole_number_is_refused(vae: VAE, tiny_bundle: Path, wrong: Any) -> None:
    z = np.zeros(4, np.float32)
    calls: dict[str, Callable[[], object]] = {
        "number of samples": lambda: vae.sample(wrong),
        "seed": lambda: vae.sample(1, seed=wrong),
        "start": lambda: vae.sample_latents(1, start=wrong),
        "number of steps": lambda: vae.interpolate(z, z, wrong),
        "dimension": lambda: vae.traverse(dimensions=[wrong]),
        "batch size": lambda: load(tiny_bundle, batch_size=wrong),
        "height": lambda: vae.at(wrong, 8),
    }
    for what, call in calls.items():
        with pytest.raises(UsageError, match=f"the {what} must be a whole number, not "):
            call()
    others: tuple[Callable[[], object], ...] = (
        lambda: vae.traverse(steps=wrong),
        lambda: vae.traverse(seed=wrong),
        lambda: vae.score(images(1), seed=wrong),
        lambda: vae.elbo_terms(images(1), seed=wrong),
    )
    for call in others:
        with pytest.raises(UsageError, match="must be a whole number"):
            call()


def test_what_is_no_number_is_no_temperature_and_no_span(vae: VAE) -> None:
    for wrong in (True, "1", None, [1.0]):
        with pytest.raises(UsageError, match="temperature"):
            vae.sample(1, temperature=wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="span"):
            vae.traverse(span=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads must be a whole number"):
        load(vae.bundle.path, threads=1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="start must be 0 or more"):
        vae.sample_latents(1, start=-1)
    with pytest.raises(UsageError, match="a list of whole numbers"):
        vae.traverse(dimensions=2)  # type: ignore[arg-type]


def test_numpys_integers_are_whole_numbers(vae: VAE) -> None:
    two, seed = np.int64(2), np.uint8(7)
    assert np.array_equal(vae.sample(two, seed=seed), vae.sample(2, seed=7))  # type: ignore[arg-type]
    z = vae.sample_latents(2)
    assert vae.interpolate(z[0], z[1], np.int32(3)).shape == (3, 1, 8, 8)  # type: ignore[arg-type]
    assert vae.traverse(dimensions=np.array([1, 0]), steps=two).shape == (2, 2, 1, 8, 8)  # type: ignore[arg-type]


def test_the_caller_may_say_what_is_a_latent_and_what_an_image(vae: VAE) -> None:
    z, image = vae.sample_latents(2), images(2)
    assert np.array_equal(vae.interpolate(z[0], z[1], latents=True), vae.interpolate(z[0], z[1]))
    assert np.array_equal(vae.interpolate(image[0], image[1], latents=False), vae.interpolate(image[0], image[1]))
    assert np.array_equal(vae.traverse(z[0], steps=2, latents=True), vae.traverse(z[0], steps=2))
    calls: tuple[Callable[[], object], ...] = (
        lambda: vae.interpolate(image[0], image[1], latents=True),
        lambda: vae.interpolate(z[0], z[1], latents=False),
        lambda: vae.traverse(z[0], latents=False),
    )
    for call in calls:
        with pytest.raises(UsageError, match=r"expected (an image|a latent) of shape \([\d, ]+\), not"):
            call()


def test_where_a_graph_was_placed_can_be_read(tiny_bundle: Path) -> None:
    vae = load(tiny_bundle, provider="cpu", threads=1)
    assert vae.graph("decoder").placement == {"CPUExecutionProvider": 6}


def test_a_graph_that_onnx_runtime_cannot_load_is_one_line() -> None:
    with pytest.raises(BundleError, match="cannot load") as caught:
        open_on_cpu("decoder", b"\x08\x08 no graph")
    assert "\n" not in str(caught.value)


def test_without_onnx_runtime_the_way_to_install_it_is_named(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert vae.sample_latents(2).shape == (2, 4)
    with pytest.raises(ProviderError, match=r"pip install 'vaekit\[cpu\]'"):
        vae.sample()


def test_what_the_package_gives_is_sorted_and_there() -> None:
    assert sorted(vaekit.__all__) == vaekit.__all__
    for name in vaekit.__all__:
        assert getattr(vaekit, name) is not None
    assert dir(vaekit) == vaekit.__all__
    assert (vaekit.load, vaekit.VAE) == (load, VAE)


def test_a_name_that_the_package_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="sampler"):
        _ = vaekit.sampler


# Reconstruction, interpolation and traversal


@pytest.fixture
def digits(golden: dict[str, Array]) -> Array:
    """Return images like those of the training."""
    return golden["image"]


def test_a_reconstruction_is_decoded_from_mu(vae: VAE, digits: Array) -> None:
    assert np.array_equal(vae.reconstruct(digits), vae.decode(vae.encode(digits)[0]))
    assert vae.reconstruct(digits[:0]).shape == (0, 1, 8, 8)


def test_a_reconstruction_is_closer_to_its_image_than_to_others(vae: VAE, digits: Array) -> None:
    distances = ((vae.reconstruct(digits)[:, None] - digits[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(len(digits))).mean() > 0.5


@pytest.mark.parametrize("mode", latents.MODES)
def test_images_are_joined_through_their_mu(vae: VAE, digits: Array, mode: str) -> None:
    strip = vae.interpolate(digits[0], digits[1], 5, mode=mode)
    mu, _ = vae.encode(digits[:2])
    assert strip.shape == (5, 1, 8, 8)
    assert strip.dtype == np.float32
    assert strip == pytest.approx(vae.decode(latents.interpolate(mu[0], mu[1], 5, mode)), abs=1e-5)
    assert strip[[0, -1]] == pytest.approx(vae.reconstruct(digits[:2]), abs=1e-5)


@pytest.mark.parametrize("mode", latents.MODES)
def test_latents_are_joined_as_they_are(vae: VAE, mode: str) -> None:
    a, b = vae.sample_latents(2, seed=4)
    strip = vae.interpolate(a.astype(np.float64), b, mode=mode)
    assert len(strip) == 8
    assert strip == pytest.approx(vae.decode(latents.interpolate(a, b, 8, mode)), abs=1e-6)


def test_an_image_and_a_latent_are_joined(vae: VAE, digits: Array) -> None:
    z = vae.sample_latents(1)[0]
    strip = vae.interpolate(digits[0], z, 2)
    assert strip[0] == pytest.approx(vae.reconstruct(digits[:1])[0], abs=1e-5)
    assert strip[1] == pytest.approx(vae.decode(z[None])[0], abs=1e-5)


BAD_ENDS: dict[str, Any] = {
    "a batch of one": np.zeros((1, 1, 8, 8), np.float32),
    "another size": np.zeros((1, 8, 9), np.float32),
    "another dimension": np.zeros(5, np.float32),
    "a number": np.float32(0),
    "integers": np.zeros(4, np.int64),
    "bytes": np.zeros((1, 8, 8), np.uint8),
    "NaN": np.full(4, np.nan, np.float32),
    "an image out of range": np.full((1, 8, 8), 2.0, np.float32),
}


@pytest.mark.parametrize("what", BAD_ENDS)
def test_what_is_neither_image_nor_latent_is_refused(vae: VAE, what: str) -> None:
    good = np.zeros(4, np.float32)
    with pytest.raises(UsageError, match=r"latent|images must"):
        vae.interpolate(BAD_ENDS[what], good)
    with pytest.raises(UsageError, match=r"latent|images must"):
        vae.interpolate(good, BAD_ENDS[what])
    with pytest.raises(UsageError, match=r"latent|images must"):
        vae.traverse(BAD_ENDS[what])


@pytest.mark.parametrize(("options", "word"), [({"steps": 1}, "2 steps or more"), ({"mode": "cubic"}, "cubic")])
def test_interpolations_out_of_range_are_refused(vae: VAE, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        vae.interpolate(np.zeros(4), np.ones(4), **options)


def test_dimensions_come_the_most_active_first(vae: VAE) -> None:
    kl = np.array(vae.manifest.latent.kl)
    assert sorted(vae.dimensions) == [0, 1, 2, 3]
    assert (np.diff(kl[list(vae.dimensions)]) <= 0).all()


def traversed(vae: VAE, base: Array, dimensions: tuple[int, ...], steps: int, span: float) -> Array:
    """Compute the expected traversal in another way."""
    statistics = vae.manifest.latent
    rows = []
    for j in dimensions:
        for step in range(steps):
            z = base.astype(np.float64).copy()
            z[j] = statistics.mean[j] + (2 * step / (steps - 1) - 1) * span * max(1.0, statistics.std[j])
            rows.append(z)
    return vae.decode(np.array(rows)).reshape(len(dimensions), steps, *vae.image_shape)


def test_a_traversal_moves_each_dimension_of_a_sample_through_its_range(vae: VAE) -> None:
    base = vae.sample_latents(1, seed=0)[0]
    assert vae.traverse() == pytest.approx(traversed(vae, base, vae.dimensions, 9, 2.5), abs=1e-5)
    other = vae.sample_latents(1, seed=7)[0]
    assert vae.traverse(seed=7) == pytest.approx(traversed(vae, other, vae.dimensions, 9, 2.5), abs=1e-5)


def test_a_traversal_keeps_to_the_dimensions_steps_and_span_asked_for(vae: VAE) -> None:
    base = np.array([0.5, -1.0, 0.0, 2.0], np.float32)
    found = vae.traverse(base, dimensions=[3, 0, 3], steps=4, span=0.5)
    assert found.shape == (3, 4, 1, 8, 8)
    assert found.dtype == np.float32
    assert found == pytest.approx(traversed(vae, base, (3, 0, 3), 4, 0.5), abs=1e-5)
    assert found[0] == pytest.approx(found[2])
    assert np.abs(found[0, 0] - found[0, 3]).max() > 0.01


def test_a_traversal_may_start_from_an_image(vae: VAE, digits: Array) -> None:
    mu = vae.encode(digits[:1])[0][0]
    assert vae.traverse(digits[0], seed=3) == pytest.approx(traversed(vae, mu, vae.dimensions, 9, 2.5), abs=1e-5)


def test_a_dimension_that_hardly_varies_is_still_moved_visibly(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((copied_bundle / "manifest.json").read_text())
    document["latent"]["mean"], document["latent"]["std"] = [0.0, 1.0, 0.0, 0.0], [0.01, 3.0, 1.0, 0.0]
    (copied_bundle / "manifest.json").write_text(json.dumps(document))
    vae = load(copied_bundle)
    ends = [vae.traversed_values(j, 3, 2.0).tolist() for j in range(4)]
    assert ends == [[-2.0, 0.0, 2.0], [-5.0, 1.0, 7.0], [-2.0, 0.0, 2.0], [-2.0, 0.0, 2.0]]


BAD_TRAVERSALS: dict[str, tuple[dict[str, Any], str]] = {
    "a dimension too many": ({"dimensions": [0, 4]}, "dimensions are 0 to 3, not 0, 4"),
    "a negative dimension": ({"dimensions": [-1]}, "dimensions are 0 to 3, not -1"),
    "no dimension": ({"dimensions": []}, "dimensions are 0 to 3, not none"),
    "one step": ({"steps": 1}, "2 steps or more"),
    "no span": ({"span": 0.0}, "positive span"),
    "a negative span": ({"span": -1.0}, "positive span"),
    "an endless span": ({"span": float("inf")}, "positive span"),
    "a span that is no number": ({"span": float("nan")}, "positive span"),
    "a negative seed": ({"seed": -1}, "seed"),
}


@pytest.mark.parametrize("what", BAD_TRAVERSALS)
def test_traversals_out_of_range_are_refused(vae: VAE, what: str) -> None:
    options, words = BAD_TRAVERSALS[what]
    with pytest.raises(UsageError, match=words):
        vae.traverse(**options)


# Scores


def test_the_terms_of_the_elbo_are_those_of_scoring(vae: VAE, digits: Array) -> None:
    found = vae.elbo_terms(digits, seed=5)
    mu, logvar = vae.posterior(digits)
    decoded = vae.decode(scoring.posterior_sample(mu, logvar, seed=5))
    expected = scoring.elbo_terms(digits, mu, logvar, decoded, vae.manifest.likelihood)
    assert found.reconstruction.dtype == found.kl.dtype == np.float64
    assert found.reconstruction == pytest.approx(expected.reconstruction)
    assert found.kl == pytest.approx(expected.kl)
    assert (found.kl > 0).all()


def test_a_score_is_minus_the_elbo(vae: VAE, digits: Array) -> None:
    terms = vae.elbo_terms(digits)
    assert np.array_equal(vae.score(digits), terms.kl - terms.reconstruction)
    assert not np.array_equal(vae.score(digits, seed=1), vae.score(digits))
    assert vae.score(digits, seed=1) == pytest.approx(vae.score(digits, seed=1))


def test_a_score_depends_neither_on_its_neighbours_nor_on_the_batch_size(tiny_bundle: Path, digits: Array) -> None:
    shown = np.concatenate([digits, images(70)])
    scores = [load(tiny_bundle, batch_size=size).score(shown) for size in (1, 7, 64)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    assert scores[2] == pytest.approx(scores[0], rel=1e-4)
    order = np.random.default_rng(0).permutation(len(shown))
    assert load(tiny_bundle).score(shown[order]) == pytest.approx(scores[0][order], rel=1e-4)
    assert load(tiny_bundle).score(shown[9:10]) == pytest.approx(scores[0][9:10], rel=1e-4)


def test_noise_is_less_likely_than_what_the_model_knows(vae: VAE, digits: Array) -> None:
    assert vae.score(images(20)).min() > vae.score(digits).max()


def test_no_images_have_no_scores(vae: VAE, digits: Array) -> None:
    assert vae.score(digits[:0]).shape == (0,)
    terms = vae.elbo_terms(digits[:0])
    assert terms.reconstruction.shape == terms.kl.shape == (0,)


def test_what_is_no_image_has_no_score(vae: VAE) -> None:
    with pytest.raises(UsageError, match="images must"):
        vae.score(np.full((2, 1, 8, 8), 255.0))


@pytest.mark.parametrize("prior", ["mixture", "normal"])
def test_samples_may_start_anywhere(vae: VAE, prior: str) -> None:
    whole = vae.sample_latents(5_000, seed=5, prior=prior, temperature=0.7)
    for start, count in ((0, 3), (17, 1), (4_090, 20), (4_999, 1)):
        part = vae.sample_latents(count, seed=5, prior=prior, temperature=0.7, start=start)
        assert part.tobytes() == whole[start : start + count].tobytes()


def imported(statement: str) -> set[str]:
    """Return the modules that a statement imports in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_importing_the_package_imports_no_numpy() -> None:
    assert imported("import vaekit, vaekit.errors") & {"numpy", "PIL", "onnxruntime", "torch", "onnx"} == set()


def test_loading_a_bundle_imports_no_onnx_runtime(tiny_bundle: Path) -> None:
    modules = imported(f"import vaekit; vaekit.load({str(tiny_bundle)!r})")
    assert "numpy" in modules
    assert modules & {"onnxruntime", "torch", "onnx"} == set()


def test_running_a_bundle_imports_no_torch(tiny_bundle: Path) -> None:
    modules = imported(f"import vaekit; vaekit.load({str(tiny_bundle)!r}).sample()")
    assert "onnxruntime" in modules
    assert modules & {"torch", "onnx", "onnxscript", "sklearn", "safetensors"} == set()
