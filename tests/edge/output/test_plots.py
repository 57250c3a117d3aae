"""vaekit.output.plots, and `vaekit plot` on latents of more than two dimensions."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vaekit.output.plots import legend, new_figure, project, save_figure, scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]


def pictures(folder: Path, count: int = 12) -> Path:
    """Random grey pictures in subfolders ``even`` and ``odd``."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("odd" if number % 2 else "even") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return folder


@given(st.integers(1, 40), st.integers(3, 8), st.integers(0, 99))
def test_the_projection_keeps_the_two_directions_of_most_variance(n: int, d: int, seed: int) -> None:
    mu = (np.random.default_rng(seed).standard_normal((n, d)) * np.arange(1, d + 1)).astype(np.float32)
    projection = project(mu)
    assert projection.points.shape == (n, 2)
    singular = np.linalg.svd(mu - mu.mean(axis=0), compute_uv=False)
    wanted = np.append(singular, [0, 0])[:2] ** 2
    assert np.square(projection.points).sum(axis=0) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert all("of its variance" in name for name in projection.names)


@pytest.mark.parametrize("d", [1, 2])
def test_latents_of_one_or_two_dimensions_are_drawn_as_they_are(d: int) -> None:
    mu = np.random.default_rng(0).standard_normal((5, d)).astype(np.float32)
    projection = project(mu)
    assert np.array_equal(projection.points, mu)
    assert projection.names == ("z0", "z1")[:d]


class TestLegend:
    """What a figure's legend names, and how its points are coloured."""

    @pytest.fixture(autouse=True)
    def needs_matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    @staticmethod
    def drawn(labels: list[str] | None, d: int = 2) -> tuple[Figure, list[str]]:
        figure = new_figure(3, 3)
        axes = figure.subplots()
        count = len(labels) if labels else 4
        scatter(axes, project(np.random.default_rng(0).standard_normal((count, d)).astype(np.float32)), labels)
        legend(axes)
        found = axes.get_legend()
        return figure, [] if found is None else [text.get_text() for text in found.get_texts()]

    @pytest.mark.parametrize("d", [1, 2])
    @pytest.mark.parametrize(
        ("labels", "named"),
        [
            (None, []),
            (["cat"] * 4, []),
            (["cat", "dog", "cat"], ["cat", "dog"]),
            (["cat", "", "dog", ""], ["cat", "dog"]),
            (["", "cat", ""], ["cat"]),
            ([""] * 3, []),
            ([str(number) for number in range(21)], []),
            (["", *(f"{number:02}" for number in range(20))], [f"{number:02}" for number in range(20)]),
        ],
    )
    def test_classes_are_named_and_unlabelled_images_are_not(
        self, d: int, labels: list[str] | None, named: list[str]
    ) -> None:
        assert self.drawn(labels, d)[1] == named

    @pytest.mark.parametrize("d", [1, 2])
    def test_names_that_mean_something_to_matplotlib_are_drawn_as_they_are(self, tmp_path: Path, d: int) -> None:
        figure, named = self.drawn(["_private", "$5 and $6", r"$\\no$"], d)
        assert len(named) == 3
        assert save_figure(figure, tmp_path / "a.svg")

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_characters_that_the_font_lacks_are_told_not_warned_of(self, tmp_path: Path, suffix: str) -> None:
        assert not save_figure(self.drawn(["\U00013000", "dog"])[0], tmp_path / f"a{suffix}")  # a hieroglyph
        assert save_figure(self.drawn(["Füße", "κύων"])[0], tmp_path / f"b{suffix}")


class TestCommand:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    def test_a_folder_is_coloured_by_subfolder(self, vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
        result = vaekit("plot", pictures(tmp_path / "pictures"), "-m", tiny_bundle)
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""
        assert "mu of 12 images, 2 classes, on principal component 1 of mu (" in result.stderr
        with Image.open(tmp_path / "latent.png") as picture:
            assert min(picture.size) > 500
            coloured = np.asarray(picture.convert("HSV"))[..., 1] > 100
        assert coloured.any()

    def test_characters_that_the_font_lacks_are_one_line(self, vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
        images = np.zeros((4, 8, 8), np.uint8)
        np.savez(tmp_path / "a.npz", images=images, labels=np.array(["\U00013000", "犬", "", "猫"]))
        result = vaekit("plot", "a.npz", "-m", tiny_bundle)
        assert result.returncode == 0, result.stderr
        assert "Warning" not in result.stderr
        assert result.stderr.count("drawn as boxes") == 1
        assert "3 classes" in result.stderr

    def test_without_labels_it_is_drawn_in_one_colour(self, vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "images.npy", np.zeros((5, 8, 8), np.uint8))
        result = vaekit("plot", "images.npy", "-m", tiny_bundle, "-o", "plot.svg")
        assert result.returncode == 0, result.stderr
        assert "no classes, so in one colour" in result.stderr
        assert (tmp_path / "plot.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")

    def test_an_arrays_own_labels_colour_it(self, vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(30) % 3)
        result = vaekit("plot", "labelled.npz", "-m", tiny_bundle, "--limit", "15", "--json")
        assert result.returncode == 0, result.stderr
        document = json.loads(result.stdout)
        assert (document["images"], document["classes"], document["failures"]) == (15, 3, 0)
        assert len(document["axes"]) == 2

    def test_an_unreadable_picture_is_named_and_the_rest_drawn(
        self, vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        (pictures(tmp_path / "pictures") / "odd" / "bad.png").write_bytes(b"no picture")
        assert_fails(vaekit("plot", "pictures", "-m", tiny_bundle), 1, "1 of 13 images", "latent.png shows 12 images")
        (tmp_path / "latent.png").unlink()
        skipped = vaekit("plot", "pictures", "-m", tiny_bundle, "--skip-errors", "--json")
        assert skipped.returncode == 0, skipped.stderr
        assert json.loads(skipped.stdout)["failures"] == 1
        assert (tmp_path / "latent.png").exists()

    def test_what_cannot_be_is_refused_before_any_work(
        self, vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        pictures(tmp_path / "pictures")
        assert_fails(vaekit("plot", "-m", tiny_bundle), 2, "name the images")
        assert_fails(vaekit("plot", "pictures", "-m", tiny_bundle, "-o", "plot.txt"), 2, ".png", ".svg")
        assert_fails(vaekit("plot", "pictures", "-m", tiny_bundle, "--reach", "0"), 2, "--reach")
        assert not (tmp_path / "latent.png").exists()


def test_without_matplotlib_the_extra_is_named(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "missing" / "matplotlib").mkdir(parents=True)
    (tmp_path / "missing" / "matplotlib" / "__init__.py").write_text("raise ImportError")
    pictures(tmp_path / "pictures")
    result = vaekit("plot", "pictures", "-m", tiny_bundle, env={"PYTHONPATH": str(tmp_path / "missing")})
    assert_fails(result, 1, "pip install 'vaekit[plot]'")
