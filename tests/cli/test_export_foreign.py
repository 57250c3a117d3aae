"""`vaekit export --module`, `--diffusers` and `--pythae` on the command line."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vaekit as library
from vaekit.images.shapes import draw_shapes

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

FACTORY = """
import torch
from torch import nn
from torch.nn import functional

from vaekit_export import VAEDescription


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(108, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.fc3, self.fc4 = nn.Linear(3, 16), nn.Linear(16, 108)


class Encoder(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, image):
        hidden = functional.relu(self.vae.fc1(image.flatten(1)))
        return self.vae.fc21(hidden), self.vae.fc22(hidden)


class Decoder(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, z):
        return torch.sigmoid(self.vae.fc4(functional.relu(self.vae.fc3(z)))).view(-1, 1, 12, 9)


DESCRIPTION = VAEDescription(image_shape=(1, 12, 9), latent_shape=(3,), likelihood="bernoulli", name="mine")


def make():
    vae = VAE()
    return Encoder(vae), Decoder(vae), DESCRIPTION, vae


def modules():
    return make()[:3]


def broken():
    raise RuntimeError("no network\\ntoday")


def forgetful():
    return Encoder(VAE()), "decoder"


def sampling():
    class Sampling(Encoder):
        def forward(self, image):
            mu, logvar = super().forward(image)
            return mu + torch.randn_like(mu), logvar

    vae = VAE()
    return Sampling(vae), Decoder(vae), DESCRIPTION


number = 3
"""


def shapes_of(layers: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    weights: dict[str, torch.Tensor] = {}
    for name, (ins, outs) in layers.items():
        weights |= {f"{name}.{key}": value.detach() for key, value in nn.Linear(ins, outs).named_parameters()}
    return weights


LAYERS = {"fc1": (108, 16), "fc21": (16, 3), "fc22": (16, 3), "fc3": (3, 16), "fc4": (16, 108)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Write a Python module with factories, weights and images to a folder."""
    (tmp_path / "mymodels.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "needy.py").write_text("import package_that_is_not_there\n")
    (tmp_path / "wrong.py").write_text("def make(:\n")
    save_file(shapes_of(LAYERS), tmp_path / "w.safetensors")
    np.save(tmp_path / "images.npy", draw_shapes(30, (12, 9)).images[:, :1])
    return tmp_path


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


BEFORE = {"mymodels.py", "needy.py", "wrong.py", "w.safetensors", "images.npy"}
GIVEN = ("--images", "images.npy", "-o", "out")


def test_a_factory_and_its_weights_become_a_bundle(vaekit: Run, project: Path) -> None:
    done = vaekit("export", "--module", "mymodels:make", "--weights", "w.safetensors", *GIVEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "30 held-out images" in done.stderr
    assert done.stderr.splitlines()[-1] == "next: vaekit sample -n 64 -o grid.png -m out"
    weights = shapes_of(LAYERS)
    images = np.load(project / "images.npy").astype(np.float32) / np.float32(255)
    hidden = np.maximum(images.reshape(30, -1) @ weights["fc1.weight"].numpy().T + weights["fc1.bias"].numpy(), 0)
    mu = hidden @ weights["fc21.weight"].numpy().T + weights["fc21.bias"].numpy()
    vae = library.load(project / "out", provider="cpu")
    np.testing.assert_allclose(vae.encode(images)[0], mu, atol=1e-5)
    assert vae.manifest.provenance["model"] == "mine"
    assert vae.manifest.provenance["dataset"] == "images.npy"
    described = vaekit("info", "-m", "out")
    assert "came from mine, checked on images of images.npy" in " ".join(described.stdout.split())


def test_the_network_in_the_docs_becomes_a_bundle(in_process: Run, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "any-vae.md").read_text(encoding="utf-8")
    code = page.partition('```python title="plain.py"\n')[2].partition("```")[0]
    (tmp_path / "plain.py").write_text(code, encoding="utf-8")
    np.save(tmp_path / "images.npy", draw_shapes(12, (28, 28)).images[:, :1])
    done = in_process("export", "--module", "plain:make", *GIVEN)
    assert done.returncode == 0, done.stderr
    vae = library.load(tmp_path / "out", provider="cpu")
    assert (vae.image_shape, vae.latent_shape, vae.manifest.likelihood.name) == ((1, 28, 28), (20,), "bernoulli")
    assert vae.sample(2).shape == (2, 1, 28, 28)


def test_weights_may_be_those_of_encoder_and_decoder(in_process: Run, project: Path) -> None:
    both = ("encoder", "decoder")
    weights = {f"{module}.vae.{key}": value.clone() for key, value in shapes_of(LAYERS).items() for module in both}
    save_file(weights, project / "modules.safetensors")
    done = in_process("export", "--module", "mymodels:modules", "--weights", "modules.safetensors", *GIVEN, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["parity"]["passed"]
    assert document["parity"]["delta_elbo"] is not None


WRONG: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "no images": (("--module", "mymodels:make"), 2, ("--module needs --images SOURCE",)),
    "images of nothing": (("--module", "mymodels:make", "--images", "none.npy"), 1, ("there is no source none.npy",)),
    "images for a run": (("vae", *GIVEN), 2, ("--images only applies to --module, --diffusers and --pythae",)),
    "a run as well": (("vae", "--module", "mymodels:make", *GIVEN), 2, ("RUN and --module", "give only one")),
    "two libraries": (("--pythae", "a", "--diffusers", "b", *GIVEN), 2, ("--diffusers and --pythae", "give only one")),
    "weights of nothing": (("--weights", "w.safetensors"), 2, ("--weights only applies to --module",)),
    "a size for a module": (("--module", "mymodels:make", "--size", "8", *GIVEN), 2, ("--size only applies to",)),
    "no factory named": (("--module", "mymodels", *GIVEN), 2, ("package.module:factory",)),
    "no such module": (("--module", "yours.models:make", *GIVEN), 2, ("there is no module yours",)),
    "no such factory": (("--module", "mymodels:build", *GIVEN), 2, ("no factory build", "broken", "make")),
    "no function": (("--module", "mymodels:number", *GIVEN), 2, ("no factory number",)),
    "a module that needs another": (("--module", "needy:make", *GIVEN), 1, ("importing needy failed", "package_that")),
    "a module that is no Python": (("--module", "wrong:make", *GIVEN), 1, ("importing wrong failed", "SyntaxError")),
    "a factory that raises": (("--module", "mymodels:broken", *GIVEN), 1, ("RuntimeError: no network today",)),
    "half a VAE": (("--module", "mymodels:forgetful", *GIVEN), 1, ("returns Encoder, str", "VAEDescription")),
    "noise inside": (("--module", "mymodels:sampling", *GIVEN), 1, ("randn_like", "mymodels.py, line")),
    "weights that are not there": (
        ("--module", "mymodels:make", "--weights", "v.safetensors", *GIVEN), 1, ("there is no weights file",)
    ),
    "weights of another kind": (
        ("--module", "mymodels:make", "--weights", "mymodels.py", *GIVEN), 1, ("not a .safetensors file", "save_file")
    ),
    "weights of the whole model for encoder and decoder": (
        ("--module", "mymodels:modules", "--weights", "w.safetensors", *GIVEN),
        1,
        ("do not fit", "lacks decoder.vae.fc1.bias", "and 17 more", "also has fc1.bias", "fourth item"),
    ),
    "pickles that are not trusted": (("--pythae", "py", *GIVEN), 2, ("--trust-pickle",)),
    "no folder of diffusers": (("--diffusers", "kl", *GIVEN), 1, ("no config.json",)),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_in_one_line(in_process: Run, assert_fails: Fails, project: Path, what: str) -> None:
    arguments, code, words = WRONG[what]
    if "--pythae" in arguments and code == 2 and "--diffusers" not in arguments:
        pytest.importorskip("pythae")
    if "--diffusers" in arguments and code == 1:
        pytest.importorskip("diffusers")
    assert_fails(in_process("export", *arguments), code, *words)
    assert names_in(project) == BEFORE


def test_weights_of_another_shape_are_named(in_process: Run, assert_fails: Fails, project: Path) -> None:
    save_file(shapes_of(LAYERS | {"fc3": (4, 16)}), project / "w.safetensors")
    failed = in_process("export", "--module", "mymodels:make", "--weights", "w.safetensors", *GIVEN)
    assert_fails(failed, 1, "do not fit", "fc3.weight (16, 4) for (16, 3)")


def test_a_folder_of_diffusers_becomes_a_bundle_that_runs(vaekit: Run, project: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(project / "tiny")
    done = vaekit("export", "--diffusers", "tiny", "--size", "8x12", "--images", "images.npy", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "no scores: its encoder is deterministic" in done.stderr
    assert "\nerror" not in done.stderr
    assert vaekit("reconstruct", "images.npy", "-m", "out").returncode == 0
    assert (project / "pairs.png").is_file()
