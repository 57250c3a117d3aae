"""Adapter for diffusers' ``AutoencoderKL`` and ``AutoencoderTiny``. Needs the extra ``diffusers``."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaekit.bundle.manifest import Scaling
from vaekit.errors import ExportError, MissingExtraError, UsageError
from vaekit_export.description import ForeignVAE, VAEDescription
from vaekit_export.onnx_export import quietly

try:
    from diffusers import AutoencoderKL, AutoencoderTiny
except ImportError as error:
    raise MissingExtraError("this needs diffusers: pip install 'vaekit[diffusers]'") from error

_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model"
_VARIANT = re.compile(rf"{_WEIGHTS}\.(?:(\w+?)(?:-\d+-of-\d+)?\.safetensors|safetensors\.index\.(\w+)\.json)")
_RANGE = (-1.0, 1.0)  # the pixel range of both classes, as in diffusers' VaeImageProcessor
_LOGVAR = (-30.0, 20.0)  # DiagonalGaussianDistribution clamps to these


def from_diffusers(
    model: AutoencoderKL | AutoencoderTiny,
    size: tuple[int, int] | None = None,
    *,
    sigma: float | None = None,
    free_size: bool = False,
) -> ForeignVAE:
    """Describe an ``AutoencoderKL`` or ``AutoencoderTiny`` for export.

    The encoder of an ``AutoencoderTiny`` is deterministic. ``size`` is (height, width), by default the model's
    ``sample_size``. With ``free_size`` it is only the default, and all multiples of the downsampling factor are
    accepted. Latents are the model's own, before its scaling and shift; the description keeps these.

    These models state no likelihood. ``sigma`` gives an ``AutoencoderKL`` a Gaussian one, for pixels in [0, 1].

    Raises UsageError for a missing size, or one that is not a multiple of the downsampling factor. Raises ExportError
    for another class, or for images without 1 or 3 channels.
    """
    if not isinstance(model, AutoencoderKL | AutoencoderTiny):
        raise ExportError(f"{type(model).__name__} is not one of {', '.join(_CLASSES)}")
    config, stochastic = model.config, isinstance(model, AutoencoderKL)
    channels = config.in_channels
    if channels not in (1, 3) or config.out_channels != channels:
        raise ExportError(f"the model takes {channels} channels and gives {config.out_channels}, not 1 or 3 of both")
    if sigma is not None and not stochastic:
        raise UsageError("--sigma gives a likelihood, but AutoencoderTiny is deterministic: it has no ELBO to score by")
    height, width = _image_size(config.get("sample_size"), size)
    halvings = len(config.block_out_channels if stochastic else config.encoder_block_out_channels) - 1
    step = 2**halvings
    if height % step or width % step:
        raise UsageError(f"the size {height}x{width} must be a multiple of {step}, the model's downsampling factor")
    description = VAEDescription(
        image_shape=(channels, height, width),
        latent_shape=(config.latent_channels, height // step, width // step),
        pixel_range=_RANGE,
        likelihood="none" if sigma is None else "gaussian",
        sigma=sigma,
        scaling=_scaling(config),
        multiple_of=step if free_size else None,
        name=type(model).__name__,
    )
    encoder = _MomentsEncoder(model, config.latent_channels) if stochastic else _TinyEncoder(model)
    return ForeignVAE(encoder, _Decoder(model), description, model)


def load_diffusers(
    folder: Path, size: tuple[int, int] | None = None, *, sigma: float | None = None, free_size: bool = False
) -> ForeignVAE:
    """Load a model from a folder in diffusers' format.

    Nothing is downloaded or unpickled. If the folder has the weights only as a variant, such as fp16, that is loaded
    and converted to float32. See ``from_diffusers`` for the arguments. Raises ExportError if the folder has no model
    that can be read.
    """
    name = _class_name(folder)
    if name not in _CLASSES:
        raise ExportError(f"{folder} holds a {name}: vaekit exports {' and '.join(_CLASSES)}")
    variant = _variant(folder)
    try:
        with quietly():
            model = _CLASSES[name].from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                variant=variant,
            )
    except Exception as error:  # diffusers, huggingface_hub and safetensors each raise their own
        lines = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExportError(f"diffusers cannot load {folder}: {lines}") from error
    vae = from_diffusers(model, size, sigma=sigma, free_size=free_size)
    return vae._replace(
        description=dataclasses.replace(
            vae.description, name=f"{name} {folder.resolve().name}{f' ({variant})' if variant else ''}"
        )
    )


class _MomentsEncoder(nn.Module):
    """image (B, C, H, W) in [-1, 1] → mu and logvar, (B, c, h, w) each, from the moments of ``AutoencoderKL``."""

    def __init__(self, vae: AutoencoderKL, channels: int) -> None:
        super().__init__()
        self.vae, self.channels = vae, channels

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.vae.encode(image).latent_dist.parameters
        return moments[:, : self.channels], moments[:, self.channels :].clamp(*_LOGVAR)


class _TinyEncoder(nn.Module):
    """image (B, C, H, W) in [-1, 1] → mu (B, c, h, w)."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        mu: Tensor = self.vae.encode(image).latents
        return mu


class _Decoder(nn.Module):
    """z (B, c, h, w) → image (B, C, H, W), approximately in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(z).sample
        return image


def _scaling(config: Any) -> Scaling | None:
    """Return the scaling that pipelines apply to the latents.

    If the config has ``latents_mean``, its ``shift_factor`` is ignored.
    """
    mean, std = (
        None if config.get(key) is None else tuple(map(float, config[key])) for key in ("latents_mean", "latents_std")
    )
    shift = 0.0 if mean is not None else float(config.shift_factor or 0.0)
    scaling = Scaling(float(config.scaling_factor), shift, mean, std)
    return None if scaling == Scaling(1.0, 0.0) else scaling


def _variant(folder: Path) -> str | None:
    """Return the variant of the weights in a folder, such as fp16.

    Returns None if the folder has weights without a variant, or no weights. Raises ExportError if it has only weights
    of several variants.
    """
    if any((folder / name).exists() for name in (f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}.safetensors.index.json")):
        return None
    names = (path.name for path in folder.glob(f"{_WEIGHTS}.*"))
    found = {match.group(1) or match.group(2) for name in names if (match := _VARIANT.fullmatch(name))}
    if len(found) > 1:
        raise ExportError(
            f"{folder} has weights of the variants {', '.join(sorted(found))}, but none without a variant: keep only "
            "one variant"
        )
    return next(iter(found), None)


def _image_size(own: int | list[int] | None, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is not None:
        return size
    if own is None:
        raise UsageError("the model's config has no size: give --size N or HxW")
    height, width = (own, own) if isinstance(own, int) else own
    return height, width


def _class_name(folder: Path) -> str:
    path = folder / _CONFIG
    if (folder / "model_index.json").is_file() and (folder / "vae" / _CONFIG).is_file():
        raise ExportError(f"{folder} is a whole pipeline: give {folder / 'vae'}")
    try:
        return str(json.loads(path.read_bytes())["_class_name"])
    except FileNotFoundError:
        raise ExportError(f"{folder} is not the folder of a diffusers model: it has no {_CONFIG}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is not the configuration of a diffusers model: {error}") from error
