from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import SourceError
from vaekit.images import picture as images
from vaekit.images.picture import check_form, preprocessing_rule, probe_image, read_image

Pixels = NDArray[np.uint8]

EXIF_ORIENTATION = 0x0112


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def gradient(height: int, width: int) -> Pixels:
    """Return a smooth grey picture that every flip and rotation changes."""
    return (np.add.outer(np.arange(height) * 3, np.arange(width) * 7) % 256).astype(np.uint8)


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes, *, depth: int, colour: int, transparent: bytes = b"") -> bytes:
    """Return a PNG written by hand, for variants that Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    extra = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# The transformation of the stored rows that makes the picture upright, for each EXIF orientation.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_stand_upright(tmp_path: Path, orientation: int) -> None:
    stored = gradient(9, 14)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    expected = UPRIGHT[orientation](stored)
    assert np.array_equal(read_image(tmp_path / "a.png", 1, expected.shape)[0], expected)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_a_picture_of_the_size_asked_for_is_kept_to_the_bit(tmp_path: Path, suffix: str) -> None:
    pixels = noise(11, 13, 3)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}", 3, (11, 13))
    assert read.shape == (3, 11, 13)
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_are_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / f"a.{suffix}", quality=95)
    read = read_image(tmp_path / f"a.{suffix}", 3, (16, 16)).astype(int)
    assert np.abs(read - np.array([200, 100, 50])[:, None, None]).max() <= 3


def test_the_suffix_does_not_matter_to_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(gradient(8, 8)), "PNG"))
    assert np.array_equal(read_image(tmp_path / "a.jpg", 1, (8, 8))[0], gradient(8, 8))


def half_transparent(mode: str) -> tuple[Image.Image, tuple[float, float, float]]:
    """A picture of one colour at alpha 51 of 255, and that colour over white."""
    if mode == "RGBA":
        return Image.new("RGBA", (8, 8), (255, 0, 100, 51)), (255, 204, 224)
    if mode == "LA":
        return Image.new("LA", (8, 8), (100, 51)), (224, 224, 224)
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 255, 0, 100])
    picture.info["transparency"] = bytes([255, 51])
    return picture, (255, 204, 224)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(tmp_path: Path, mode: str) -> None:
    picture, expected = half_transparent(mode)
    picture.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 3, (8, 8))
    assert read[:, 4, 4].tolist() == pytest.approx(list(expected), abs=1)
    grey = np.dot([0.299, 0.587, 0.114], expected)
    assert read_image(tmp_path / "a.png", 1, (8, 8))[0, 4, 4] == pytest.approx(grey, abs=1)


@pytest.mark.parametrize("colour", [0, 2], ids=["grey", "RGB"])
def test_a_colour_named_transparent_becomes_white(tmp_path: Path, colour: int) -> None:
    pixel = [b"\x0a", b"\x14"] if colour == 0 else [b"\x0a\x0b\x0c", b"\x14\x15\x16"]
    named = b"\x00\x0a" if colour == 0 else b"\x00\x0a\x00\x0b\x00\x0c"
    rows = (b"\0" + 4 * pixel[0] + 4 * pixel[1]) * 8
    (tmp_path / "a.png").write_bytes(png(8, 8, rows, depth=8, colour=colour, transparent=named))
    read = read_image(tmp_path / "a.png", 3, (8, 8))
    assert (read[:, :, :4] == 255).all()
    assert (read[0, :, 4:] == 0x14).all()


def test_a_16_bit_colour_named_transparent_becomes_white(tmp_path: Path) -> None:
    rows = (b"\0" + struct.pack(">8H", *[1000] * 4, *[30_000] * 4)) * 8
    (tmp_path / "a.png").write_bytes(png(8, 8, rows, depth=16, colour=0, transparent=struct.pack(">H", 1000)))
    read = read_image(tmp_path / "a.png", 1, (8, 8))
    assert (read[0, :, 4:] == 117).all()
    assert (read[0, :, :4] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    if suffix == "pgm":
        (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}", 1, (8, 8))[0]
    assert np.array_equal(read, np.rint(values / 257).astype(np.uint8))
    assert (read[0, 0], read[-1, -1]) == (0, 255)


def test_a_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    read = read_image(tmp_path / "a.jpg", 3, (16, 16)).astype(int)
    assert np.abs(read - np.array([255, 0, 0])[:, None, None]).max() <= 4


def test_a_picture_of_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = gradient(8, 8) > 40
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 1, (8, 8))[0], bits * np.uint8(255))


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(gradient(8, 8)).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 3, (8, 8)), np.stack([gradient(8, 8)] * 3))


def test_colours_become_their_luma(tmp_path: Path) -> None:
    pixels = noise(10, 10, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(tmp_path / "a.png", 1, (10, 10))[0] - luma).max() <= 1


def test_pixels_of_no_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(SourceError, match="floating-point"):
        read_image(tmp_path / "a.tiff", 1, (8, 8))


def bands(*, upright: bool) -> Image.Image:
    """Red, green and blue bands of 10, 8 and 12 pixels along a side of 30 pixels; the other side has 8."""
    strip = np.zeros((8, 30, 3), np.uint8)
    strip[:, :10, 0] = strip[:, 10:18, 1] = strip[:, 18:, 2] = 255
    return Image.fromarray(strip.transpose(1, 0, 2) if upright else strip)


@pytest.mark.parametrize("upright", [False, True])
def test_what_is_too_long_is_cropped_to_its_centre(tmp_path: Path, upright: bool) -> None:
    bands(upright=upright).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 3, (8, 8))  # pixels 11 to 18 of 0 to 29
    along = read[:, :, 0] if upright else read[:, 0]
    assert along[0].tolist() == [0] * 8
    assert along[1].tolist() == [255] * 7 + [0]
    assert along[2].tolist() == [0] * 7 + [255]
    across = read[:, 3] if upright else read[:, :, 3]
    assert (across[1] == 255).all()


def test_a_resized_picture_covers_and_is_not_stretched(tmp_path: Path) -> None:
    y, x = np.mgrid[:60, :100]
    disc = np.where((x - 49.5) ** 2 + (y - 29.5) ** 2 < 20**2, 255, 0).astype(np.uint8)
    Image.fromarray(disc).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 1, (30, 20))[0] > 127  # halved, 15 columns cropped off each side
    assert abs(int(read[15].sum()) - 20) <= 1
    assert abs(int(read[:, 10].sum()) - 20) <= 1
    assert read.sum() == pytest.approx(np.pi * 10**2, rel=0.05)


def test_the_filter_is_bicubic(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(40, 20, 3))
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.resize((10, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", 3, (20, 10)), expected)


def test_a_small_picture_is_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (10, 20, 30)).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 3, (16, 9))
    assert (read == np.array([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_a_moving_picture_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    read = read_image(tmp_path / f"a.{suffix}", 3, (8, 8)).astype(int)
    assert np.abs(read - np.array([255, 0, 0])[:, None, None]).max() <= 4


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "text": b"a recipe for soup",
    "a page": b"<html><body>404</body></html>",
    "cut short within the header": encoded(Image.fromarray(noise(64, 64)), "PNG")[:20],
    "cut short within the pixels": encoded(Image.fromarray(noise(64, 64)), "PNG")[:2000],
    "a JPEG cut short": encoded(Image.fromarray(noise(64, 64)), "JPEG")[:1500],
    "an icon": encoded(Image.new("RGB", (32, 32)), "ICO"),
    "a Targa picture": encoded(Image.new("RGB", (32, 32)), "TGA"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(BROKEN[what])
    with pytest.raises(SourceError) as caught:
        read_image(path, 3, (8, 8))
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) > len(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", images.FORMATS)
def test_altered_pictures_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(Image.fromarray(noise(24, 20, 3)), kind)
    chance = np.random.default_rng(1)
    path = tmp_path / "a.png"
    for _ in range(40):
        data = bytearray(whole[: chance.integers(1, len(whole))] if chance.random() < 0.3 else whole)
        for at in chance.integers(0, min(len(data), chance.choice([40, len(data)])), 3).tolist():
            data[at] = int(chance.integers(256))
        path.write_bytes(data)
        with contextlib.suppress(SourceError):
            assert read_image(path, 3, (8, 8)).shape == (3, 8, 8)


def test_files_that_are_not_there_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.png", "No such file"), (tmp_path, "directory")):
        for read in (lambda path=path: read_image(path, 1, (8, 8)), lambda path=path: probe_image(path)):
            with pytest.raises(SourceError, match=reason) as caught:
                read()
            assert str(caught.value).startswith(f"{path}: ")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(Image.fromarray(noise(40, 50)), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(whole[:300])  # decoding it would fail for another reason
    monkeypatch.setattr(images, "MAX_PIXELS", 1_999)
    for read in (lambda: read_image(path, 1, (8, 8)), lambda: probe_image(path)):
        with pytest.raises(SourceError, match=r"50 x 40 pixels are more than 1,999"):
            read()
    monkeypatch.setattr(images, "MAX_PIXELS", 2_000)
    path.write_bytes(whole)
    assert read_image(path, 1, (8, 8)).shape == (1, 8, 8)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000, b"", depth=1, colour=0))
    with pytest.raises(SourceError, match="pixels"):
        read_image(tmp_path / "a.png", 1, (8, 8))


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("I;16", True), ("RGB", False), ("RGBA", False)]
)
def test_a_header_tells_size_and_greyness(tmp_path: Path, mode: str, grey: bool) -> None:
    Image.new(mode, (14, 9)).save(tmp_path / "a.png")
    assert probe_image(tmp_path / "a.png") == ((9, 14), grey)


def test_the_rule_in_words_names_what_it_makes() -> None:
    assert "grey" in preprocessing_rule(1, 28, 30)
    assert "28x30" in preprocessing_rule(1, 28, 30)
    assert "RGB" in preprocessing_rule(3, 8, 8)


def test_the_tiny_bundles_rule_is_this_one(tiny_bundle: Path) -> None:
    assert preprocessing_rule(1, 8, 8) in (tiny_bundle / "manifest.json").read_text()


@pytest.mark.parametrize(("height", "width"), [(9, 14), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_form_that_fits_passes(height: int, width: int, channels: int) -> None:
    check_form((height, width), channels, channels, (height, width))


@pytest.mark.parametrize("own", [(14, 9), (9, 15), (8, 14)])
def test_another_size_is_refused_by_both_sizes(own: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"it is {own[0]}x{own[1]}, not 9x14, and --no-resize refuses that"):
        check_form(own, 1, 1, (9, 14))


def test_another_colour_is_refused_by_both_colours() -> None:
    with pytest.raises(ValueError, match="it is grey, the model's images are in colour, and --no-resize refuses"):
        check_form((9, 14), 1, 3, (9, 14))
    with pytest.raises(ValueError, match="it is in colour, the model's images are grey, and --no-resize refuses"):
        check_form((9, 14), 3, 1, (9, 14))


def test_without_resizing_a_picture_that_fits_is_kept_to_the_bit(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 14, 3)).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 3, (9, 14), resize=False)
    assert np.array_equal(read, noise(9, 14, 3).transpose(2, 0, 1))


def test_without_resizing_a_picture_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(9, 14, 3)).save(path)
    with pytest.raises(SourceError, match=r"a\.png: it is 9x14, not 14x9"):
        read_image(path, 3, (14, 9), resize=False)
    with pytest.raises(SourceError, match=r"a\.png: it is in colour"):
        read_image(path, 1, (9, 14), resize=False)


def test_without_resizing_a_picture_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(gradient(9, 14)).save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png", 1, (14, 9), resize=False)
    assert np.array_equal(read[0], UPRIGHT[6](gradient(9, 14)))
    with pytest.raises(SourceError, match="it is 14x9, not 9x14"):
        read_image(tmp_path / "a.png", 1, (9, 14), resize=False)


# TIFF


def tiff(values: NDArray[Any], sample_format: int = 1, **tags: Any) -> bytes:
    """A TIFF by hand of one grey strip, little-endian, for forms that Pillow does not write."""
    height, width = values.shape
    known = {"bits": 8 * values.itemsize, "photometric": 1} | tags
    data: bytes = known.pop("data", values.astype(values.dtype.newbyteorder("<")).tobytes())
    entries = [
        (256, width), (257, height), (258, known["bits"]), (259, 1), (262, known["photometric"]), (273, 8),
        (277, 1), (278, height), (279, len(data)), (339, sample_format),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


RAMP = np.linspace(0, 65535, 9 * 14).astype(np.uint16).reshape(9, 14)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_stands_upright_and_its_header_agrees(
    tmp_path: Path, orientation: int, compression: str | None, kind: type[Any]
) -> None:
    stored = gradient(9, 14)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    values = stored if kind is np.uint8 else stored.astype(kind) * np.uint16(257)
    Image.fromarray(values).save(tmp_path / "a.tif", exif=exif, compression=compression)
    expected = UPRIGHT[orientation](stored)
    assert probe_image(tmp_path / "a.tif") == (expected.shape, True)
    assert np.array_equal(read_image(tmp_path / "a.tif", 1, expected.shape, resize=False)[0], expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_headers_of_every_format_agree_with_the_pixels(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(noise(9, 14, 3)).save(tmp_path / f"a.{suffix}", exif=exif)
    size, is_grey = probe_image(tmp_path / f"a.{suffix}")
    assert not is_grey
    assert size == UPRIGHT[orientation](gradient(9, 14)).shape
    read_image(tmp_path / f"a.{suffix}", 3, size, resize=False)


def test_16_bits_of_which_white_is_zero_are_turned_round(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(65535 - RAMP, photometric=0))
    (tmp_path / "b.tif").write_bytes(tiff(RAMP))
    expected = np.rint(RAMP / 257)
    for name in ("a.tif", "b.tif"):
        assert probe_image(tmp_path / name) == ((9, 14), True)
        assert np.array_equal(read_image(tmp_path / name, 1, (9, 14))[0], expected)


def test_8_bits_of_which_white_is_zero_are_turned_round(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(255 - gradient(9, 14), photometric=0))
    assert np.array_equal(read_image(tmp_path / "a.tif", 1, (9, 14))[0], gradient(9, 14))


def test_12_bits_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    """Two pixels lie in three bytes."""
    values = (RAMP >> 4).astype(np.uint32)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    (tmp_path / "a.tif").write_bytes(tiff(RAMP, bits=12, data=packed.astype(np.uint8).tobytes()))
    assert np.array_equal(read_image(tmp_path / "a.tif", 1, (9, 14))[0], np.rint(values * 255 / 4095))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(
    ("kind", "sample_format"), [(np.int16, 2), (np.int32, 2), (np.uint32, 1), (np.float32, 3)], ids=str
)
def test_tiffs_of_no_known_range_are_refused(
    tmp_path: Path, kind: type[Any], sample_format: int, photometric: int
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff((RAMP >> 8).astype(kind), sample_format, photometric=photometric))
    for read in (probe_image, lambda path: read_image(path, 1, (9, 14))):
        with pytest.raises(SourceError) as caught:
            read(tmp_path / "a.tif")
        assert "no known range" in str(caught.value) or photometric == 0  # which Pillow does not open
        assert str(tmp_path / "a.tif") in str(caught.value)


# Warnings


@pytest.fixture
def corrupt_exif(tmp_path: Path) -> Path:
    """A picture that Pillow reads and warns about."""
    path = tmp_path / "warns.jpg"
    cut_short = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    Image.fromarray(gradient(8, 8)).save(path, exif=cut_short)
    return path


def test_filters_of_warnings_are_the_hosts(corrupt_exif: Path) -> None:
    """Threads share them: whatever one puts back at its end undoes what another has set."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: (read_image(corrupt_exif, 1, (8, 8)), probe_image(corrupt_exif)), range(40)))
        assert list(warnings.filters) == before
    assert {str(warning.message)[:7] for warning in heard} == {"Corrupt"}


def test_the_command_does_not_pass_pillows_warnings_on(
    vaekit: Callable[..., Any], tiny_bundle: Path, corrupt_exif: Path
) -> None:
    env = {"PYTHONWARNINGS": "always"}
    done = vaekit("encode", corrupt_exif, "-m", tiny_bundle, "-o", "a.npz", "--quiet", env=env)
    assert (done.returncode, done.stderr) == (0, "")
