"""`vaekit train --resume` and `--config` on the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaekit.images.shapes import draw_shapes
from vaekit.system.files import only_writer
from vaekit.training.run import load_run

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

SHORT = ("--latent", "2", "--steps", "3", "--batch-size", "32")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_when(command: list[str], folder: Path, ready: Callable[[], bool]) -> None:
    """Run a training and kill it with SIGKILL as soon as a condition holds."""
    script = Path(sys.executable).with_name("vaekit")
    with subprocess.Popen([str(script), *command], cwd=folder, stderr=subprocess.PIPE, text=True) as training:
        deadline = time.monotonic() + 120
        while not ready():
            assert training.poll() is None, training.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        training.kill()
        training.communicate()
    assert training.returncode == -signal.SIGKILL


def test_a_training_killed_at_any_time_goes_on_to_the_same_bytes(vaekit: Run, shapes: Path, tmp_path: Path) -> None:
    options = ["--latent", "2", "--batch-size", "32", "--steps", "400", "--checkpoint-every", "30", "--device", "cpu"]
    metrics = tmp_path / "broken" / "metrics.jsonl"

    def lines(count: int) -> bool:
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= count

    kill_when(["train", "shapes.npy", *options, "-o", "broken"], tmp_path, lambda: lines(6))
    kill_when(["train", "--resume", "broken"], tmp_path, lambda: lines(25))
    resumed = vaekit("train", "--resume", "broken")
    assert resumed.returncode == 0, resumed.stderr
    assert "broken: resuming after step" in resumed.stderr
    assert vaekit("train", "shapes.npy", *options, "-o", "unbroken").returncode == 0
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "unbroken")


@pytest.fixture
def finished(in_process: Run, shapes: Path, tmp_path: Path) -> Path:
    trained = in_process("train", shapes.name, *SHORT)
    assert trained.returncode == 0, trained.stderr
    return tmp_path / "vae"


def test_a_finished_run_says_so(in_process: Run, finished: Path) -> None:
    before = files_of(finished)
    again = in_process("train", "--resume", "vae")
    assert again.returncode == 0
    assert "vae is finished" in again.stderr
    assert again.stderr.splitlines()[-1] == "next: vaekit export"
    assert files_of(finished) == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(in_process: Run, finished: Path) -> None:
    before = files_of(finished)
    for path in finished.iterdir():
        if path.is_file() and path.name != "config.json":
            path.unlink()
    again = in_process("train", "--resume", "vae")
    assert again.returncode == 0, again.stderr
    assert "no checkpoint yet: starting again from its config.json" in again.stderr
    assert files_of(finished) == before


def unfinished(in_process: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an unfinished run that stopped silently after its second step."""
    from vaekit.training.trainer import Trainer

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_report", lambda *a: (_ for _ in ()).throw(SystemExit(0)))
        in_process("train", "shapes.npy", *SHORT, "--checkpoint-every", "2", "--quiet")
    assert (tmp_path / "vae" / "checkpoint.safetensors").exists()
    return tmp_path / "vae"


