"""Any encoder and decoder can be exported and run at the edge, or one line says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import vaekit
from vaekit.bundle.manifest import Scaling
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, ExportError, ParityError, UsageError
from vaekit.images.shapes import draw_shapes
from vaekit_export import onnx_export
from vaekit_export.description import VAEDescription
from vaekit_export.foreign import export_vae
from vaekit_export.publish import Export

Pixels = NDArray[np.uint8]


class PlainEncoder(nn.Module):
    """784-400-20, in the style of pytorch/examples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = functional.relu(self.fc1(x.flatten(1)))
        return self.fc21(hidden), self.fc22(hidden)


class PlainDecoder(nn.Module):
    """20-400-784."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(functional.relu(self.fc3(z)))).view(-1, 1, 28, 28)


PLAIN = VAEDescription((1, 28, 28), (20,), likelihood="bernoulli", name="plain 784-400-20")
SMALL = VAEDescription((3, 8, 6), (4,))


@pytest.fixture(scope="module")
def digits() -> Pixels:
    """Return 40 grey pictures, uint8 (40, 1, 28, 28)."""
    return draw_shapes(40, (28, 28)).images[:, :1]


@pytest.fixture(scope="module")
def plain(digits: Pixels, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlainEncoder, PlainDecoder, Export]:
    """Return the plain network and its bundle."""
    torch.manual_seed(0)
    encoder, decoder = PlainEncoder(), PlainDecoder()
    target = tmp_path_factory.mktemp("plain") / "bundle"
    return encoder, decoder, export_vae(encoder, decoder, PLAIN, digits, target, dataset="digits")


class SmallEncoder(nn.Module):
    """image (B, 3, 8, 6) → mu and logvar (B, 4), changed by ``change``."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any] = lambda mu, logvar: (mu, logvar)) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(144, 8), change

    def forward(self, image: Tensor) -> Any:
        mu, logvar = self.layer(image.flatten(1)).chunk(2, dim=1)
        return self.change(mu, logvar)


class SmallDecoder(nn.Module):
    """z (B, 4) → image (B, 3, 8, 6), changed by ``change``."""

    def __init__(self, change: Callable[[Tensor], Any] = torch.sigmoid) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(4, 144), change

    def forward(self, z: Tensor) -> Any:
        return self.change(self.layer(z).view(-1, 3, 8, 6))


def small_pictures(count: int = 10) -> Pixels:
    return draw_shapes(count, (8, 6)).images


def export_small(
    folder: Path,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    description: VAEDescription = SMALL,
    images: NDArray[Any] | None = None,
    **options: Any,
) -> Export:
    torch.manual_seed(0)
    pictures = small_pictures() if images is None else images
    return export_vae(
        encoder or SmallEncoder(), decoder or SmallDecoder(), description, pictures, folder / "b", **options
    )


def nothing_in(folder: Path) -> bool:
    return not list(folder.iterdir())


# Results


def test_a_plain_network_gives_at_the_edge_what_it_gives_in_pytorch(
    plain: tuple[PlainEncoder, PlainDecoder, Export], digits: Pixels
) -> None:
    encoder, decoder, done = plain
    vae = vaekit.load(done.path, provider="cpu")
    images = digits.astype(np.float32) / np.float32(255)
    with torch.inference_mode():
        mu, logvar = encoder(torch.from_numpy(images))
        decoded = decoder(mu)
    for found, wanted in zip((*vae.posterior(images), vae.decode(mu.numpy())), (mu, logvar, decoded), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5, rtol=1e-4)
    assert vae.verify().passed
    assert vae.sample(3).shape == (3, 1, 28, 28)


def test_its_manifest_says_what_it_is(plain: tuple[PlainEncoder, PlainDecoder, Export], digits: Pixels) -> None:
    manifest = read_bundle(plain[2].path).manifest
    assert (manifest.image.shape, manifest.latent.shape, manifest.posterior) == ((1, 28, 28), (20,), "diagonal")
    assert (manifest.likelihood.name, manifest.mixture) == ("bernoulli", None)
    assert manifest.provenance["model"] == "plain 784-400-20"
    assert manifest.provenance["dataset"] == "digits"
    assert manifest.scores is not None
    scores = vaekit.load(plain[2].path, provider="cpu").score(digits.astype(np.float32) / np.float32(255))
    assert manifest.scores.quantiles["p100"] == pytest.approx(scores.max(), rel=1e-5)
    tried = {(result.graph, result.inputs, result.count) for result in plain[2].results}
    assert ("encoder", "held-out images", 40) in tried
    assert {("decoder", "mu of the images", 40), ("decoder", "samples of N(0, I)", 256)} < tried


