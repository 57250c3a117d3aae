"""The run folder can be written and read, and damage is reported in one line."""

from __future__ import annotations

import dataclasses
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaekit.errors import VaekitError
from vaekit.maths.prior import Mixture
from vaekit.training.classes import Classes
from vaekit.training.config import CONFIG, Config, save_config
from vaekit.training.networks import VAENetwork
from vaekit.training.run import (
    HOLDOUT,
    METRICS,
    MODEL,
    PREVIEWS,
    check_run_target,
    is_run,
    load_holdout,
    load_holdout_labels,
    load_run,
    rewind_folder,
    save_holdout,
    save_model,
    start_folder,
)

MIXTURE = Mixture(
    np.array([0.25, 0.75]), np.array([[0.1, 1.0], [-1.0, 0.0]]), np.array([[[1.0, 0.0], [0.3, 1.0]], [[2.0, 0.0]] * 2])
)
CLASSES = Classes(("cat", "dog"), np.array([0, 1]), np.array([0, 1, 1, -1, 0, 1]), ())
SUMMARY = {"steps": 7, "validation": {"elbo": -1.5}}


@pytest.fixture(scope="module")
def network() -> VAENetwork:
    """Return a network with random weights and random batch statistics."""
    torch.manual_seed(1)
    network = VAENetwork((3, 12, 9), 2)
    with torch.no_grad():
        for _ in range(3):
            network.decoder(network.encoder(torch.rand(8, 3, 12, 9))[0])
    return network


@pytest.fixture
def run(tmp_path: Path, network: VAENetwork, make_config: Callable[..., Config]) -> Path:
    """Return a complete run without training."""
    path = tmp_path / "run"
    start_folder(path)
    save_config(path, make_config())
    save_model(path, network, 0.04, MIXTURE, SUMMARY)
    save_holdout(path, np.random.default_rng(0).integers(0, 256, (6, 3, 12, 9), np.uint8), CLASSES)
    return path


def test_a_run_comes_back_as_it_was_saved(run: Path, network: VAENetwork, make_config: Callable[..., Config]) -> None:
    loaded = load_run(run)
    assert loaded.config == make_config()
    assert loaded.variance == 0.04
    assert loaded.summary == SUMMARY
    assert not loaded.network.training
    expected = network.state_dict()
    found = loaded.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert loaded.mixture is not None
    for part in ("weights", "means", "cholesky"):
        assert np.array_equal(getattr(loaded.mixture, part), getattr(MIXTURE, part))
        assert getattr(loaded.mixture, part).dtype == np.float64


def test_held_out_images_come_back(run: Path) -> None:
    images = load_holdout(load_run(run))
    assert np.array_equal(images, np.random.default_rng(0).integers(0, 256, (6, 3, 12, 9), np.uint8))
    names, labels = load_holdout_labels(load_run(run))
    assert names == ("cat", "dog")
    assert labels.tolist() == [0, 1, 1, -1, 0, 1]


def test_labels_of_the_mixture_come_back_with_it(run: Path, network: VAENetwork) -> None:
    labelled = dataclasses.replace(MIXTURE, labels=np.array([1, -1]))
    save_model(run, network, 0.04, labelled, SUMMARY, ("cat", "dog"))
    loaded = load_run(run)
    assert loaded.labels == ("cat", "dog")
    assert loaded.mixture is not None
    assert loaded.mixture.labels is not None
    assert loaded.mixture.labels.tolist() == [1, -1]
    assert loaded.summary == SUMMARY


def test_runs_of_earlier_versions_have_labels_without_names(run: Path, refused: Callable[..., None]) -> None:
    images = np.zeros((6, 3, 12, 9), np.uint8)
    np.savez(run / HOLDOUT, images=images, labels=np.arange(6))
    names, labels = load_holdout_labels(load_run(run))
    assert names == ()
    assert labels.tolist() == [-1] * 6
    for wrong in (np.arange(5), np.array([0, 1, 2, 0, 0, 0]), np.zeros(6)):
        np.savez(run / HOLDOUT, images=images, labels=wrong, label_names=np.array(["cat", "dog"]))
        refused(lambda: load_holdout_labels(load_run(run)), str(run / HOLDOUT), "labels that do not fit")


def test_a_bernoulli_run_without_a_mixture_comes_back(
    run: Path, network: VAENetwork, change_config: Callable[..., None]
) -> None:
    change_config(run, likelihood="bernoulli")
    save_model(run, network, None, None, SUMMARY)
    loaded = load_run(run)
    assert loaded.variance is None
    assert loaded.mixture is None


def test_the_same_model_gives_the_same_bytes(run: Path, network: VAENetwork) -> None:
    before = (run / MODEL).read_bytes()
    save_model(run, network, 0.04, MIXTURE, dict(reversed(SUMMARY.items())))
    assert (run / MODEL).read_bytes() == before


def test_the_model_may_be_read_by_whoever_may_read_the_rest_of_the_run(run: Path) -> None:
    modes = {stat.S_IMODE((run / name).stat().st_mode) for name in (MODEL, CONFIG, HOLDOUT)}
    assert len(modes) == 1, [oct(mode) for mode in modes]