def test_a_source_that_has_moved_may_be_named(
    in_process: Run, assert_fails: Fails, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = unfinished(in_process, tmp_path, monkeypatch)
    shapes.rename(tmp_path / "moved.npy")
    assert_fails(in_process("train", "--resume", "vae"), 1, "there is no source shapes.npy")
    resumed = in_process("train", "moved.npy", "--resume", "vae")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 2 of 3" in resumed.stderr
    assert load_run(run).summary["steps"] == 3


@pytest.mark.parametrize("count", [20, 149])
def test_a_changed_source_exits_1_and_leaves_the_run(
    in_process: Run,
    assert_fails: Fails,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    run = unfinished(in_process, tmp_path, monkeypatch)
    before = files_of(run)
    np.save(shapes, draw_shapes(count, (12, 9)).images)
    assert_fails(in_process("train", "--resume", "vae"), 1, "shapes.npy has changed", "--overwrite")
    assert files_of(run) == before


def test_a_run_is_not_resumed_with_other_settings(
    in_process: Run, assert_fails: Fails, finished: Path, tmp_path: Path
) -> None:
    before = files_of(finished)
    assert_fails(in_process("train", "--resume", "vae", "--lr", "1e-3", "-o", "other"), 2, "leave out", "--lr", "-o")
    assert_fails(in_process("train", "--resume", "nowhere"), 1, "there is no run at nowhere")
    assert_fails(in_process("train", "--resume", "."), 1, "is not a run")
    assert files_of(finished) == before
    assert {path.name for path in tmp_path.iterdir()} == {"vae", "shapes.npy"}


def test_a_run_that_is_there_is_kept_and_resuming_it_is_offered(
    in_process: Run, assert_fails: Fails, finished: Path
) -> None:
    assert_fails(in_process("train", "shapes.npy", *SHORT), 1, "already contains a run", "--resume vae", "--overwrite")


def config_of(run: Path) -> dict[str, Any]:
    document = json.loads((run / "config.json").read_text())
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--sigma", "0.25", "--beta", "0.5", "--beta-warmup", "0.5", "--free-bits", "0.1", "--mc-samples", "2"),
        ("--likelihood", "bernoulli", "--binarize", "fixed", "--posterior", "isotropic"),
        ("--objective", "iwae", "--iwae-samples", "3"),
        ("--objective", "autoencoder"),
        ("--objective", "prior-only", "--size", "8x10", "--seed", "18446744073709551615"),
    ],
    ids=" ".join,
)
def test_a_config_reproduces_its_run(in_process: Run, shapes: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert in_process("train", shapes.name, *SHORT, *options, "-o", "first").returncode == 0
    again = in_process("train", "--config", "first/config.json", "-o", "again")
    assert again.returncode == 0, again.stderr
    assert files_of(tmp_path / "again") == files_of(tmp_path / "first")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (("--seed", "5"), {"seed": 5}),
        (("--epochs", "1"), {"steps": 4}),
        (("--steps", "2"), {"steps": 2}),
        (("--likelihood", "bernoulli"), {"likelihood": "bernoulli", "sigma": None}),
        (
            ("--objective", "iwae"),
            {"objective": "iwae", "iwae_samples": 8, "beta": 1.0, "mc_samples": 1, "free_bits": 0.0},
        ),
        (("other.npy", "--batch-size", "16"), {"source": "other.npy", "batch_size": 16}),
        (("--size", "9x8", "--sigma", "optimal"), {"height": 9, "width": 8, "sigma": None}),
    ],
    ids=str,
)
def test_options_beside_a_config_override_it(
    in_process: Run, shapes: Path, tmp_path: Path, options: tuple[str, ...], changes: dict[str, Any]
) -> None:
    np.save(tmp_path / "other.npy", draw_shapes(60, (12, 9)).images)
    settings = ("--sigma", "0.25", "--beta", "0.5", "--free-bits", "0.1", "--mc-samples", "2")
    assert in_process("train", shapes.name, *SHORT, *settings, "-o", "first").returncode == 0
    again = in_process("train", *options, "--config", "first/config.json", "-o", "again")
    assert again.returncode == 0, again.stderr
    assert config_of(tmp_path / "again") == config_of(tmp_path / "first") | changes


