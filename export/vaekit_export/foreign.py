"""Export of a VAE from any library: an encoder, a decoder and their description."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaekit.defaults import OPSET, SMOOTH
from vaekit.errors import ExportError, UsageError
from vaekit.types import Array, GraphName, PosteriorName
from vaekit_export.description import VAEDescription
from vaekit_export.model import Model, Progress, Say, no_progress
from vaekit_export.parity import Tolerances
from vaekit_export.publish import Export, check_request, publish
from vaekit_export.randomness import find_random_call
from vaekit_export.undisturbed import undisturbed


@undisturbed()
def export_vae(
    encoder: nn.Module,
    decoder: nn.Module,
    description: VAEDescription,
    images: NDArray[Any],
    bundle_path: str | Path,
    *,
    opset: int = OPSET,
    tolerances: Tolerances | None = None,
    golden: str = "images",
    smooth: float = SMOOTH,
    explained: bool = False,
    dataset: str = "images given",
    say: Say = lambda message: None,
    progress: Progress = no_progress,
) -> Export:
    """Export an encoder and a decoder, check them, and write a bundle.

    ``encoder`` maps images (B, C, H, W) in the description's pixel range to (mu, logvar), or to mu alone. In the second
    case the posterior is deterministic, and images have no score. ``decoder`` maps z to images in the same range;
    values outside the range are clipped. Both are float32 modules on the CPU. They are exported in evaluation mode.

    ``images`` (N, C, H, W) are uint8, or floats in [0, 1], and were not used for training. Parity is checked on them.
    The manifest keeps statistics of their latents and percentiles of their scores. ``golden``, ``smooth`` and
    ``explained`` are as for ``export_run``. ``dataset`` names the images in the manifest. ``progress`` follows the
    parity check.

    Raises UsageError for arguments out of range. Raises ExportError for modules that do not match the description, are
    random, cannot be exported at that opset, or are too large for one ONNX file. Raises ParityError if results differ,
    or if a row's result depends on the other rows of its batch. The states of random generators are restored.
    """
    target = Path(bundle_path)
    check_request(target, opset, golden, smooth)
    pixels = _checked_images(images, description.image_shape)
    low, high = description.pixel_range
    unit_encoder, unit_decoder = _Encoder(encoder, low, high), _Decoder(decoder, low, high)
    _check_weights("encoder", unit_encoder)
    _check_weights("decoder", unit_decoder)
    with _evaluation_mode(unit_encoder, unit_decoder), torch.no_grad():
        posterior = _check_modules(unit_encoder, unit_decoder, description, torch.from_numpy(pixels[:2]), say)
        model = Model(
            encoder=unit_encoder,
            decoder=unit_decoder,
            image_shape=description.image_shape,
            latent_shape=description.latent_shape,
            multiple_of=description.multiple_of,
            posterior=posterior,
            likelihood=description.as_likelihood(),
            scaling=description.scaling,
            mixture=None,
            images=pixels,
            provenance={
                "model": description.name,
                "dataset": dataset,
                "settings": dataclasses.asdict(description),
            },
        )
        return publish(model, target, opset, tolerances or Tolerances(), golden, smooth, explained, say, progress)


class _Encoder(nn.Module):
    """image (B, C, H, W) in [0, 1] → mu and logvar, or mu alone.

    The image is moved to the wrapped encoder's pixel range first.
    """

    def __init__(self, encoder: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.encoder, self.low, self.high = encoder, low, high

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        if (self.low, self.high) != (0.0, 1.0):
            image = image * (self.high - self.low) + self.low
        found = self.encoder(image)
        if isinstance(found, tuple | list):
            return tuple(found) if len(found) > 1 else found[0]
        return found  # type: ignore[no-any-return]  # its type is checked before any use


class _Decoder(nn.Module):
    """z → image (B, C, H, W) in [0, 1], clipped."""

    def __init__(self, decoder: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.decoder, self.low, self.high = decoder, low, high

    def to_unit(self, image: Tensor) -> Tensor:
        """Move an image from the pixel range to [0, 1], without clipping."""
        if (self.low, self.high) != (0.0, 1.0):
            width = self.high - self.low
            image = image * (1 / width) - self.low / width
        return image

    def forward(self, z: Tensor) -> Tensor:
        return self.to_unit(self.decoder(z)).clamp(0.0, 1.0)


def _checked_images(images: NDArray[Any], shape: tuple[int, int, int]) -> Array:
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise UsageError(
            f"images must have the description's shape (N, {', '.join(map(str, shape))}), with N at least 1, not "
            f"{array.shape}"
        )
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):  # not (NaN >= 0)
        values = "" if array.dtype.kind != "f" else f" from {array.min():g} to {array.max():g}"
        raise UsageError(
            "images must be uint8, or finite floats in [0, 1], even if the model's own range is another; these are "
            f"{array.dtype}{values}"
        )
    return np.ascontiguousarray(array, np.float32)


def _check_weights(what: GraphName, module: nn.Module) -> None:
    """Raise ExportError unless all weights are float32 and on the CPU."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        inner = name.partition(".")[2]
        if tensor.device.type != "cpu":
            raise ExportError(f"the {what}'s {inner} is on {tensor.device}: move the module to the CPU first (.cpu())")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(
                f"the {what}'s {inner} is {_name(tensor.dtype)}: make the module float32 first (.float())"
            )