def test_modules_come_back_as_they_were(tmp_path: Path) -> None:
    encoder, decoder = SmallEncoder().train(), SmallDecoder().eval()
    export_small(tmp_path, encoder, decoder)
    assert (encoder.training, encoder.layer.training, decoder.training) == (True, True, False)


def test_the_models_own_range_is_part_of_the_graphs(tmp_path: Path) -> None:
    description = dataclasses.replace(SMALL, pixel_range=(-1.0, 1.0), likelihood="gaussian", sigma=0.5)
    encoder, decoder = SmallEncoder(), SmallDecoder(torch.tanh)
    done = export_small(tmp_path, encoder, decoder, description)
    vae = vaekit.load(done.path, provider="cpu")
    images = small_pictures().astype(np.float32) / np.float32(255)
    with torch.inference_mode():
        mu, _ = encoder(2 * torch.from_numpy(images) - 1)
        decoded = (decoder(mu) + 1) / 2
    np.testing.assert_allclose(vae.encode(images)[0], mu.numpy(), atol=1e-5)
    np.testing.assert_allclose(vae.decode(mu.numpy()), decoded.numpy(), atol=1e-5)
    assert np.isfinite(vae.score(images)).all()


def test_what_leaves_the_range_is_clipped_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    done = export_small(tmp_path, decoder=SmallDecoder(lambda image: 3 * image), say=said.append)
    assert any("leaves its pixel range" in line and "sigmoid" in line for line in said)
    sampled = vaekit.load(done.path, provider="cpu").sample(8)
    assert (sampled.min(), sampled.max()) == (0, 1)


def test_an_encoder_of_mu_alone_is_deterministic(tmp_path: Path) -> None:
    done = export_small(tmp_path, SmallEncoder(lambda mu, logvar: mu))
    assert (done.manifest.posterior, done.manifest.scores, done.delta_elbo) == ("deterministic", None, None)
    mu, logvar = vaekit.load(done.path, provider="cpu").encode(small_pictures() / np.float32(255))
    assert mu.shape == (10, 4)
    assert logvar is None


def test_without_a_likelihood_there_are_no_scores(tmp_path: Path) -> None:
    done = export_small(tmp_path)
    assert (done.manifest.posterior, done.manifest.scores, done.delta_elbo) == ("diagonal", None, None)
    vae = vaekit.load(done.path, provider="cpu")
    assert vae.encode(small_pictures() / np.float32(255))[1] is not None
    with pytest.raises(UsageError, match="no likelihood"):
        vae.score(small_pictures() / np.float32(255))


def test_latents_may_be_maps_with_a_scaling(tmp_path: Path) -> None:
    description = dataclasses.replace(SMALL, latent_shape=(1, 2, 2), scaling=Scaling(0.18, 0.1))
    encoder = SmallEncoder(lambda mu, logvar: (mu.view(-1, 1, 2, 2), logvar.view(-1, 1, 2, 2)))
    decoder = nn.Sequential(nn.Flatten(), SmallDecoder())
    done = export_small(tmp_path, encoder, decoder, description)
    assert done.manifest.latent.scaling == Scaling(0.18, 0.1)
    assert vaekit.load(done.path, provider="cpu").sample_latents(3).shape == (3, 1, 2, 2)


def test_one_image_is_enough(tmp_path: Path) -> None:
    assert export_small(tmp_path, images=small_pictures(1) / np.float64(255)).manifest.latent.std == (0, 0, 0, 0)


def test_golden_vectors_may_be_samples(tmp_path: Path) -> None:
    done = export_small(tmp_path, golden="samples")
    with np.load(done.path / "golden.npz") as arrays:
        assert not np.isin(arrays["image"], small_pictures() / np.float32(255)).all()
    assert vaekit.load(done.path, provider="cpu").verify().passed


