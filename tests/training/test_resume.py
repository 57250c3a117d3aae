"""Trainings that are killed and resumed give the same bytes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vaekit.errors import RunError, VaekitError
from vaekit.images.dataset import Images, open_source
from vaekit.training.batches import Batches
from vaekit.training.checkpoint import CHECKPOINT, load_checkpoint
from vaekit.training.config import CONFIG, Config, load_config
from vaekit.training.holdout import split_numbers
from vaekit.training.run import METRICS, MODEL, is_finished, load_run
from vaekit.training.trainer import Progress, Trainer

MakeConfig = Callable[..., Config]


class Killed(BaseException):
    """Simulates a kill, because nothing in vaekit catches it."""


def kill_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step >= step:
            raise Killed

    return report


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumed(images: Images, run: Path, **options: Any) -> Trainer:
    return Trainer(load_config(run), images, run, checkpoint=load_checkpoint(run), **options)


@pytest.fixture(scope="module")
def unbroken(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run of 130 steps, with validations at 50 and 100 and epochs of 6 steps."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    Trainer(_CONFIG, images, path).run()
    return path


_CONFIG = Config(
    source="shapes.npy",
    channels=3,
    height=12,
    width=9,
    latent=2,
    likelihood="gaussian",
    sigma=None,
    beta=1.0,
    steps=130,
    batch_size=32,
    lr=4e-3,
    seed=0,
    checkpoint_every=35,
)


@pytest.mark.parametrize("kills", [(20,), (40, 110), (70, 130)], ids=str)
def test_a_killed_training_comes_to_the_same_files(
    tmp_path: Path, images: Images, unbroken: Path, kills: tuple[int, ...]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Killed):
        Trainer(_CONFIG, images, run, report=kill_at(kills[0])).run()
    assert not is_finished(run)
    for step in kills[1:]:
        with pytest.raises(Killed):
            resumed(images, run, report=kill_at(step)).run()
    resumed(images, run).run()
    assert is_finished(run)
    assert files_of(run) == files_of(unbroken)


def test_a_training_killed_between_two_files_comes_to_the_same(
    tmp_path: Path, images: Images, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill training just before each of its file replacements in turn."""
    real, replaced = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal replaced
        replaced += 1
        if replaced == fatal:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for fatal in range(3, 12):
        run, replaced = tmp_path / str(fatal), 0
        with pytest.raises(Killed):
            Trainer(_CONFIG, images, run).run()
        (run / f".{MODEL}.99.tmp").write_bytes(b"half a model")
        replaced = 100
        checkpoint = load_checkpoint(run)
        Trainer(load_config(run), images, run, checkpoint=checkpoint).run()
        assert files_of(run) == files_of(unbroken)


