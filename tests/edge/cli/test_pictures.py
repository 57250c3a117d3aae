"""reconstruct, interpolate, traverse, and sample into a folder."""

from __future__ import annotations

import json
import math
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vaekit as package
from vaekit.images.picture import read_image
from vaekit.images.pixels import to_uint8

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Fails = Callable[..., None]

SIDE = 64  # side of the tiny bundle's 8 x 8 images after enlarging them eight times
PITCH = SIDE + 2
LINE = 17  # height of a line of text in pixels


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def floats(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert grey pictures (N, 8, 8) to the library's format."""
    return pixels[:, None].astype(np.float32) / np.float32(255)


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened)


def cell(pixels: NDArray[np.uint8], top: int, left: int) -> NDArray[np.int64]:
    """Return the image (8, 8) that a picture shows, enlarged and in grey, at a position."""
    shown = pixels[top : top + SIDE, left : left + SIDE].astype(np.int64)
    assert shown.shape == (SIDE, SIDE, 3)
    small = shown[::8, ::8, 0]
    assert (shown == small.repeat(8, 0).repeat(8, 1)[..., None]).all()
    return small


def assert_shows(pixels: NDArray[np.uint8], top: int, left: int, image: NDArray[np.float32]) -> None:
    assert np.abs(cell(pixels, top, left) - to_uint8(image)[0]).max() <= 1  # another batch size may round differently


def bomb(side: int) -> bytes:
    """Return a small PNG whose header claims sides of this many pixels."""

    def part(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = part(b"IHDR", side.to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0)))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(bytes(1000))) + part(b"IEND", b"")


