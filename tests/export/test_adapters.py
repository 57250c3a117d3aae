"""VAEs created by other libraries, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vaekit
from vaekit.bundle.manifest import Scaling
from vaekit.errors import ExportError, UsageError
from vaekit.images.shapes import draw_shapes
from vaekit.vae import VAE
from vaekit_export.description import ForeignVAE
from vaekit_export.foreign import export_vae
from vaekit_export.publish import Export

Pixels = NDArray[np.uint8]


def export(vae: ForeignVAE, images: Pixels, target: Path) -> Export:
    return export_vae(vae.encoder, vae.decoder, vae.description, images, target)


def floats(images: Pixels) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


def pictures(size: tuple[int, int] = (16, 24), count: int = 12) -> Pixels:
    return draw_shapes(count, size).images


@pytest.fixture
def kl() -> Any:
    """Return a small AutoencoderKL with one downsampling by two."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ).eval()


@pytest.fixture
def tiny() -> Any:
    """Return a small AutoencoderTiny with one downsampling by two."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


def test_the_latents_own_statistics_are_kept(kl: Any) -> None:
    from vaekit_export.adapters.diffusers import from_diffusers

    kl.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[1.5, 2.0, 0.5, 0.25])
    wanted = Scaling(0.3611, 0.0, (0.1, -0.2, 0.3, 0.4), (1.5, 2.0, 0.5, 0.25))
    assert from_diffusers(kl).description.scaling == wanted


def test_weights_that_are_a_variant_only_are_loaded(kl: Any, tmp_path: Path) -> None:
    from vaekit_export.adapters.diffusers import load_diffusers

    kl.half().save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    vae = load_diffusers(tmp_path)
    assert vae.description.name == f"AutoencoderKL {tmp_path.name} (fp16)"
    assert vae.model is not None
    for name, weight in vae.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, kl.state_dict()[name].float())
    kl.save_pretrained(tmp_path, variant="bf16")
    with pytest.raises(ExportError, match="variants bf16, fp16, but none without"):
        load_diffusers(tmp_path)
    kl.save_pretrained(tmp_path)
    assert load_diffusers(tmp_path).description.name == f"AutoencoderKL {tmp_path.name}"


def assert_same_results(vae: VAE, kl: Any, images: NDArray[np.float32]) -> None:
    """Check that a bundle encodes and decodes like its AutoencoderKL."""
    with torch.inference_mode():
        posterior = kl.encode(2 * torch.from_numpy(images) - 1).latent_dist
        decoded = (kl.decode(posterior.mean).sample / 2 + 0.5).clamp(0, 1)
    mu, logvar = vae.posterior(images)
    np.testing.assert_allclose(mu, posterior.mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(logvar, posterior.logvar.numpy(), atol=1e-4)
    np.testing.assert_allclose(vae.decode(mu), decoded.numpy(), atol=1e-4)


def test_an_autoencoder_kl_gives_at_the_edge_what_diffusers_gives(kl: Any, tmp_path: Path) -> None:
    from vaekit_export.adapters.diffusers import from_diffusers

    done = export(from_diffusers(kl, (16, 24), sigma=0.1), pictures(), tmp_path / "b")
    vae = vaekit.load(done.path, provider="cpu")
    assert (vae.image_shape, vae.latent_shape) == ((3, 16, 24), (4, 8, 12))
    assert vae.manifest.latent.scaling == Scaling(0.3611, 0.1159)
    assert vae.manifest.provenance["model"] == "AutoencoderKL"
    images = floats(pictures())
    assert_same_results(vae, kl, images)
    assert np.isfinite(vae.score(images)).all()
    assert vae.verify().passed


def test_an_autoencoder_kl_may_leave_its_size_free(kl: Any, tmp_path: Path) -> None:
    from vaekit_export.adapters.diffusers import from_diffusers

    done = export(from_diffusers(kl, free_size=True), pictures((16, 16)), tmp_path / "b")
    assert {"held-out images at 18x20", "their mu at 18x20"} < {result.inputs for result in done.results}
    vae = vaekit.load(done.path, provider="cpu").at(24, 10)
    assert_same_results(vae, kl, floats(pictures((24, 10))))


def test_an_autoencoder_tiny_may_leave_its_size_free(tiny: Any, tmp_path: Path) -> None:
    from vaekit_export.adapters.diffusers import from_diffusers

    done = export(from_diffusers(tiny, (16, 16), free_size=True), pictures((16, 16)), tmp_path / "b")
    images = floats(pictures((24, 10)))
    with torch.inference_mode():
        decoded = (tiny.decode(tiny.encode(2 * torch.from_numpy(images) - 1).latents).sample / 2 + 0.5).clamp(0, 1)
    again = vaekit.load(done.path, provider="cpu").at(24, 10).reconstruct(images)
    np.testing.assert_allclose(again, decoded.numpy(), atol=1e-5)


def test_an_autoencoder_kl_states_no_likelihood_of_its_own(kl: Any) -> None:
    from vaekit_export.adapters.diffusers import from_diffusers

    description = from_diffusers(kl).description
    assert (description.likelihood, description.sigma) == ("none", None)
    assert description.image_shape == (3, 16, 16)  # sample_size


def test_an_autoencoder_tiny_is_deterministic(tiny: Any, tmp_path: Path) -> None:
    from vaekit_export.adapters.diffusers import from_diffusers

    done = export(from_diffusers(tiny, (16, 24)), pictures(), tmp_path / "b")
    vae = vaekit.load(done.path, provider="cpu")
    assert (done.manifest.posterior, done.manifest.scores, done.manifest.latent.scaling) == (
        "deterministic",
        None,
        None,
    )
    images = floats(pictures())
    with torch.inference_mode():
        wanted = tiny.encode(2 * torch.from_numpy(images) - 1).latents
        decoded = (tiny.decode(wanted).sample / 2 + 0.5).clamp(0, 1)
    mu, logvar = vae.encode(images)
    assert logvar is None
    np.testing.assert_allclose(mu, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(vae.reconstruct(images), decoded.numpy(), atol=1e-5)
    with pytest.raises(UsageError, match="deterministic"):
        vae.score(images)


def test_a_folder_of_diffusers_is_read_as_it_was_saved(
    kl: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from vaekit_export.adapters.diffusers import load_diffusers

    kl.save_pretrained(tmp_path / "kl")
    capfd.readouterr()
    vae = load_diffusers(tmp_path / "kl", (8, 8))
    assert capfd.readouterr() == ("", "")
    assert vae.description.name == "AutoencoderKL kl"
    assert vae.model is not None
    assert all(torch.equal(a, b) for a, b in zip(vae.model.parameters(), kl.parameters(), strict=True))


def test_sizes_and_options_that_a_diffusers_model_cannot_have_are_refused(kl: Any, tiny: Any) -> None:
    from vaekit_export.adapters.diffusers import from_diffusers

    with pytest.raises(UsageError, match="9x16 must be a multiple of 2"):
        from_diffusers(kl, (9, 16))
    with pytest.raises(UsageError, match="--size"):
        from_diffusers(tiny)
    with pytest.raises(UsageError, match="deterministic"):
        from_diffusers(tiny, (8, 8), sigma=0.1)
    with pytest.raises(ExportError, match="Linear is not one of AutoencoderKL, AutoencoderTiny"):
        from_diffusers(torch.nn.Linear(2, 2))


def test_folders_that_are_no_diffusers_vae_are_refused(kl: Any, tmp_path: Path) -> None:
    from vaekit_export.adapters.diffusers import load_diffusers

    with pytest.raises(ExportError, match=r"has no config\.json"):
        load_diffusers(tmp_path)
    kl.save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(ExportError, match=r"whole pipeline: give .*vae"):
        load_diffusers(tmp_path / "pipeline")
    config = tmp_path / "pipeline" / "vae" / "config.json"
    document = json.loads(config.read_text())
    (tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ExportError, match="diffusers cannot load"):
        load_diffusers(tmp_path / "pipeline" / "vae")
    config.write_text(json.dumps(document | {"_class_name": "VQModel"}))
    with pytest.raises(ExportError, match="holds a VQModel"):
        load_diffusers(tmp_path / "pipeline" / "vae")
    config.write_text("not JSON")
    with pytest.raises(ExportError, match="not the configuration"):
        load_diffusers(tmp_path / "pipeline" / "vae")


def pythae_model(name: str = "VAE", **options: Any) -> Any:
    """Return a pythae model for grey 8 x 6 images with five latent dimensions."""
    models = pytest.importorskip("pythae.models")
    torch.manual_seed(0)
    config = getattr(models, f"{name}Config" if name != "WAE_MMD" else "WAE_MMD_Config")
    return getattr(models, name)(config(input_dim=(1, 8, 6), latent_dim=5, **options)).eval()


def grey(count: int = 12) -> Pixels:
    return pictures((8, 6), count)[:, :1]


@pytest.mark.parametrize(("loss", "likelihood", "sigma"), [("mse", "gaussian", 1.0), ("bce", "bernoulli", None)])
def test_a_pythae_model_gives_at_the_edge_what_pythae_gives(
    tmp_path: Path, loss: str, likelihood: str, sigma: float | None
) -> None:
    model = pythae_model(reconstruction_loss=loss)
    from vaekit_export.adapters.pythae import from_pythae

    done = export(from_pythae(model), grey(), tmp_path / "b")
    assert (done.manifest.likelihood.name, done.manifest.likelihood.sigma) == (likelihood, sigma)
    vae, images = vaekit.load(done.path, provider="cpu"), floats(grey())
    with torch.inference_mode():
        codes = model.encoder(torch.from_numpy(images))
        decoded = model.decoder(codes.embedding).reconstruction
    mu, logvar = vae.posterior(images)
    np.testing.assert_allclose(mu, codes.embedding.numpy(), atol=1e-5)
    np.testing.assert_allclose(logvar, codes.log_covariance.numpy(), atol=1e-5)
    np.testing.assert_allclose(vae.reconstruct(images), decoded.numpy(), atol=1e-5)
    assert len(vae.score(images)) == 12


def test_a_pythae_autoencoder_is_deterministic(tmp_path: Path) -> None:
    model = pythae_model("AE")
    from vaekit_export.adapters.pythae import from_pythae

    assert export(from_pythae(model), grey(), tmp_path / "b").manifest.posterior == "deterministic"


def test_a_pythae_model_that_is_more_than_its_halves_is_refused() -> None:
    model = pythae_model("VAMP")
    from vaekit_export.adapters.pythae import from_pythae

    with pytest.raises(ExportError, match="VAMP cannot be exported"):
        from_pythae(model)


def test_a_folder_of_pythae_is_read_only_where_its_pickles_are_trusted(tmp_path: Path) -> None:
    model = pythae_model()
    from vaekit_export.adapters.pythae import load_pythae

    model.save(str(tmp_path / "py"))
    with pytest.raises(UsageError, match=r"pickles.*--trust-pickle"):
        load_pythae(tmp_path / "py", trust_pickle=False)
    vae = load_pythae(tmp_path / "py", trust_pickle=True)
    assert vae.description.name == "pythae VAE py"
    assert vae.model is not None
    assert all(torch.equal(a, b) for a, b in zip(vae.model.parameters(), model.parameters(), strict=True))
    (tmp_path / "py" / "model.pt").write_bytes(b"cut short")
    with pytest.raises(ExportError, match="pythae cannot load"):
        load_pythae(tmp_path / "py", trust_pickle=True)
    with pytest.raises(ExportError, match=r"has no model_config\.json"):
        load_pythae(tmp_path, trust_pickle=True)
