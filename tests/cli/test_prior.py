"""`vaekit prior`: a run's prior, from its images to samples on the edge."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vaekit
from vaekit.errors import UsageError
from vaekit.images.shapes import draw_shapes
from vaekit.training.config import load_config
from vaekit.training.prior import load_flow
from vaekit.training.run import load_holdout, load_run, save_model
from vaekit_export import export_run

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]


@pytest.fixture
def run(in_process: Run, tmp_path: Path) -> Path:
    """Train for a moment on 120 shapes of 16 x 16."""
    np.save(tmp_path / "images.npy", draw_shapes(120, (16, 16)).images)
    done = in_process("train", "images.npy", "--latent", "2", "--batch-size", "16", "--steps", "12", "-q", "-o", "run")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_a_flow_goes_from_the_run_to_samples(in_process: Run, run: Path, tmp_path: Path) -> None:
    weights = (run / "model.safetensors").read_bytes()
    done = in_process("prior", "run", "--steps", "30")
    assert done.returncode == 0, done.stderr
    assert "learning the flow from the codes of 108 images" in done.stderr
    assert "prior.safetensors: a flow, 30 steps; loss of held-out images" in done.stderr
    assert done.stderr.splitlines()[-1] == "next: vaekit export run"
    assert (run / "model.safetensors").read_bytes() == weights
    first = (run / "prior.safetensors").read_bytes()
    assert in_process("prior", "run", "--steps", "30", "-q").returncode == 0
    assert (run / "prior.safetensors").read_bytes() == first
    assert in_process("export", "run", "-o", "bundle", "-q").returncode == 0
    vae = vaekit.load(tmp_path / "bundle", provider="cpu")
    assert vae.priors == ("flow", "normal") if load_run(run).mixture is None else ("flow", "mixture", "normal")
    assert vae.verify().passed
    assert vae.manifest.provenance["prior"]["steps"] == 30
    assert {result["graph"] for result in vae.manifest.parity["results"]} == {"encoder", "decoder", "prior"}
    assert vae.sample(3).shape == (3, 3, 16, 16)
    lenient = ("--max-delta-elbo", "1e9", "--min-psnr", "1", "--seconds", "0")
    compressed = in_process("compress", "bundle", "-o", "small", "--fp16", *lenient)
    assert compressed.returncode == 0, compressed.stderr
    small = vaekit.load(tmp_path / "small", provider="cpu")
    assert small.priors == vae.priors
    assert small.verify().passed
    np.testing.assert_array_equal(small.sample_latents(4), vae.sample_latents(4))


def test_training_can_learn_the_flow_at_its_end(in_process: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", draw_shapes(120, (16, 16)).images)
    small = ("--latent", "2", "--batch-size", "16")
    started = time.monotonic()
    done = in_process("train", "images.npy", *small, "--max-minutes", "0.3", "--prior", "flow", "-o", "run")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    lines = done.stderr.splitlines()
    assert lines[-1] == "next: vaekit export run"
    assert sum(line.startswith("next:") for line in lines) == 1
    assert "run/prior.safetensors: a flow" in lines[-2]
    assert load_flow(load_run(tmp_path / "run")) is not None
    assert load_config(tmp_path / "run").prior == "flow"
    done = in_process("train", "images.npy", *small, "--steps", "4", "--prior", "none", "-o", "bare")
    assert done.returncode == 0, done.stderr
    assert "prior: N(0, I)\n" in done.stderr
    assert load_run(tmp_path / "bare").mixture is None
    assert in_process("train", "images.npy", *small, "--steps", "4", "--overwrite", "-q", "-o", "run").returncode == 0
    assert not (tmp_path / "run" / "prior.safetensors").exists()


def test_pruning_leaves_the_flow_out_and_says_so(in_process: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", draw_shapes(120, (16, 16)).images)
    options = ("--latent", "8", "--batch-size", "16", "--steps", "30", "--beta", "20", "-q", "-o", "run")
    assert in_process("train", "images.npy", *options).returncode == 0
    assert in_process("prior", "run", "--steps", "4", "-q").returncode == 0
    assert in_process("export", "run", "-o", "bundle", "-q").returncode == 0
    lenient = ("--dead-below", "0.5", "--max-delta-elbo", "1e9", "--seconds", "0")
    done = in_process("compress", "bundle", "-o", "small", "--prune", *lenient)
    assert done.returncode == 0, done.stderr
    assert "it is left out, and" in done.stderr
    small = vaekit.load(tmp_path / "small", provider="cpu")
    assert small.latent_shape[0] < 8
    assert "flow" not in small.priors
    assert small.manifest.requires == ()
    assert not (tmp_path / "small" / "prior.onnx").exists()
    assert small.verify().passed


def test_maps_have_a_flow_too(in_process: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", draw_shapes(80, (16, 16)).images)
    small = ("--latent", "2", "--downscale", "4", "--batch-size", "16", "--steps", "4", "-q")
    assert in_process("train", "images.npy", *small, "-o", "run").returncode == 0
    refused = in_process("prior", "run", "--kind", "mixture")
    assert refused.returncode == 2
    assert "knows nothing of neighbouring positions" in refused.stderr
    assert in_process("prior", "run", "--steps", "4", "-q").returncode == 0
    assert in_process("export", "run", "-o", "bundle", "-q").returncode == 0
    vae = vaekit.load(tmp_path / "bundle", provider="cpu")
    assert vae.priors == ("flow", "normal")
    assert vae.sample_latents(3).shape == (3, 2, 4, 4)
    assert vae.at(24, 20).sample(2).shape == (2, 3, 24, 20)
    assert vae.verify().passed


def test_a_mixture_or_none_replaces_the_flow(in_process: Run, run: Path) -> None:
    assert in_process("prior", "run", "--steps", "4", "-q").returncode == 0
    done = in_process("prior", "run", "--kind", "mixture")
    assert done.returncode == 0, done.stderr
    assert "a mixture of 6 Gaussians, fitted to the codes of 108 images" in done.stderr
    assert not (run / "prior.safetensors").exists()
    assert load_run(run).mixture is not None
    done = in_process("prior", "run", "--kind", "none")
    assert done.returncode == 0
    assert load_run(run).mixture is None


def test_a_killed_fit_resumes_to_the_same_bytes(run: Path, in_process: Run, tmp_path: Path) -> None:
    assert in_process("prior", "run", "--steps", "400", "-q").returncode == 0
    whole = (run / "prior.safetensors").read_bytes()
    script = str(Path(sys.executable).with_name("vaekit"))
    command = [script, "prior", "run", "--steps", "400"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "learning the flow" in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    assert "the prior is as before" in rest or "a flow, 400 steps" in rest  # a quick machine may have finished
    assert (run / "prior.safetensors").read_bytes() == whole
    if "as before" in rest:
        other = in_process("prior", "run", "--steps", "400", "--seed", "5", "--resume")
        assert other.returncode == 1
        assert "belongs to another model, seed or source" in other.stderr
        done = in_process("prior", "run", "--steps", "400", "--resume", "-q")
        assert done.returncode == 0, done.stderr
        assert (run / "prior.safetensors").read_bytes() == whole
        assert not (run / "prior-checkpoint.safetensors").exists()


def test_a_time_is_kept(in_process: Run, run: Path) -> None:
    started = time.monotonic()
    assert in_process("prior", "run", "--max-minutes", "0.05", "-q").returncode == 0
    assert time.monotonic() - started < 30
    assert (run / "prior.safetensors").exists()


def test_a_flow_of_other_weights_is_not_exported(in_process: Run, run: Path, tmp_path: Path) -> None:
    assert in_process("prior", "run", "--steps", "4", "-q").returncode == 0
    model = run / "model.safetensors"
    other = load_run(run)
    (tmp_path / "moved").mkdir()
    path = tmp_path / "moved" / "prior.safetensors"
    path.write_bytes((run / "prior.safetensors").read_bytes())
    assert in_process("prior", "run", "--kind", "none", "-q").returncode == 0
    path.rename(run / "prior.safetensors")
    if model.read_bytes() and other.mixture is not None:
        refused = in_process("export", "run", "-o", "b", "-q")
        assert refused.returncode == 1
        assert "was fitted to other weights" in refused.stderr
    (run / "prior.safetensors").write_bytes(b"no tensors")
    refused = in_process("export", "run", "-o", "b", "-q")
    assert refused.returncode == 1
    assert "prior.safetensors cannot be read" in refused.stderr


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "two lengths": (("run", "--steps", "3", "--max-minutes", "1"), 2, "both set the length"),
    "no time": (("run", "--max-minutes", "0"), 2, "must be above 0"),
    "steps of a mixture": (("run", "--kind", "mixture", "--steps", "3"), 2, "belong to --kind flow"),
    "nothing to resume": (("run", "--resume"), 1, "there is no run/prior-checkpoint.safetensors to resume from"),
    "no run": (("gone",), 1, "gone"),
    "a source that is gone": (("run", "away.npy"), 1, "away.npy"),
    "a source of another shape": (("run", "other.npy"), 1, "is needed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_fitted_ends_in_one_line(in_process: Run, run: Path, tmp_path: Path, what: str) -> None:
    np.save(tmp_path / "other.npy", draw_shapes(30, (16, 16)).images[:, 0])
    arguments, code, words = REFUSED[what]
    done = in_process("prior", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert not (run / "prior.safetensors").exists()


def test_an_export_of_a_run_without_a_flow_has_none(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "bundle")
    document = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert "flow" not in document["prior"]
    assert set(document["graphs"]) == {"encoder", "decoder"}


def test_labels_go_from_the_source_to_samples(in_process: Run, tmp_path: Path) -> None:
    shapes = draw_shapes(150, (16, 16))
    names = np.array(["disc", "square", "triangle"])[shapes.factors[:, 0].astype(int)]
    names[:6] = "rare"
    np.savez(tmp_path / "images.npz", images=shapes.images, labels=names)
    small = ("--latent", "2", "--batch-size", "16", "--steps", "12")
    done = in_process("train", "images.npz", *small, "-o", "run")
    assert done.returncode == 0, done.stderr
    assert "classes with fewer than 10 images to train on cannot be drawn by --label: rare" in done.stderr
    mixture = load_run(tmp_path / "run").mixture
    assert mixture is not None
    assert mixture.labels is not None
    assert set(mixture.labels) == {-1, 0, 1, 2}
    done = in_process("prior", "run", "--steps", "20")
    assert done.returncode == 0, done.stderr
    assert "from the codes of 135 images of 3 classes" in done.stderr
    assert in_process("export", "run", "-o", "bundle", "-q").returncode == 0
    vae = vaekit.load(tmp_path / "bundle", provider="cpu")
    assert vae.labels == ("disc", "square", "triangle")
    assert vae.manifest.requires == ("prior-label", "prior-starts-from-mixture")
    assert vae.verify().passed
    for prior in ("flow", "mixture"):
        assert np.isfinite(vae.sample_latents(4, prior=prior, label="disc")).all()
    lenient = ("--max-delta-elbo", "1e9", "--min-psnr", "1", "--seconds", "0")
    compressed = in_process("compress", "bundle", "-o", "small", "--fp16", *lenient)
    assert compressed.returncode == 0, compressed.stderr
    half = vaekit.load(tmp_path / "small", provider="cpu")
    assert (half.labels, half.manifest.requires) == (vae.labels, vae.manifest.requires)
    assert half.verify().passed
    np.testing.assert_array_equal(half.sample_latents(4, label="disc"), vae.sample_latents(4, label="disc"))
    assert in_process("prior", "run", "--kind", "none", "-q").returncode == 0
    assert in_process("export", "run", "-o", "bare", "-q").returncode == 0
    assert vaekit.load(tmp_path / "bare", provider="cpu").labels == ()


def test_a_flow_knows_more_classes_than_a_mixture(in_process: Run, tmp_path: Path) -> None:
    images = draw_shapes(66 * 14, (8, 8)).images
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(len(images)) % 66)
    small = ("--latent", "2", "--batch-size", "64", "--steps", "4", "-q")
    assert in_process("train", "images.npz", *small, "-o", "run").returncode == 0
    assert in_process("prior", "run", "--steps", "4", "-q").returncode == 0
    assert in_process("export", "run", "-o", "bundle", "-q").returncode == 0
    vae = vaekit.load(tmp_path / "bundle", provider="cpu")
    assert len(vae.labels) > 64
    assert vae.priors == ("flow", "mixture", "normal")
    assert vae.manifest.requires == ("prior-label",)
    assert vae.sample_latents(3, label=vae.labels[5]).shape == (3, 2)
    with pytest.raises(UsageError, match=r"the mixture prior does not know the label \d+: use the prior flow"):
        vae.sample_latents(3, label=vae.labels[5], prior="mixture")


def test_maps_learn_labels_too(in_process: Run, tmp_path: Path) -> None:
    shapes = draw_shapes(80, (16, 16))
    np.savez(tmp_path / "images.npz", images=shapes.images, labels=shapes.factors[:, 0] > 0)
    small = ("--latent", "2", "--downscale", "4", "--batch-size", "16", "--steps", "4", "-q")
    assert in_process("train", "images.npz", *small, "-o", "run").returncode == 0
    assert in_process("prior", "run", "--steps", "4", "-q").returncode == 0
    assert in_process("export", "run", "-o", "bundle", "-q").returncode == 0
    vae = vaekit.load(tmp_path / "bundle", provider="cpu")
    assert vae.labels == ("0", "1")
    assert vae.manifest.requires == ("prior-label",)
    assert vae.verify().passed
    assert vae.sample_latents(3, label="1", guidance=2.0).shape == (3, 2, 4, 4)
    assert not np.array_equal(vae.sample_latents(3, label="1"), vae.sample_latents(3, label="0"))


def test_a_run_of_an_earlier_version_gets_labels_with_its_flow(in_process: Run, tmp_path: Path) -> None:
    shapes = draw_shapes(120, (16, 16))
    np.savez(tmp_path / "images.npz", images=shapes.images, labels=shapes.factors[:, 0].astype(int))
    small = ("--latent", "2", "--batch-size", "16", "--steps", "12", "-q")
    assert in_process("train", "images.npz", *small, "-o", "run").returncode == 0
    run = load_run(tmp_path / "run")
    assert run.mixture is not None
    plain = dataclasses.replace(run.mixture, labels=None)
    save_model(run.path, run.network, run.variance, plain, run.summary)
    np.savez(run.path / "holdout.npz", images=load_holdout(run), labels=np.zeros(12, np.int64))
    assert in_process("prior", "run", "--steps", "4", "-q").returncode == 0
    assert in_process("export", "run", "-o", "bundle", "-q").returncode == 0
    vae = vaekit.load(tmp_path / "bundle", provider="cpu")
    assert vae.labels == ("0", "1", "2")
    assert vae.manifest.attributes is None
    assert vae.verify().passed
