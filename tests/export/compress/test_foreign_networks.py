"""Bundles of other people's networks: what ONNX Runtime cannot lower stays in float, and it is said."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaekit
from vaekit.errors import BundleError, CheckError, ExportError
from vaekit.images.shapes import draw_shapes
from vaekit.ort.trial import Trial
from vaekit_export.compress import candidates
from vaekit_export.compress.compress import compress_bundle
from vaekit_export.compress.report import Compression
from vaekit_export.description import VAEDescription
from vaekit_export.foreign import export_vae
from vaekit_export.passes.precision import lower


class Encoder(nn.Module):
    """image (B, 3, 16, 16) → mu and logvar (B, 4), through a body of 8 channels; mu alone where it is deterministic."""

    def __init__(self, body: nn.Module, *, deterministic: bool = False) -> None:
        super().__init__()
        self.stem, self.body, self.deterministic = nn.Conv2d(3, 8, 3, padding=1), body, deterministic
        features = body.eval()(torch.zeros(2, 8, 16, 16)).flatten(1).shape[1]
        self.mu, self.logvar = nn.Linear(features, 4), nn.Linear(features, 4)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self.body(torch.relu(self.stem(image))).flatten(1)
        mu: Tensor = self.mu(hidden)
        return mu if self.deterministic else (mu, self.logvar(hidden))


class Decoder(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(4, 128), body

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.body(torch.relu(self.first(z)).reshape(-1, 8, 4, 4)))


def upsampling(groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=groups), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1))


def transformer() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(2), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 4, 4), nn.LayerNorm((8, 4, 4)), nn.ReLU())


def bundle(
    folder: Path, encoder: nn.Module | None = None, decoder: nn.Module | None = None, *, deterministic: bool = False
) -> Path:
    torch.manual_seed(0)
    likelihood: Any = {} if deterministic else {"likelihood": "gaussian", "sigma": 0.1}
    description = VAEDescription((3, 16, 16), (4,), **likelihood)
    body = encoder or nn.Conv2d(8, 8, 4, 2, 1)
    images = draw_shapes(12, (16, 16)).images
    done = export_vae(
        Encoder(body, deterministic=deterministic), Decoder(decoder or upsampling()), description, images, folder / "b"
    )
    return done.path


def squeeze(parent: Path, said: list[str], **options: Any) -> Compression:
    return compress_bundle(parent, parent.parent / "small", seconds=0.0, say=said.append, **options)


def test_a_layer_that_cannot_be_quantised_stays_in_float(tmp_path: Path) -> None:
    said: list[str] = []
    done = squeeze(bundle(tmp_path, decoder=upsampling(groups=4)), said, precision="int8", min_psnr=30.0)
    assert done.graphs["decoder"].precision == "int8"
    assert len(done.graphs["decoder"].in_float) == 1
    assert any(line.startswith("decoder: not all of it can be int8 on this machine") for line in said)
    assert vaekit.load(done.path, provider="cpu").verify().passed


@pytest.mark.parametrize(("body", "precision"), [(transformer, "fp16"), (normalised, "int8")])
def test_networks_that_onnx_runtime_stumbles_over_become_a_bundle(tmp_path: Path, body: Any, precision: str) -> None:
    """Its optimiser, version 1.32, ends the process on a transformer in float16."""
    done = squeeze(bundle(tmp_path, body()), [], precision=precision, min_psnr=30.0)
    assert {graph.precision for graph in done.graphs.values()} != {"fp32"}
    assert vaekit.load(done.path, provider="cpu").verify().passed


def test_where_every_candidate_crashes_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "failure", lambda self, model, rows: "ONNX Runtime crashes on it (signal 11)")
    said: list[str] = []
    with pytest.raises(CheckError, match="nothing was published"):
        squeeze(bundle(tmp_path), said, precision="fp16")
    assert any(line.endswith("crashes on it (signal 11)") for line in said)
    assert not (tmp_path / "small").exists()


def test_a_deterministic_encoder_has_nothing_to_prune(tmp_path: Path) -> None:
    parent = bundle(tmp_path, deterministic=True)
    for options in ({"prune": True}, {"prune": True, "precision": "fp16"}):
        with pytest.raises(BundleError, match=r"no KL.*nothing to prune"):
            squeeze(parent, [], **options)


def test_a_graph_that_a_tool_breaks_is_left_to_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "to_int8", lambda *arguments: b"no graph")
    said: list[str] = []
    done = squeeze(bundle(tmp_path), said, precision="int8", min_psnr=20.0)
    assert {graph.precision for graph in done.graphs.values()} == {"int8-weights"}
    assert sum("cannot be read back" in line for line in said) == 2


def test_layers_that_cannot_be_lowered_are_left_without_trying_fewer() -> None:
    tried: list[tuple[str, ...]] = []
    said: list[str] = []

    def convert(keep: Collection[str]) -> bytes:
        tried.append(tuple(sorted(keep)))
        if not {"b", "d"} <= set(keep) and (len(keep) < 3 or "b" not in keep):
            raise ExportError("no integer kernel")
        return b"graph"

    lowered = lower(["a", "b", "c", "d"], convert, lambda data: 1.0, said.append)
    assert lowered is not None
    assert "b" in lowered.in_float
    assert said == ["no integer kernel"]

    def never(keep: Collection[str]) -> bytes:
        raise ExportError("never")

    assert lower(["a", "b"], never, lambda data: 1.0, said.append) is None
    many = [str(index) for index in range(100)]
    calls: list[int] = []

    def counted(keep: Collection[str]) -> bytes:
        calls.append(1)
        raise ExportError("never")

    assert lower(many, counted, lambda data: 1.0, said.append) is None
    assert len(calls) == 1