@pytest.fixture
def unusual(tmp_path: Path) -> None:
    """Write unusual pictures, some readable (deep.png, moving.gif) and some not."""
    pixels = noise(4, seed=1)
    frames = [Image.fromarray(image) for image in pixels]
    frames[0].save(tmp_path / "a.png")
    frames[1].save(tmp_path / "moving.gif", save_all=True, append_images=frames[2:])
    Image.fromarray(pixels[0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "tall.png")
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(bomb(60_000))
    (tmp_path / "large.png").write_bytes(bomb(11_000))  # above vaekit's limit, but below Pillow's
    (tmp_path / "file").touch()


# reconstruct


def test_reconstruct_shows_originals_above_reconstructions_with_their_psnr(
    vaekit: Run, tiny_bundle: Path, tmp_path: Path
) -> None:
    images = floats(noise(10))
    np.save(tmp_path / "images.npy", noise(10))
    result = vaekit("reconstruct", "images.npy", "-m", tiny_bundle, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert listed(tmp_path) == {"images.npy", "pairs.png"}
    decoded = package.load(tiny_bundle).reconstruct(images)
    psnr = [
        -10 * math.log10(float(np.square(a.astype(float) - b).mean())) for a, b in zip(images, decoded, strict=True)
    ]
    document = json.loads(result.stdout)
    assert document == {
        "output": "pairs.png",
        "images": [{"path": f"images.npy[{k}]", "psnr": pytest.approx(psnr[k], rel=1e-5)} for k in range(10)],
        "psnr": pytest.approx(sum(psnr) / 10, rel=1e-5),
        "failures": 0,
        "provider": "cpu",
        "model": str(tiny_bundle),
    }
    pairs = picture(tmp_path / "pairs.png")
    height, width, _ = pairs.shape
    assert height == 2 + 2 * (2 * PITCH + LINE)  # a row of eight images, and a row of two
    left = width - 8 * PITCH  # right of the titles
    assert 0 < left < 2 * PITCH
    for number in range(10):
        top, x = 2 + number // 8 * (2 * PITCH + LINE), left + number % 8 * PITCH
        assert_shows(pairs, top, x, images[number])
        assert_shows(pairs, top + PITCH, x, decoded[number])
    assert (pairs[2 : 2 + height // 2, :left] < 128).any()  # titles
    assert (pairs[2 + 2 * PITCH : 2 * PITCH + LINE, left:] < 128).any()  # decibels


@pytest.mark.parametrize(("limit", "shown"), [(1, [0]), (3, None), (7, None), (10, list(range(10)))])
def test_reconstruct_shows_as_many_as_asked_spread_over_all(
    vaekit: Run, tiny_bundle: Path, tmp_path: Path, limit: int, shown: list[int] | None
) -> None:
    np.save(tmp_path / "images.npy", noise(10))
    options = ("-m", tiny_bundle, "--limit", str(limit), "--json")
    document = json.loads(vaekit("reconstruct", "images.npy", *options).stdout)
    numbers = [int(row["path"].removeprefix("images.npy[").removesuffix("]")) for row in document["images"]]
    assert len(numbers) == limit
    assert shown in (None, numbers)
    gaps = np.diff([*numbers, 10])
    assert gaps.min() > 0
    assert gaps.max() <= math.ceil(10 / limit) + 1
    width = picture(tmp_path / "pairs.png").shape[1]
    assert min(limit, 8) * PITCH < width < (min(limit, 8) + 2) * PITCH


@pytest.mark.usefixtures("unusual")
def test_reconstruct_names_what_it_could_not_read(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = vaekit("reconstruct", "*.png", "moving.gif", "-m", tiny_bundle)
    assert_fails(result, 1, "3 of 7 images", "bomb.png", "pairs.png", "--skip-errors")
    told = result.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in told if line.startswith("skipped: ")] == [
        *("bomb.png", "broken.png", "large.png"),
    ]
    assert any(line.startswith("pairs.png: 4 of 7 images") and " dB" in line for line in told)
    assert (tmp_path / "pairs.png").exists()
    quiet = vaekit("reconstruct", "a.png", "deep.png", "-m", tiny_bundle, "-o", "q.png", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    pairs = picture(tmp_path / "q.png")
    left = pairs.shape[1] - 2 * PITCH
    np.testing.assert_array_equal(cell(pairs, 2, left), cell(pairs, 2, left + PITCH))  # 16 bits, scaled to 8


# interpolate


def test_interpolate_makes_a_strip_between_two_pictures(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    ends = noise(2)
    for name, pixels in zip(("a.png", "b.png"), ends, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    result = vaekit("interpolate", "a.png", "b.png", "-m", tiny_bundle, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "output": "strip.png",
        "steps": 8,
        "mode": "linear",
        "provider": "cpu",
        "model": str(tiny_bundle),
    }
    strip = picture(tmp_path / "strip.png")
    assert strip.shape == (2 + PITCH + LINE, 2 + 10 * PITCH, 3)
    images = floats(ends)
    between = package.load(tiny_bundle).interpolate(images[0], images[1])
    for number, image in enumerate((images[0], *between, images[1])):
        assert_shows(strip, 2, 2 + number * PITCH, image)


def test_interpolate_goes_between_seeds_on_a_line_or_a_circle(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    vae = package.load(tiny_bundle)
    options = ("--from-seed", "3", "--to-seed", str(2**64 - 1), "--prior", "normal", "--steps", "18", "-m", tiny_bundle)
    a, b = (vae.sample_latents(1, seed=seed, prior="normal")[0] for seed in (3, 2**64 - 1))
    strips = []
    for mode in ("linear", "slerp"):
        result = vaekit("interpolate", *options, "--mode", mode, "-o", f"{mode}.png")
        assert result.returncode == 0
        told, following = result.stderr.splitlines()
        assert all(word in told for word in (f"{mode}.png", "18 images", "seeds 3 and", mode))
        assert following.startswith("next: vaekit interpolate --from-seed 3 ")
        assert ("--mode slerp" in following) is (mode == "slerp")
        assert "--prior normal" in following
        strips.append(picture(tmp_path / f"{mode}.png"))
        assert strips[-1].shape == (2 + 2 * (PITCH + LINE), 2 + 16 * PITCH, 3)  # at most sixteen in a row
        for number, image in enumerate(vae.interpolate(a, b, 18, mode=mode)):
            assert_shows(strips[-1], 2 + number // 16 * (PITCH + LINE), 2 + number % 16 * PITCH, image)
    assert (strips[0] != strips[1]).any()


@pytest.mark.usefixtures("unusual")
def test_interpolate_makes_a_gif_that_loops(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("-m", tiny_bundle, "--steps", "5", "-o", "way.gif", "-q")
    result = vaekit("interpolate", "deep.png", "moving.gif", *options)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    ends = floats(np.stack([read_image(tmp_path / name, 1, (8, 8))[0] for name in ("deep.png", "moving.gif")]))
    between = package.load(tiny_bundle).interpolate(ends[0], ends[1], 5)
    with Image.open(tmp_path / "way.gif") as way:
        assert (way.format, way.size, way.info["loop"]) == ("GIF", (SIDE, SIDE), 0)
        frames, durations = [], []
        for number in range(getattr(way, "n_frames", 1)):
            way.seek(number)
            frames.append(np.asarray(way.convert("RGB"), np.int64)[::8, ::8, 0])
            durations.append(way.info["duration"])
    there_and_back = [*between, *between[-2:0:-1]]
    assert len(frames) == len(there_and_back) == 8
    for frame, image in zip(frames, there_and_back, strict=True):
        assert np.abs(frame - to_uint8(image)[0]).max() <= 2
    assert durations[0] == durations[4] > durations[1]  # the first and last frames are shown longer


# traverse


@pytest.mark.usefixtures("unusual")
def test_traverse_moves_the_most_active_dimensions(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("-n", "2", "--steps", "3", "--span", "1.5", "-m", tiny_bundle)
    result = vaekit("traverse", "deep.png", *options, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    kl = json.loads((tiny_bundle / "manifest.json").read_text())["latent"]["kl"]
    most_active = [int(number) for number in np.argsort(kl)[::-1][:2]]
    assert json.loads(result.stdout) == {
        "output": "traverse.png",
        "dimensions": most_active,
        "labels": [],
        "steps": 3,
        "provider": "cpu",
        "model": str(tiny_bundle),
    }
    rows = picture(tmp_path / "traverse.png")
    assert rows.shape[0] == 2 + LINE + 2 * PITCH
    left = rows.shape[1] - 3 * PITCH
    base = floats(read_image(tmp_path / "a.png", 1, (8, 8)))[0]  # deep.png is a.png in 16 bits
    images = package.load(tiny_bundle).traverse(base, dimensions=most_active, steps=3, span=1.5)
    for row in range(2):
        for step in range(3):
            assert_shows(rows, 2 + LINE + row * PITCH, left + step * PITCH, images[row, step])


def test_traverse_starts_from_a_sample_of_the_seed(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    result = vaekit("traverse", "--seed", "5", "-m", tiny_bundle)
    assert result.returncode == 0
    assert "4 of 4 dimensions" in result.stderr
    rows = picture(tmp_path / "traverse.png")
    left = rows.shape[1] - 9 * PITCH
    for row, images in enumerate(package.load(tiny_bundle).traverse(seed=5)):
        for step, image in enumerate(images):
            assert_shows(rows, 2 + LINE + row * PITCH, left + step * PITCH, image)


# Errors

SEEDS = ("--from-seed", "1", "--to-seed", "2")

REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "reconstruct nothing": (("reconstruct",), 2, ("--from-file",)),
    "reconstruct none": (("reconstruct", "a.png", "--limit", "0"), 2, ("--limit",)),
    "reconstruct into an animation": (("reconstruct", "a.png", "-o", "z.gif"), 2, ("z.gif", ".png")),
    "reconstruct into no folder": (("reconstruct", "a.png", "-o", "none/z.png"), 1, ("cannot write none/z.png",)),
    "reconstruct a bomb": (("reconstruct", "bomb.png"), 1, ("bomb.png", "100,000,000")),
    "reconstruct another size": (("reconstruct", "tall.png", "--no-resize"), 1, ("tall.png", "9x8", "--no-resize")),
    "interpolate nothing": (("interpolate",), 2, ("two pictures", "--from-seed")),
    "interpolate one picture": (("interpolate", "a.png"), 2, ("two pictures",)),
    "interpolate three pictures": (("interpolate", "a.png", "a.png", "a.png"), 2, ("two pictures",)),
    "interpolate one seed": (("interpolate", "--to-seed", "1"), 2, ("--from-seed", "--to-seed")),
    "interpolate pictures and seeds": (("interpolate", "a.png", "a.png", *SEEDS), 2, ("two pictures",)),
    "interpolate seeds of one size": (("interpolate", *SEEDS, "--no-resize"), 2, ("seeds have no size",)),
    "interpolate a picture and a seed": (("interpolate", "a.png", "--to-seed", "1"), 2, ("two pictures",)),
    "interpolate pictures by a prior": (("interpolate", "a.png", "a.png", "--prior", "normal"), 2, ("--prior",)),
    "interpolate by another prior": (("interpolate", *SEEDS, "--prior", "flat"), 2, ("flat", "mixture", "normal")),
    "interpolate in one step": (("interpolate", *SEEDS, "--steps", "1"), 2, ("--steps",)),
    "interpolate in another way": (("interpolate", *SEEDS, "--mode", "cubic"), 2, ("cubic", "linear", "slerp")),
    "interpolate a seed below zero": (("interpolate", "--from-seed", "-1", "--to-seed", "2"), 2, ("--from-seed",)),
    "interpolate into a bitmap": (("interpolate", *SEEDS, "-o", "z.bmp"), 2, ("z.bmp", ".png", ".gif")),
    "interpolate for ever": (("interpolate", *SEEDS, "--steps", "99999999"), 2, ("million pixels", "--steps")),
    "interpolate a picture that is not there": (("interpolate", "a.png", "gone.png"), 1, ("gone.png: No such file",)),
    "interpolate what is no picture": (("interpolate", "broken.png", "a.png"), 1, ("broken.png: not a picture",)),
    "interpolate a bomb": (("interpolate", "a.png", "bomb.png"), 1, ("bomb.png", "100,000,000")),
    "interpolate a large picture": (("interpolate", "a.png", "large.png"), 1, ("large.png", "100,000,000")),
    "interpolate another size": (("interpolate", "a.png", "tall.png", "--no-resize"), 1, ("tall.png", "9x8")),
    "traverse too many dimensions": (("traverse", "-n", "5"), 2, ("--dimensions 5", "4")),
    "traverse none": (("traverse", "-n", "0"), 2, ("--dimensions",)),
    "traverse in one step": (("traverse", "--steps", "1"), 2, ("--steps",)),
    "traverse no span": (("traverse", "--span", "0"), 2, ("span", "positive")),
    "traverse a span of no number": (("traverse", "--span", "nan"), 2, ("span", "positive")),
    "traverse a span beyond float32": (("traverse", "--span", "1e39"), 2, ("span",)),
    "traverse for ever": (("traverse", "--steps", "99999999"), 2, ("million pixels", "--steps")),
    "traverse what is no picture": (("traverse", "broken.png"), 1, ("broken.png: not a picture",)),
    "traverse a picture that is not there": (("traverse", "gone.png"), 1, ("gone.png: No such file",)),
    "traverse a bomb": (("traverse", "bomb.png"), 1, ("bomb.png", "100,000,000")),
    "traverse into an animation": (("traverse", "-o", "z.gif"), 2, ("z.gif", ".png")),
    "sample for ever": (("sample", "-n", "99999999"), 2, ("million pixels", "folder")),
    "sample into a file's place": (("sample", "-o", "file"), 1, ("cannot write file",)),
    "sample into a folder that is not empty": (("sample", "-o", "."), 1, ("not empty",)),
}


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_shown_ends_in_one_line_and_writes_nothing(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    before = listed(tmp_path)
    arguments, code, words = REFUSED[what]
    result = vaekit(*arguments, env={"VAEKIT_MODEL": str(tiny_bundle)})
    assert_fails(result, code, *words)
    assert result.stdout == ""
    assert len([line for line in result.stderr.splitlines() if not line.startswith("skipped: ")]) == 1
    assert listed(tmp_path) == before


# sample


def test_a_sample_is_the_same_whatever_its_number_and_batch(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    drawn = {}
    for n, batch in ((8, 1), (8, 64), (64, 1), (64, 64)):
        name = f"{n}-{batch}"
        result = vaekit(
            *("sample", "--seed", "7", "-n", str(n), "--batch-size", str(batch), "-m", tiny_bundle, "-o", name)
        )
        assert result.returncode == 0
        assert f"next: vaekit encode {name} " in result.stderr
        assert sorted(listed(tmp_path / name)) == [f"{number:06}.png" for number in range(n)]
        files = np.stack([picture(tmp_path / name / f"{number:06}.png") for number in range(8)])
        vae = package.load(tiny_bundle, batch_size=batch)
        images = vae.sample(n, seed=7)[:8]
        assert np.abs(files.astype(int) - to_uint8(images)[:, 0]).max() <= 1
        drawn[name] = (files.astype(int), vae.sample_latents(n, seed=7)[:8], images)
    files, latents, images = drawn["8-1"]
    assert np.abs(files[0] - files[1]).max() > 1  # they are not all one image
    for others in drawn.values():
        assert np.abs(others[0] - files).max() <= 1
        assert others[1].tobytes() == latents.tobytes()
        np.testing.assert_allclose(others[2], images, rtol=0, atol=1e-6)
    assert listed(tmp_path) == set(drawn)
