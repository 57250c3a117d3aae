"""`vaekit evaluate` on the command line, and the objectives of `vaekit train`."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vaekit as library
from vaekit.images.shapes import draw_shapes

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

FASHION_MNIST = Path(os.environ.get("VAEKIT_DATA") or "/usr/share/datasets", "fashion-mnist")
SHORT = ("--latent", "2", "--steps", "3", "--batch-size", "32", "--quiet")
KEYS = [
    *("images", "elbo", "reconstruction", "kl", "nll", "nll_samples"),
    *("active_units", "kl_per_dimension", "psnr", "mse", "sigma", "bits_per_dimension"),
]


def trained(in_process: Run, source: Path | str, *options: str) -> None:
    result = in_process("train", source, *SHORT, *options)
    assert result.returncode == 0, result.stderr


def figures(in_process: Run, *arguments: str | Path) -> dict[str, Any]:
    result = in_process("evaluate", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def write_idx(path: Path, images: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes()))


def test_a_run_is_evaluated_and_what_comes_next_is_said(vaekit: Run, shapes: Path) -> None:
    assert vaekit("train", shapes.name, *SHORT).returncode == 0
    result = vaekit("evaluate", "vae", "--iwae-samples", "4")
    assert result.returncode == 0, result.stderr
    for words in (
        "ELBO",
        "reconstruction",
        "by 4 importance samples",
        "of 2 (",
        "PSNR",
        "sigma",
        "bits, if the density",
    ):
        assert words in result.stdout
    assert "vae on its held-out images: 15 images" in result.stderr
    assert result.stderr.splitlines()[-1] == "next: vaekit export"


def test_the_document_holds_the_figures(in_process: Run, shapes: Path) -> None:
    trained(in_process, shapes)
    document = figures(in_process, "vae", shapes, "--limit", "40", "--iwae-samples", "3")
    assert list(document) == KEYS
    assert (document["images"], document["nll_samples"]) == (40, 3)
    assert document["elbo"] == pytest.approx(document["reconstruction"] - document["kl"])
    assert sum(document["kl_per_dimension"]) == pytest.approx(document["kl"])
    assert document["nll"] < -document["elbo"] + 1
    smaller = figures(in_process, "vae", shapes, "--limit", "40", "--iwae-samples", "3", "--batch-size", "7")
    assert smaller["nll"] == pytest.approx(document["nll"], rel=1e-5)


def test_a_source_of_another_form_is_refused_with_its_mend(
    in_process: Run, assert_fails: Fails, shapes: Path, tmp_path: Path
) -> None:
    trained(in_process, shapes)
    np.save(tmp_path / "large.npy", draw_shapes(20, (16, 20)).images)
    np.save(tmp_path / "grey.npy", np.zeros((20, 12, 9), np.uint8))
    assert_fails(in_process("evaluate", "vae", "large.npy"), 1, "16 x 20 RGB", "12 x 9 RGB", "--size 12x9")
    assert_fails(in_process("evaluate", "vae", "grey.npy"), 1, "12 x 9 grey", "12 x 9 RGB", "convert them to RGB")
    assert figures(in_process, "vae", "large.npy", "--size", "12x9")["images"] == 20


def test_what_is_no_run_is_not_evaluated(in_process: Run, assert_fails: Fails, tmp_path: Path) -> None:
    assert_fails(in_process("evaluate"), 1, "there is no run at vae", "vaekit train -o vae")
    assert_fails(in_process("evaluate", "."), 1, "is not a run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        *(("--limit", "0"), ("--iwae-samples", "0"), ("--batch-size", "0"), ("--seed", "-1")),
        *(("--binarize", "twice"), ("--device", "abacus"), ("--size", "4y4"), ("a", "b")),
    ],
    ids=" ".join,
)
def test_a_wrong_evaluation_exits_2(in_process: Run, assert_fails: Fails, options: tuple[str, ...]) -> None:
    assert_fails(in_process("evaluate", "vae", *options), 2, options[0] if options[0] != "a" else "b")


def test_a_source_that_cannot_be_found_or_read_exits_1(
    in_process: Run, assert_fails: Fails, shapes: Path, tmp_path: Path
) -> None:
    trained(in_process, shapes)
    assert_fails(in_process("evaluate", "vae", "nowhere"), 1, "there is no source nowhere")
    (tmp_path / "vae" / "holdout.npz").unlink()
    assert_fails(in_process("evaluate", "vae"), 1, "holdout.npz is missing")


def test_a_mnist_run_is_evaluated_on_the_official_test_part(
    in_process: Run, assert_fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "mnist"
    random = np.random.default_rng(0)
    write_idx(folder / "train-images-idx3-ubyte.gz", random.integers(0, 256, (60, 12, 12), np.uint8))
    write_idx(folder / "t10k-images-idx3-ubyte.gz", random.integers(0, 256, (7, 12, 12), np.uint8))
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / "data"))
    trained(in_process, "mnist", "--size", "8")
    assert figures(in_process, "vae", "--iwae-samples", "2")["images"] == 7
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    assert_fails(in_process("evaluate", "vae"), 1, "no test part of mnist")


def test_a_collapsed_posterior_is_said_in_words(in_process: Run, shapes: Path) -> None:
    trained(in_process, shapes, "--objective", "prior-only", "--steps", "60")
    result = in_process("evaluate", "vae", shapes, "--iwae-samples", "2")
    assert result.returncode == 0, result.stderr
    assert "warning: the posterior has collapsed" in result.stderr
    assert "0 of 2" in result.stdout
    quiet = in_process("evaluate", "vae", shapes, "--iwae-samples", "2", "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout == result.stdout


def test_bernoulli_on_grey_pixels_is_called_no_density(in_process: Run, shapes: Path) -> None:
    trained(in_process, shapes, "--likelihood", "bernoulli")
    grey = in_process("evaluate", "vae", "--iwae-samples", "2")
    assert "warning: the Bernoulli likelihood has no density for grey pixels" in grey.stderr
    assert "none: Bernoulli" in grey.stdout
    binary = in_process("evaluate", "vae", "--iwae-samples", "2", "--binarize", "fixed")
    assert binary.returncode == 0, binary.stderr
    assert "no density" not in binary.stderr
    assert figures(in_process, "vae", "--iwae-samples", "2")["sigma"] is None


def test_a_binarised_run_is_evaluated_on_binary_images(in_process: Run, shapes: Path, tmp_path: Path) -> None:
    trained(in_process, shapes, "--likelihood", "bernoulli", "--binarize", "dynamic")
    assert json.loads((tmp_path / "vae" / "config.json").read_text())["binarize"] == "dynamic"
    result = in_process("evaluate", "vae", shapes, "--iwae-samples", "2")
    assert "no density" not in result.stderr
    redrawn = (figures(in_process, "vae", shapes, "--iwae-samples", "2", "--seed", seed)["kl"] for seed in "01")
    assert len(set(redrawn)) == 2
    fixed = (
        figures(in_process, "vae", shapes, "--iwae-samples", "2", "--seed", seed, "--binarize", "fixed")["kl"]
        for seed in "01"
    )
    assert len(set(fixed)) == 1


def test_bernoulli_refuses_data_outside_0_to_1(in_process: Run, assert_fails: Fails, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).normal(size=(40, 8, 8)))
    assert_fails(
        in_process("train", "wide.npy", "--likelihood", "bernoulli"), 1, "wide.npy", "floats must lie in [0, 1]"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["wide.npy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sigma", "0.1"), "50 x squared error (1/(2 sigma^2), sigma 0.1) + 1 x KL"),
        ((), "1/(2 sigma^2) x squared error (sigma: each batch's best; at 0.1 the weight is 50) + 1 x KL"),
        (("--likelihood", "bernoulli", "--beta", "0.5"), "cross-entropy + 0.5 x KL"),
        (("--objective", "autoencoder"), "+ 0 x KL"),
        (("--objective", "prior-only"), "1 x KL, and nothing else"),
        (("--objective", "iwae", "--iwae-samples", "3"), "over 3 draws of z"),
        (("--objective", "iwae"), "over 8 draws of z"),
        (("--beta-warmup", "0.25"), "over the first 25% of the steps"),
        (("--free-bits", "0.1"), "at least 0.1 nats"),
        (("--mc-samples", "2"), "averaged over 2 draws"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_weights_of_the_terms_are_said_at_the_start(
    in_process: Run, shapes: Path, options: tuple[str, ...], words: str
) -> None:
    result = in_process("train", shapes, "--latent", "2", "--steps", "2", "--batch-size", "32", *options)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("loss in nats per image: "))
    assert words in line


def test_the_settings_are_recorded_and_exported(in_process: Run, shapes: Path, tmp_path: Path) -> None:
    trained(
        in_process,
        shapes,
        "--posterior",
        "isotropic",
        "--objective",
        "iwae",
        "--iwae-samples",
        "3",
        "--binarize",
        "fixed",
    )
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    expected = {"posterior": "isotropic", "objective": "iwae", "iwae_samples": 3, "mc_samples": 1, "binarize": "fixed"}
    assert expected.items() <= config.items()
    exported = in_process("export")
    assert exported.returncode == 0, exported.stderr
    vae = library.load(tmp_path / "vae-onnx")
    assert vae.manifest.posterior == "isotropic"
    mu, logvar = vae.posterior(vae.sample(3))
    assert mu.shape == logvar.shape == (3, 2)
    assert np.array_equal(logvar[:, 0], logvar[:, 1])


def test_weights_of_the_kl_are_recorded(in_process: Run, shapes: Path, tmp_path: Path) -> None:
    trained(in_process, shapes, "--beta", "2", "--beta-warmup", "0.5", "--free-bits", "0.1", "--mc-samples", "2")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    expected = {"beta": 2.0, "beta_warmup": 0.5, "free_bits": 0.1, "mc_samples": 2, "objective": "elbo"}
    assert expected.items() <= config.items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mc-samples", "0"), ("--mc-samples",)),
        (("--iwae-samples", "0", "--objective", "iwae"), ("--iwae-samples",)),
        (("--iwae-samples", "4"), ("--iwae-samples belongs to --objective iwae", "not to elbo")),
        (("--objective", "iwae", "--beta", "1"), ("--beta belongs to --objective elbo", "not to iwae")),
        (("--objective", "iwae", "--mc-samples", "2"), ("--mc-samples", "not to iwae")),
        (("--objective", "iwae", "--free-bits", "1"), ("--free-bits", "not to iwae")),
        (("--objective", "iwae", "--beta-warmup", "0.1"), ("--beta-warmup", "not to iwae")),
        (("--objective", "autoencoder", "--beta", "0"), ("--beta", "not to autoencoder")),
        (("--objective", "autoencoder", "--free-bits", "1"), ("--free-bits", "not to autoencoder")),
        (("--objective", "prior-only", "--beta", "2"), ("--beta", "not to prior-only")),
        (("--objective", "prior-only", "--mc-samples", "2"), ("--mc-samples", "not to prior-only")),
        (("--objective", "gan"), ("--objective",)),
        (("--posterior", "full"), ("--posterior",)),
        (("--free-bits", "-1"), ("--free-bits",)),
        (("--free-bits", "nan"), ("--free-bits",)),
        (("--beta-warmup", "0"), ("--beta-warmup", "share")),
        (("--beta-warmup", "200"), ("--beta-warmup", "share", "200")),
        (("--beta-warmup", "nan"), ("--beta-warmup",)),
        (("--beta", "0", "--free-bits", "0.1"), ("--beta 0",)),
        (("--beta", "0", "--beta-warmup", "0.1"), ("--beta 0",)),
        (("--sigma", "optimal", "--likelihood", "bernoulli"), ("--sigma", "bernoulli")),
        (("--binarize", "often"), ("--binarize",)),
    ],
    ids=" ".join,
)
def test_contradictory_options_exit_2(
    in_process: Run,
    assert_fails: Fails,
    shapes: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    assert_fails(in_process("train", shapes.name, *options), 2, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes.npy"]


def test_evaluate_without_its_extra_names_the_remedy(assert_fails: Fails, tmp_path: Path) -> None:
    hide = "import sys; from vaekit_cli.main import main; sys.modules['torch'] = None; main()"
    result = subprocess.run(
        [sys.executable, "-c", hide, "evaluate"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_fails(result, 1, "torch", "pip install 'vaekit[train]'")


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason=f"{FASHION_MNIST} is not there: apt-get install dataset-fashion-mnist"
)
def test_fashion_mnist_is_evaluated_on_its_test_part(in_process: Run) -> None:
    trained(in_process, "fashion-mnist", "--size", "14")
    result = in_process("evaluate", "vae", "--limit", "30", "--iwae-samples", "2")
    assert result.returncode == 0, result.stderr
    assert "the test part of fashion-mnist: 30 images" in result.stderr