def test_nothing_is_a_run(tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(lambda: load_run(tmp_path / "none"), "there is no run", str(tmp_path / "none"), "vaekit train")
    refused(lambda: load_run(tmp_path), "is not a run", str(tmp_path), CONFIG)


def test_a_run_without_a_model_is_named(run: Path, refused: Callable[..., None]) -> None:
    (run / MODEL).unlink()
    refused(lambda: load_run(run), str(run), MODEL)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_damaged_model_is_named(run: Path, keep: int, refused: Callable[..., None]) -> None:
    data = (run / MODEL).read_bytes()
    (run / MODEL).write_bytes(data[:keep])
    refused(lambda: load_run(run), str(run / MODEL), "cannot be read")


def test_a_model_that_is_text_is_named(run: Path, refused: Callable[..., None]) -> None:
    (run / MODEL).write_text("this is no model\n" * 100)
    refused(lambda: load_run(run), str(run / MODEL))


@pytest.mark.parametrize("changes", [{"latent": 3}, {"height": 40, "width": 40}, {"channels": 1}])
def test_weights_that_do_not_fit_the_config_are_named(
    run: Path, changes: dict[str, int], change_config: Callable[..., None], refused: Callable[..., None]
) -> None:
    change_config(run, **changes)
    refused(lambda: load_run(run), str(run / MODEL), str(run / CONFIG), "do not fit")


def test_a_gaussian_run_without_its_variance_is_named(
    run: Path, network: VAENetwork, refused: Callable[..., None]
) -> None:
    save_model(run, network, None, None, SUMMARY)
    refused(lambda: load_run(run), str(run / MODEL), "variance")


def test_missing_held_out_images_are_named(run: Path, refused: Callable[..., None]) -> None:
    (run / HOLDOUT).unlink()
    refused(lambda: load_holdout(load_run(run)), str(run / HOLDOUT), "missing")


@pytest.mark.parametrize(
    "damage", ["empty", "text", "cut short", "altered", "another array", "a single array", "no array"]
)
def test_damaged_held_out_images_are_named(run: Path, damage: str, refused: Callable[..., None]) -> None:
    path = run / HOLDOUT
    data = path.read_bytes()
    if damage == "another array":
        np.savez(path, pictures=np.zeros(3))
    elif damage == "no array":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", "<html>")
    elif damage == "a single array":
        with open(path, "wb") as file:
            np.save(file, np.zeros((6, 3, 12, 9), np.uint8))
    else:
        middle = len(data) // 2
        altered = data[:middle] + bytes(64) + data[middle + 64 :]
        path.write_bytes({"empty": b"", "text": b"no array", "cut short": data[:middle], "altered": altered}[damage])
    refused(lambda: load_holdout(load_run(run)), str(path))


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 1, 12, 9), np.uint8), np.zeros((2, 3, 12, 9), np.float32), np.zeros((0, 3, 12, 9), np.uint8)],
)
def test_held_out_images_that_do_not_fit_are_named(
    run: Path, images: np.ndarray[Any, Any], refused: Callable[..., None]
) -> None:
    save_holdout(run, images, None)
    refused(lambda: load_holdout(load_run(run)), str(run / HOLDOUT), "does not fit")


def test_a_free_place_may_be_written(tmp_path: Path) -> None:
    check_run_target(tmp_path / "new" / "run", overwrite=False)
    check_run_target(tmp_path, overwrite=False)  # an empty folder


def test_a_run_is_only_replaced_when_asked(run: Path, refused: Callable[..., None]) -> None:
    refused(lambda: check_run_target(run, overwrite=False), str(run), "--overwrite")
    check_run_target(run, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_never_replaced(tmp_path: Path, overwrite: bool, refused: Callable[..., None]) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("a letter")
    folder.mkdir()
    (folder / "photo.jpg").write_text("a photo")
    refused(lambda: check_run_target(file, overwrite), str(file), "is not a run")
    refused(lambda: check_run_target(folder, overwrite), str(folder), "is not a run")
    with pytest.raises(VaekitError, match="cannot write"):
        check_run_target(file / "run", overwrite)


def test_a_new_run_starts_without_what_the_old_one_left(run: Path) -> None:
    (run / METRICS).write_text("old\n")
    (run / PREVIEWS).mkdir(exist_ok=True)
    (run / PREVIEWS / "old.png").write_text("old")
    start_folder(run)
    assert not (run / PREVIEWS).exists()
    assert not (run / MODEL).exists()
    assert not (run / METRICS).exists()


def test_a_run_that_was_killed_as_it_began_may_begin_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.0bbfd16a-1.tmp").write_text("{")
    check_run_target(tmp_path / "run", overwrite=False)
    start_folder(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_previews_of_where_a_training_was_stopped_go_with_its_metrics(tmp_path: Path) -> None:
    kept = '{"step": 10, "split": "training"}\n{"step": 10, "split": "validation"}\n'
    (tmp_path / METRICS).write_text(kept + '{"step": 13, "split": "validation"}\n')
    (tmp_path / PREVIEWS).mkdir()
    names = ("reconstructions-000010", "samples-000010", "reconstructions-000013", "samples-000013", "samples-final")
    for name in (*names, "my-own-000013-copy"):
        (tmp_path / PREVIEWS / f"{name}.png").touch()
    rewind_folder(tmp_path, len(kept))
    assert (tmp_path / METRICS).read_text() == kept
    left = sorted(path.stem for path in (tmp_path / PREVIEWS).iterdir())
    assert left == ["my-own-000013-copy", "reconstructions-000010", "samples-000010", "samples-final"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, refused: Callable[..., None]) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: start_folder(tmp_path / "file" / "run"), str(tmp_path / "file" / "run"))


def test_an_unfinished_run_is_a_run(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    start_folder(tmp_path)
    assert not is_run(tmp_path)
    save_config(tmp_path, make_config())
    assert is_run(tmp_path)