class Mirror(nn.Module):
    """image → its negative, which is also how the decoder goes back."""

    def forward(self, image: Tensor) -> Tensor:
        return 1 - image


def test_where_latents_look_like_images_the_caller_says_which_they_are(tmp_path: Path) -> None:
    description = dataclasses.replace(SMALL, latent_shape=(3, 8, 6))
    done = export_small(tmp_path, Mirror(), Mirror(), description)
    vae = vaekit.load(done.path, provider="cpu")
    a, b = (np.full((3, 8, 6), value, np.float32) for value in (0.25, 0.75))
    np.testing.assert_allclose(vae.interpolate(a, b, 2, latents=True)[0], 1 - a)
    np.testing.assert_allclose(vae.interpolate(a, b, 2, latents=False)[0], a)
    base = vae.traverse(a, steps=3, latents=True)[0, 1, 0]
    np.testing.assert_allclose(base, 1 - a[0])
    calls: tuple[Callable[[], object], ...] = (lambda: vae.interpolate(a, b, 2), lambda: vae.traverse(a))
    for ask in calls:
        with pytest.raises(UsageError, match=r"both of shape.*latents=True or latents=False"):
            ask()


# Errors


class Sampling(SmallEncoder):
    """An encoder that samples z itself."""

    def forward(self, image: Tensor) -> Any:
        mu, logvar = super().forward(image)
        return self.reparameterise(mu, logvar), logvar

    def reparameterise(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)


class Dropping(SmallEncoder):
    """An encoder that always applies dropout."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(functional.dropout(image, 0.5))


class Gambling(SmallEncoder):
    """An encoder that uses NumPy's random numbers."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image + float(np.random.default_rng().random()))


