"""Adapter for pythae's models. Needs the extra ``pythae``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from vaekit.errors import ExportError, MissingExtraError, UsageError
from vaekit.types import LikelihoodName
from vaekit_export.description import ForeignVAE, VAEDescription
from vaekit_export.onnx_export import quietly

try:
    from pythae.models import AutoModel, BaseAE
except ImportError as error:
    raise MissingExtraError("this needs pythae: pip install 'vaekit[pythae]'") from error

_DIAGONAL = (
    "VAE", "BetaVAE", "BetaTCVAE", "DisentangledBetaVAE", "FactorVAE", "INFOVAE_MMD", "MSSSIM_VAE", "VAEGAN",
    "IWAE", "MIWAE", "PIWAE", "CIWAE",
)  # fmt: skip
"""Models whose encoder gives mu and logvar of q(z|x), with p(z) = N(0, I)."""

_DETERMINISTIC = ("AE", "WAE_MMD", "RAE_L2", "RAE_GP")

_LIKELIHOODS: dict[str, tuple[LikelihoodName, float | None]] = {"mse": ("gaussian", 1.0), "bce": ("bernoulli", None)}
"""Half the squared error is a Gaussian's with variance 1, as in pythae's ``get_nll``."""

_OTHER_LOSSES = ("MSSSIM_VAE", "VAEGAN")  # their losses compare structure or features, not pixels


def from_pythae(model: BaseAE) -> ForeignVAE:
    """Describe a pythae model for export.

    Its pixels are in [0, 1], and the likelihood is that of its reconstruction loss. Raises ExportError for models that
    do more than encode and decode (flows, quantisation, sampling in the latent space), or whose images are not
    (C, H, W).
    """
    name = str(model.model_name)
    if name not in _DIAGONAL + _DETERMINISTIC:
        raise ExportError(
            f"pythae's {name} cannot be exported: it is more than its encoder and decoder. These can: "
            + ", ".join(_DIAGONAL + _DETERMINISTIC)
        )
    config = model.model_config
    shape = tuple(int(side) for side in config.input_dim or ())
    if len(shape) != 3:
        raise ExportError(f"the model's input_dim is {config.input_dim}, not (channels, height, width)")
    stochastic = name in _DIAGONAL
    loss = getattr(config, "reconstruction_loss", "") if stochastic and name not in _OTHER_LOSSES else ""
    likelihood, sigma = _LIKELIHOODS.get(loss, ("none", None))
    description = VAEDescription(
        image_shape=(shape[0], shape[1], shape[2]),
        latent_shape=(int(config.latent_dim),),
        likelihood=likelihood,
        sigma=sigma,
        name=f"pythae {name}",
    )
    return ForeignVAE(_Encoder(model.encoder, stochastic), _Decoder(model.decoder), description, model)


def load_pythae(folder: Path, *, trust_pickle: bool) -> ForeignVAE:
    """Load a model from a folder that pythae saved.

    pythae saves pickles, which can run any code. Raises UsageError unless ``trust_pickle``, and ExportError if the
    folder cannot be read or the model cannot be exported (see ``from_pythae``).
    """
    if not trust_pickle:
        raise UsageError(
            f"{folder} has pickles, because pythae saves them, and a pickle can run any code: give --trust-pickle if "
            "you trust its author"
        )
    if not (folder / "model_config.json").is_file():
        raise ExportError(f"{folder} is not the folder of a pythae model: it has no model_config.json")
    try:
        with quietly():
            model = AutoModel.load_from_folder(str(folder))
    except Exception as error:  # a pickle may raise anything
        raise ExportError(
            f"pythae cannot load {folder}: {' '.join(f'{type(error).__name__}: {error}'.split())}"
        ) from error
    vae = from_pythae(model)
    name = f"{vae.description.name} {folder.resolve().name}"
    return vae._replace(description=dataclasses.replace(vae.description, name=name))


class _Encoder(nn.Module):
    """image (B, C, H, W) → mu and logvar, (B, d) each, or mu alone."""

    def __init__(self, encoder: nn.Module, stochastic: bool) -> None:
        super().__init__()
        self.encoder, self.stochastic = encoder, stochastic

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.encoder(image)
        mu: Tensor = found.embedding
        return (mu, found.log_covariance) if self.stochastic else mu


class _Decoder(nn.Module):
    """z (B, d) → image (B, C, H, W)."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.decoder(z).reconstruction
        return image