def _check_modules(
    encoder: _Encoder, decoder: _Decoder, description: VAEDescription, pixels: Tensor, say: Say
) -> PosteriorName:
    """Run both modules on two images and return the posterior's name.

    Raises ExportError if they do not match the description.
    """
    two = pixels if len(pixels) == 2 else pixels.repeat(2, 1, 1, 1)
    codes = _run("encoder", encoder, two)
    if len(codes) > 2:
        raise ExportError(
            f"the encoder gives {len(codes)} outputs: it must give mu and logvar, or mu alone. Wrap it in a module "
            "that returns only these"
        )
    for name, code in zip(("mu", "logvar"), codes, strict=False):
        _check_output("encoder", name, code, (2, *description.latent_shape), "latent_shape")
    (image,) = _run("decoder", decoder.decoder, codes[0])
    _check_output("decoder", "image", image, (2, *description.image_shape), "image_shape")
    _check_deterministic("encoder", encoder, two, codes)
    _check_deterministic("decoder", decoder.decoder, codes[0], (image,))
    image = decoder.to_unit(image)
    outside = (image < 0) | (image > 1)
    if outside.any():
        beyond = float(torch.maximum(-image, image - 1).max())
        say(
            f"the decoder leaves its pixel range {description.pixel_range} in {float(outside.float().mean()):.1%} of "
            f"pixels, by up to {beyond:.2g} of its width: they are clipped. If it gives logits, add the sigmoid"
        )
    return "deterministic" if len(codes) == 1 else "diagonal"


def _run(what: GraphName, run: Callable[[Tensor], Any], rows: Tensor) -> tuple[Tensor, ...]:
    try:
        found = run(rows)
    except Exception as error:  # a user's module may raise anything
        raise ExportError(f"the {what} fails on an input of shape {tuple(rows.shape)}: {_one_line(error)}") from error
    outputs = found if isinstance(found, tuple) and what == "encoder" else (found,)
    for output in outputs:
        if not isinstance(output, Tensor):
            raise ExportError(
                f"the {what} gives {type(output).__name__} instead of a tensor: wrap it in a module that returns "
                + ("(mu, logvar), or mu alone" if what == "encoder" else "the image")
            )
    return outputs


def _check_output(what: GraphName, name: str, output: Tensor, shape: tuple[int, ...], field: str) -> None:
    if tuple(output.shape) != shape:
        raise ExportError(
            f"the {what} gives {name} of shape {tuple(output.shape)} for two inputs, but {field} asks for {shape}"
        )
    if output.dtype != torch.float32:
        raise ExportError(f"the {what} gives {name} as {_name(output.dtype)}, not float32")
    if not torch.isfinite(output).all():
        raise ExportError(f"the {what} gives NaN or infinity in {name}: are its weights loaded?")


def _check_deterministic(what: GraphName, module: nn.Module, rows: Tensor, first: tuple[Tensor, ...]) -> None:
    """Raise ExportError if a module is random, naming the random call.

    ``first`` are its outputs for the rows.
    """
    call = find_random_call(lambda: _run(what, module, rows), first)
    if call is None:
        return
    place = f" in {call.place}" if call.place else ""
    if call.dropout:
        raise ExportError(
            f"the {what} is random: dropout is on{place}, although the module is in evaluation mode. F.dropout needs "
            "training=self.training"
        )
    raise ExportError(
        f"the {what} is random: it calls {call.operator}{place}. If it samples z, let it return mu and logvar instead: "
        "noise must stay outside the graph, so that a seed gives the same latents everywhere"
    )


@contextmanager
def _evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode, and restore their modes afterwards."""
    before = [(layer, layer.training) for module in modules for layer in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