class Branching(SmallEncoder):
    """An encoder with a branch that depends on data."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image if image.mean() > 0.5 else 1 - image)


ENCODERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "samples z": (Sampling, r"encoder is random: it calls randn_like in reparameterise \(test_foreign.py, line \d+\)"),
    "dropout is on": (Dropping, r"encoder is random: dropout is on in forward \(test_foreign.py, line \d+\)"),
    "draws elsewhere": (Gambling, "encoder is random: it calls a generator that is not PyTorch's"),
    "branches": (Branching, r"control flow depends on the data in forward \(test_foreign.py, line \d+"),
    "three outputs": (lambda: SmallEncoder(lambda mu, logvar: (mu, logvar, mu)), "3 outputs.*mu and logvar"),
    "a dictionary": (lambda: SmallEncoder(lambda mu, logvar: {"mu": mu}), "gives dict instead of a tensor"),
    "another width": (lambda: SmallEncoder(lambda mu, logvar: mu[:, :3]), r"mu of shape \(2, 3\).*latent_shape"),
    "one variance": (lambda: SmallEncoder(lambda mu, logvar: (mu, logvar[:, :1])), r"logvar of shape \(2, 1\)"),
    "NaN": (lambda: SmallEncoder(lambda mu, logvar: (mu, mu.log() - mu.log())), "NaN or infinity in logvar"),
    "other numbers": (lambda: SmallEncoder(lambda mu, logvar: mu.double()), "mu as float64, not float32"),
    "for other images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 4)), r"an input of shape \(2, 3, 8, 6\)"),
    "in double": (lambda: SmallEncoder().double(), r"encoder's layer.weight is float64.*\.float\(\)"),
    "one batch size": (
        lambda: SmallEncoder(lambda mu, logvar: mu.reshape(4, 2).reshape(2, 4)), "one batch size only"
    ),
}  # fmt: skip

DECODERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "flat images": (lambda: SmallDecoder(lambda image: image.flatten(1)), r"image of shape \(2, 144\).*image_shape"),
    "two images": (lambda: SmallDecoder(lambda image: (image, image)), "gives tuple instead of a tensor"),
    "noise": (lambda: SmallDecoder(lambda image: image + torch.rand_like(image)), "it calls rand_like"),
}  # fmt: skip


@pytest.mark.parametrize("what", ENCODERS)
def test_an_encoder_that_is_not_what_is_described_is_explained(tmp_path: Path, what: str) -> None:
    make, words = ENCODERS[what]
    with pytest.raises(ExportError, match=words) as caught:
        export_small(tmp_path, make())
    assert "\n" not in str(caught.value)
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("what", DECODERS)
def test_a_decoder_that_is_not_what_is_described_is_explained(tmp_path: Path, what: str) -> None:
    make, words = DECODERS[what]
    with pytest.raises(ExportError, match=words):
        export_small(tmp_path, decoder=make())
    assert nothing_in(tmp_path)


def test_a_variance_that_overflows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"overflow.*logvar the natural log"):
        export_small(tmp_path, SmallEncoder(lambda mu, logvar: (mu, logvar + 1000)))
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm1d(3, track_running_stats=False)]
)
def test_a_model_that_takes_statistics_over_the_batch_is_refused(tmp_path: Path, layer: nn.Module, count: int) -> None:
    flat = isinstance(layer, nn.BatchNorm1d)
    first = nn.Sequential(nn.Flatten(2), layer) if flat else layer
    encoder = nn.Sequential(first, nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(ParityError, match=r"depends on the other rows of its batch: encoder, output mu") as caught:
        export_small(tmp_path, encoder, images=small_pictures(count))
    assert "\n" not in str(caught.value)
    assert nothing_in(tmp_path)


IMAGES: dict[str, NDArray[Any]] = {
    "none": small_pictures(1)[:0],
    "of another size": draw_shapes(3, (9, 6)).images,
    "grey": small_pictures()[:, 0],
    "in the model's own range": small_pictures() / 127.5 - 1,
    "not divided": small_pictures().astype(np.float32),
    "NaN": np.full((2, 3, 8, 6), np.nan),
    "whole numbers": small_pictures().astype(np.int64),
}


@pytest.mark.parametrize("what", IMAGES)
def test_images_that_do_not_fit_are_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(UsageError, match=r"images must (be|have)"):
        export_small(tmp_path, images=IMAGES[what])
    assert nothing_in(tmp_path)


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "two channels": {"image_shape": (2, 8, 6)},
    "no height": {"image_shape": (3, 8)},
    "a flat map": {"latent_shape": (4, 4)},
    "an empty latent": {"latent_shape": (0,)},
    "no range": {"pixel_range": (1.0, 1.0)},
    "another likelihood": {"likelihood": "laplace"},
    "a gaussian without sigma": {"likelihood": "gaussian"},
    "bernoulli with sigma": {"likelihood": "bernoulli", "sigma": 0.1},
    "half a pixel": {"image_shape": (3, 8.0, 6)},
    "a number of pixels": {"image_shape": 3},
    "words": {"latent_shape": "four"},
    "true": {"latent_shape": True},
    "no latent": {"latent_shape": None},
    "one end": {"pixel_range": 1.0},
    "three ends": {"pixel_range": (0, 0.5, 1)},
    "ends in words": {"pixel_range": ("black", "white")},
    "sigma in words": {"likelihood": "gaussian", "sigma": "0.1"},
    "half a step": {"multiple_of": 0.5},
    "a scaling that is a number": {"scaling": 0.18215},
    "a mean too few": {"latent_shape": (2, 2, 3), "scaling": Scaling(1.0, 0.0, mean=(0.5,))},
}


@pytest.mark.parametrize("what", DESCRIPTIONS)
def test_a_description_that_cannot_be_is_refused(what: str) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(SMALL, **DESCRIPTIONS[what])


def test_lists_and_integers_are_taken_for_shapes(tmp_path: Path) -> None:
    plain = VAEDescription((3, 8, 6), (4,), pixel_range=(-1.0, 1.0), likelihood="gaussian", sigma=0.5)
    given: list[tuple[Any, Any]] = [([3, 8, 6], [4]), (np.array([3, 8, 6]), 4), (torch.Size((3, 8, 6)), np.int64(4))]
    for image, latent in given:
        sigma: Any = np.float32(0.5)
        ends: Any = [np.float64(-1), 1]
        description = VAEDescription(image, latent, ends, "gaussian", sigma)
        assert description == plain
        assert json.dumps(dataclasses.asdict(description)) == json.dumps(dataclasses.asdict(plain))
    assert export_small(tmp_path, description=description).manifest.latent.shape == (4,)


def test_the_program_around_an_export_stays_as_it_was(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    class Noisy(SmallEncoder):
        def forward(self, image: Tensor) -> Any:
            warnings.warn("old-fashioned", stacklevel=1)
            np.random.rand()  # noqa: NPY002 — what a model may do
            random.random()
            torch.rand(1)
            return super().forward(image)

    encoder, decoder = Noisy(), SmallDecoder()
    overflowing = Noisy(lambda mu, logvar: (mu, logvar + 1000))
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    logging.disable(logging.DEBUG)
    try:
        with pytest.raises(ExportError, match="overflow"):
            export_vae(
                overflowing,
                decoder,
                dataclasses.replace(SMALL, likelihood="gaussian", sigma=0.1),
                small_pictures(),
                tmp_path / "none",
            )
        export_vae(encoder, decoder, SMALL, small_pictures(), tmp_path / "b")
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == str(before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert [str(warning.message) for warning in recwarn] == []


def test_weights_that_fit_no_file_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = SmallEncoder(), SmallDecoder()
    decoder.unused = nn.Linear(100, 100)  # as half a model may hold the other half
    monkeypatch.setattr(onnx_export, "_LARGEST_FILE", 5000)
    export_small(tmp_path, encoder, decoder)
    monkeypatch.setattr(onnx_export, "_LARGEST_FILE", 4000)
    said: list[str] = []
    with pytest.raises(ExportError, match=r"the encoder has 0\.00 GB of weights, and one ONNX file holds at most"):
        export_small(tmp_path / "other", encoder, decoder, say=said.append)
    assert said == []


def test_what_is_in_the_way_or_out_of_range_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="is not a bundle"):
        export_small(tmp_path, Sampling())
    for options in ({"opset": 9}, {"golden": "images of cats"}):
        with pytest.raises(UsageError):
            export_small(tmp_path / "other", Sampling(), **options)


class MapEncoder(nn.Module):
    """image (B, 3, H, W) → mu (B, 2, H/4, W/4), changed by ``change``."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda mu: mu) -> None:
        super().__init__()
        self.layer, self.change = nn.Conv2d(3, 2, 4, 4), change

    def forward(self, image: Tensor) -> Tensor:
        return self.change(self.layer(image))