def test_a_config_may_have_some_settings_only(in_process: Run, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text('{"latent": 3, "steps": 2, "batch_size": 16}')
    assert in_process("train", shapes.name, "--config", "some.json").returncode == 0
    assert {"latent": 3, "steps": 2, "batch_size": 16, "source": "shapes.npy"}.items() <= config_of(
        tmp_path / "vae"
    ).items()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"latnet": 3}', ("'latnet'", "'latent'")),
        ('{"iwae-samples": 3}', ("'iwae_samples'",)),
        ('{"latent": "three"}', ("latent must be", "'three'")),
        ('{"latent": 0}', ("latent must be", "0")),
        ('{"lr": -1}', ("lr must be",)),
        ('{"likelihood": "poisson"}', ("likelihood must be one of gaussian, laplace, bernoulli",)),
        ('{"source": 3}', ("source",)),
        ('{"format_version": 99}', ("newer vaekit",)),
        ("{", ("damaged",)),
        ("[]", ("damaged",)),
        (None, ("cannot read", "No such file")),
    ],
)
def test_a_wrong_config_exits_1(
    in_process: Run, assert_fails: Fails, shapes: Path, tmp_path: Path, text: str | None, words: tuple[str, ...]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert_fails(in_process("train", shapes.name, "--config", "config.json"), 1, "config.json", *words)
    assert not (tmp_path / "vae").exists()


def test_a_learning_rate_that_diverges_exits_1_with_the_images(
    in_process: Run, assert_fails: Fails, shapes: Path
) -> None:
    result = in_process("train", shapes.name, "--latent", "2", "--steps", "30", "--batch-size", "32", "--lr", "1e30")
    assert_fails(result, 1, "training diverged at step", "shapes.npy[", "and 29 more", "Lower --lr", "checkpoint")


def test_a_share_or_a_source_is_measured(in_process: Run, assert_fails: Fails, shapes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "val.npy", draw_shapes(20, (16, 16)).images)
    np.save(tmp_path / "grey.npy", draw_shapes(20, (12, 9)).images[:, 0])
    shared = in_process("train", shapes.name, *SHORT, "--val", "0.2", "-o", "share")
    assert shared.returncode == 0, shared.stderr
    assert "120 to train on, 30 held out" in shared.stderr
    other = in_process("train", shapes.name, *SHORT, "--val", "val.npy", "--augment", "flip", "-o", "source")
    assert other.returncode == 0, other.stderr
    assert "150 to train on, 20 of val.npy to measure" in other.stderr
    assert "val.npy: 20 images, 12 x 9 RGB" in other.stderr
    assert config_of(tmp_path / "source")["augment"] == "flip"
    again = in_process("train", "--config", "source/config.json", "-o", "again")
    assert again.returncode == 0, again.stderr
    assert files_of(tmp_path / "again") == files_of(tmp_path / "source")

    for val in ("0", "1", "-0.5", "nan"):
        assert_fails(in_process("train", shapes.name, "-o", "none", "--val", val), 2, "--val", "no images to measure")
    assert_fails(in_process("train", shapes.name, "-o", "none", "--val", "0.001"), 2, "--val 0.001", "holds out 0")
    assert_fails(in_process("train", shapes.name, "-o", "none", "--val", "nowhere"), 1, "there is no source nowhere")
    assert_fails(in_process("train", shapes.name, "-o", "none", "--val", "grey.npy"), 1, "grey.npy", "RGB")
    assert not (tmp_path / "none").exists()


def test_a_tracker_that_is_not_installed_exits_1(
    in_process: Run, assert_fails: Fails, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaekit.training.tracking.find_spec", lambda name: None)
    result = in_process("train", shapes.name, *SHORT, "--track", "mlflow")
    assert_fails(result, 1, "--track mlflow", "pip install 'vaekit[mlflow]'")


def test_a_time_limit_is_kept_recorded_and_repeated(in_process: Run, shapes: Path, tmp_path: Path) -> None:
    options = ("--latent", "2", "--batch-size", "32", "--preset", "tiny", "--beta-warmup", "0.5")
    timed = in_process("train", shapes.name, *options, "--max-minutes", "0.02", "-o", "timed")
    assert timed.returncode == 0, timed.stderr
    assert "resume it with" not in timed.stderr
    assert "stopped early" not in timed.stderr
    config = config_of(tmp_path / "timed")
    assert config["max_minutes"] is None
    assert config["schedule"][-1][0] == config["steps"] == load_run(tmp_path / "timed").summary["steps"]
    again = in_process("train", "--config", "timed/config.json", "-o", "again")
    assert again.returncode == 0, again.stderr
    assert config_of(tmp_path / "again") == config
    for length in (("--steps", "3"), ("--epochs", "1")):
        other = in_process("train", "--config", "timed/config.json", *length, "-o", "other", "--overwrite")
        assert other.returncode == 0, other.stderr
        assert "schedule" not in config_of(tmp_path / "other")


def test_a_resumed_time_limit_says_how_much_is_left(
    in_process: Run, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaekit.training.trainer import Trainer

    options = ("--latent", "2", "--batch-size", "32", "--preset", "tiny", "--max-minutes", "30")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_is_stopped", lambda trainer, step: step == 2)
        stopped = in_process("train", shapes.name, *options)
    assert stopped.returncode == 0, stopped.stderr
    assert "resume it with: vaekit train --resume vae" in stopped.stderr
    monkeypatch.setattr(Trainer, "_is_stopped", lambda trainer, step: step == 4)
    resumed = in_process("train", "--resume", "vae")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"resuming after step 2 with (29\.\d|30\.0) of 30 minutes left", resumed.stderr)
    assert load_run(tmp_path / "vae").summary["steps"] == 4


@pytest.mark.parametrize(
    "command", [["train", "--resume", "vae"], ["train", "shapes.npy", *SHORT, "--overwrite"], ["prior", "vae"]]
)
def test_a_run_has_one_writer(in_process: Run, assert_fails: Fails, finished: Path, command: list[str]) -> None:
    if "--resume" in command:  # as before its end
        (finished / "model.safetensors").unlink()
    before = files_of(finished)
    with only_writer(finished):
        assert_fails(in_process(*command), 1, "another command is writing vae")
    assert files_of(finished) == before