@pytest.mark.parametrize(
    "changes",
    [
        {"binarize": "dynamic", "likelihood": "bernoulli"},
        {"objective": "iwae", "iwae_samples": 3},
        {"posterior": "isotropic", "mc_samples": 2, "beta_warmup": 0.5, "free_bits": 0.1},
    ],
)
def test_it_is_so_for_every_objective(tmp_path: Path, images: Images, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(_CONFIG, steps=30, checkpoint_every=7, **changes)
    Trainer(config, images, tmp_path / "unbroken").run()
    with pytest.raises(Killed):
        Trainer(config, images, tmp_path / "run", report=kill_at(20)).run()
    resumed(images, tmp_path / "run").run()
    assert files_of(tmp_path / "run") == files_of(tmp_path / "unbroken")


def test_how_often_checkpoints_are_written_changes_nothing_else(tmp_path: Path, images: Images, unbroken: Path) -> None:
    Trainer(dataclasses.replace(_CONFIG, checkpoint_every=1), images, tmp_path / "run").run()
    assert (tmp_path / "run" / MODEL).read_bytes() == (unbroken / MODEL).read_bytes()


def test_a_training_that_was_asked_to_stop_can_go_on(tmp_path: Path, images: Images, unbroken: Path) -> None:
    run, seen = tmp_path / "run", list[Progress]()
    outcome = Trainer(_CONFIG, images, run, report=seen.append, stop=lambda: len(seen) > 4).run()
    assert outcome.interrupted
    assert load_run(run).mixture is not None
    assert not is_finished(run)
    resumed(images, run).run()
    assert (run / MODEL).read_bytes() == (unbroken / MODEL).read_bytes()
    assert (run / METRICS).read_bytes() == (unbroken / METRICS).read_bytes()


def test_a_stopped_deadline_can_go_on(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    run, seen = tmp_path / "run", list[Progress]()
    config = make_config(max_minutes=60.0, steps=40)
    deadline = 1e12
    Trainer(config, images, run, deadline=deadline, report=seen.append, stop=lambda: len(seen) > 1).run()
    assert load_config(run).max_minutes == 60.0  # the number of steps is not known yet
    after = list[Progress]()
    trainer = resumed(images, run, deadline=deadline, report=after.append, stop=lambda: len(after) > 1)
    assert trainer.run().steps == 40
    assert load_config(run).max_minutes == 60.0
    assert resumed(images, run, deadline=0.0).run().steps == 41
    assert load_config(run).max_minutes is None


def test_another_setting_is_told(tmp_path: Path, images: Images) -> None:
    run = stopped(images, tmp_path / "run")
    assert resumed(images, run).changed_setting() == []
    checkpoint = load_checkpoint(run)
    assert checkpoint is not None
    other = dataclasses.replace(checkpoint, setting=dict(checkpoint.setting) | {"threads": "99"})
    (told,) = Trainer(_CONFIG, images, run, checkpoint=other).changed_setting()
    assert told.startswith("threads 99, now ")


@pytest.mark.parametrize("what", ["pixels", "count", "order", "shape"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_changed_images_are_refused_and_the_run_stays(
    tmp_path: Path, images: Images, what: str, in_memory: bool
) -> None:
    pixels = images.read(np.arange(len(images))).copy()
    np.save(tmp_path / "images.npy", pixels)
    kept = dataclasses.replace(open_source(str(tmp_path / "images.npy")), in_memory=in_memory)
    run = tmp_path / "run"
    with pytest.raises(Killed):
        Trainer(_CONFIG, kept, run, report=kill_at(40)).run()
    before = files_of(run)
    if what == "pixels":
        pixels[7, 0, 0, 0] ^= 1
    changed = {"count": pixels[:-1], "order": pixels[::-1], "shape": pixels[:, :, :-1]}.get(what, pixels)
    np.save(tmp_path / "images.npy", changed)
    with pytest.raises(RunError, match=r"images\.npy has changed since .*--overwrite"):
        resumed(dataclasses.replace(open_source(str(tmp_path / "images.npy")), in_memory=in_memory), run)
    assert files_of(run) == before


def stopped(images: Images, run: Path) -> Path:
    with pytest.raises(Killed):
        Trainer(_CONFIG, images, run, report=kill_at(40)).run()
    return run


def test_another_network_in_the_config_than_in_the_checkpoint_is_named(tmp_path: Path, images: Images) -> None:
    run = stopped(images, tmp_path / "run")
    document = json.loads((run / CONFIG).read_text())
    (run / CONFIG).write_text(json.dumps(document | {"latent": 3}))
    with pytest.raises(RunError, match=rf"{CHECKPOINT} do not fit the network.*{CONFIG}"):
        resumed(images, run)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def without_header(path: Path) -> None:
    save_file({"variance": torch.zeros(())}, path)


def newer(path: Path) -> None:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["checkpoint"])
    save_file({"variance": torch.zeros(())}, path, {"checkpoint": json.dumps(header | {"format_version": 99})})


@pytest.mark.parametrize(
    ("damage", "words"), [(cut, "cannot be read"), (without_header, "cannot be read"), (newer, "newer vaekit")]
)
def test_a_damaged_checkpoint_is_named(
    tmp_path: Path, images: Images, damage: Callable[[Path], None], words: str
) -> None:
    run = stopped(images, tmp_path / "run")
    damage(run / CHECKPOINT)
    with pytest.raises(RunError, match=f"{CHECKPOINT}.*{words}") as caught:
        load_checkpoint(run)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, images: Images, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, synced = tmp_path / "run", 0

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(f".{CHECKPOINT}")
        if synced == 3:  # those of steps 0 and 35 were written
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(VaekitError, match=r"No space left on device; the checkpoint of step 35 stays.*--resume"):
            Trainer(_CONFIG, images, run).run()
    assert not list(run.glob(".*"))
    checkpoint = load_checkpoint(run)
    assert checkpoint is not None
    assert checkpoint.step == 35
    resumed(images, run).run()
    assert files_of(run) == files_of(unbroken)


def test_a_diverged_training_names_the_step_the_images_and_the_good_checkpoint(tmp_path: Path, images: Images) -> None:
    def poison(progress: Progress) -> None:
        if progress.step == 60:
            trainer.network.decoder.get_parameter("doublings.0.bias").data.fill_(torch.nan)

    trainer = Trainer(_CONFIG, images, tmp_path / "run", report=poison)
    with pytest.raises(VaekitError, match="diverged") as caught:
        trainer.run()
    message = str(caught.value)
    training, _ = split_numbers(len(images), 0)
    first = Batches(images, _CONFIG, training).indices(60)[0]
    for words in ("at step 61:", f"shapes.npy[{first}]", "and 29 more", "Lower --lr", "of step 35", CHECKPOINT):
        assert words in message, message
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert all(tensor.isfinite().all() for tensor in checkpoint.network.values())


def test_an_overwritten_run_leaves_no_checkpoint_of_the_old_one(tmp_path: Path, images: Images) -> None:
    run = stopped(images, tmp_path / "run")
    with pytest.raises(Killed):
        Trainer(dataclasses.replace(_CONFIG, seed=1), images, run, report=kill_at(10)).run()
    checkpoint = load_checkpoint(run)
    assert checkpoint is not None
    assert checkpoint.step == 0
    shutil.rmtree(run)