def map_decoder() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(2, 3, 4, 4), nn.Sigmoid())


FREE = VAEDescription((3, 8, 12), (2, 2, 3), multiple_of=4)


def test_graphs_of_free_sizes_say_so(tmp_path: Path) -> None:
    done = export_vae(MapEncoder(), map_decoder(), FREE, draw_shapes(6, (8, 12)).images, tmp_path / "b")
    graphs = done.manifest.graphs
    assert graphs["encoder"].inputs[0].shape == ("batch", 3, "height", "width")
    assert graphs["encoder"].outputs[0].shape == ("batch", 2, "latent_height", "latent_width")
    assert graphs["decoder"].inputs[0].shape == ("batch", 2, "latent_height", "latent_width")
    assert graphs["decoder"].outputs[0].shape == ("batch", 3, "height", "width")
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["image"]["multiple_of"] == 4


def test_a_model_of_one_size_only_is_refused(tmp_path: Path) -> None:
    fixed = MapEncoder(lambda mu: mu + torch.ones(2, 2, 3))
    with pytest.raises(ExportError, match="works for one size only"):
        export_vae(fixed, map_decoder(), FREE, draw_shapes(6, (8, 12)).images, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("image", "latent", "step"),
    [((3, 8, 12), (4,), 4), ((3, 8, 12), (2, 2, 3), 2), ((3, 8, 12), (2, 2, 3), 0), ((3, 8, 12), (2, 2, 3), 8)],
)
def test_free_sizes_that_cannot_be_are_refused(image: tuple[int, int, int], latent: tuple[int, ...], step: int) -> None:
    with pytest.raises(UsageError, match="multiple"):
        VAEDescription(image, latent, multiple_of=step)
