"""SOURCE: the one grammar for naming images, wherever they are read.

A source is ``shapes`` (drawn), ``fashion-mnist`` or ``mnist`` (found on this machine), a folder of pictures (labels
from its subfolders), a picture or a glob of pictures, a .npy or .npz array, an IDX file or a folder of them, or
``hf:NAME[:SPLIT]``, a data set that Hugging Face's library loads.
"""

from __future__ import annotations

import glob
import hashlib
import os
from array import array as packed_array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import SourceError, UsageError
from vaekit.images.idx import is_idx, read_idx
from vaekit.images.paths import PathList, pictures_under
from vaekit.images.picture import SUFFIXES, fit, probe_image, read_image
from vaekit.images.shapes import SHAPE_NAMES, draw_factors, render
from vaekit.system.machine import available_memory
from vaekit.system.npz import NPZ_ERRORS

MIN_SIDE = 8
"""The least height and width of an image."""

Progress = Callable[[int, int], None]
"""Called with the number of images read and their total."""

SHAPES_COUNT = 40_000
"""Images of the source ``shapes``."""

HUB = "hf:"
"""What names of Hugging Face data sets begin with."""

_SHAPES_SIZE = (32, 32)
_MIXED_SIZE = (64, 64)  # for pictures of several sizes, or large ones, where no size is asked for
_LARGEST_NATIVE_SIDE = 128
_PROBED = 500  # pictures whose headers decide size and colour
_CHUNK = 1024
_PRINTED = 1024  # images that a fingerprint takes from those that are read only when they are asked for

BUILT_IN_FILES = {
    "fashion-mnist": "install Debian's package dataset-fashion-mnist, or put its IDX files in "
    "$VAEKIT_DATA/fashion-mnist",
    "mnist": "put its IDX files in $VAEKIT_DATA/mnist",
}
CLASS_NAMES = {
    "fashion-mnist": (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
    ),
}  # fmt: skip
"""Of built-in data sets, by class number; where there are none, the numbers are the names."""

_DEBIAN_DATASETS = Path("/usr/share/datasets")


@dataclass
class Images:
    """N images of one size, in memory or read when they are asked for."""

    name: str
    """The source as it was named."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    labels: NDArray[np.int64] | None
    """(N,) class numbers, or None."""
    label_names: tuple[str, ...]
    """The classes' names, where they have any."""
    skipped: tuple[str, ...]
    """Files left out, each with its reason."""
    resized_from: str
    """In words, the sizes that were resized to this one; empty where none was."""
    in_memory: bool
    _count: int
    _read: Callable[[NDArray[np.int64]], NDArray[np.uint8]] = field(repr=False)
    _name_of: Callable[[int], str] | None = field(default=None, repr=False)
    _digest: str = ""
    """Of all pixels, where they have been read anyway."""

    def __len__(self) -> int:
        return self._count

    def name_of(self, index: int) -> str:
        """What to call an image to people: its file, or its number in the source."""
        return f"{self.name}[{index}]" if self._name_of is None else self._name_of(index)

    def fingerprint(self) -> str:
        """A hash by which a changed source is known: of number, shape and pixels.

        Of images that are not in memory, and were not all read when they were opened, it takes _PRINTED, evenly spread.
        """
        form = f"{len(self)} {self.shape} "
        if self._digest:
            return form + self._digest
        count = len(self) if self.in_memory else min(len(self), _PRINTED)
        digest = _new_digest()
        for first in range(0, count, _CHUNK):
            chosen = np.arange(first, min(first + _CHUNK, count), dtype=np.int64) * len(self) // count
            digest.update(np.ascontiguousarray(self.read(chosen)).data)
        return form + digest.hexdigest()

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images of those numbers, uint8 (n, C, H, W)."""
        return self._read(np.asarray(indices, np.int64))


def open_source(source: str, *, size: tuple[int, int] | None = None, progress: Progress | None = None) -> Images:
    """Open a source. ``size`` (height, width) resizes every image to it; None keeps their own where they share one.

    Images are held in memory as uint8 where they take less than half of what is available, else read when asked for.
    Raises SourceError where there is no such source or it holds no images, UsageError for a size under 8.
    """
    if size is not None and min(size) < MIN_SIDE:
        raise UsageError(f"the size {size[0]}x{size[1]} is too small: images need at least {MIN_SIDE}x{MIN_SIDE}")
    if source == "shapes":
        return _open_shapes(size)
    if source in BUILT_IN_FILES:
        return _open_idx_folder(source, find_dataset(source), size)
    if source.startswith(HUB):
        return _open_hub(source, size, progress)
    path = Path(source)
    if path.is_dir():
        return _open_folder(source, path, size, progress)
    return _open_files(source, path, size, progress)


def no_source(source: str) -> SourceError:
    """The error that a source is none."""
    kinds = "a folder of images, a picture or glob, .npy, .npz, an IDX file, hf:NAME, shapes, fashion-mnist or mnist"
    if os.path.exists(source):
        return SourceError(f"{source} is not a source of images: vaekit reads {kinds}")
    return SourceError(f"there is no source {source}: give {kinds}")


def _open_hub(source: str, size: tuple[int, int] | None, progress: Progress | None) -> Images:
    from vaekit.images.hub import open_hub

    pictures = open_hub(source.removeprefix(HUB))
    return _from_pictures(source, pictures, pictures.labels, pictures.label_names, size, progress)


def _open_shapes(size: tuple[int, int] | None) -> Images:
    size = size or _SHAPES_SIZE
    factors = draw_factors(SHAPES_COUNT)
    labels = factors[:, 0].astype(np.int64)
    if _fits(len(factors), (3, *size)):
        return _held("shapes", render(factors, size), labels, SHAPE_NAMES)

    def read(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return render(factors[indices], size)

    return Images("shapes", (3, *size), labels, SHAPE_NAMES, (), "", False, len(factors), read)


def find_dataset(name: str) -> Path:
    """The folder of a built-in data set's IDX files. Raises SourceError with the ways to get it."""
    roots = [Path(os.environ["VAEKIT_DATA"])] if os.environ.get("VAEKIT_DATA") else []
    for root in (*roots, _DEBIAN_DATASETS):
        if (root / name).is_dir():
            return root / name
    raise SourceError(f"{name} is not on this machine: {BUILT_IN_FILES[name]}")


def find_test_part(source: str) -> str | None:
    """The official test part of ``fashion-mnist`` or ``mnist``, as a source of its own; None for other sources.

    Raises SourceError where it is not on this machine.
    """
    if source not in BUILT_IN_FILES:
        return None
    folder = find_dataset(source)
    parts = sorted(file for file in folder.iterdir() if file.name.startswith("t10k") and "idx3-ubyte" in file.name)
    if not parts:
        raise SourceError(f"{folder} holds no test part of {source} (t10k-images-idx3-ubyte or .gz)")
    return str(parts[0])


def _open_folder(source: str, folder: Path, size: tuple[int, int] | None, progress: Progress | None) -> Images:
    root = os.fsencode(folder)
    classes: dict[bytes, int] = {}  # in order of appearance
    found = packed_array("q")

    def paths() -> Iterator[bytes]:
        for path in pictures_under(root):
            found.append(classes.setdefault(path.rpartition(b"/")[0], len(classes)))
            yield path

    files = _Files(PathList(paths()))
    if not len(files):
        if any("idx3-ubyte" in file.name for file in folder.iterdir()):
            return _open_idx_folder(source, folder, size)
        raise SourceError(f"{folder} holds no images: vaekit reads {', '.join(sorted(SUFFIXES))}")
    if len(classes) < 2:
        return _from_pictures(source, files, None, (), size, progress)
    names = [str(Path(os.fsdecode(path)).relative_to(folder)) for path in classes]
    order = np.argsort(np.argsort(names)).astype(np.int64)  # of each class, its place among the sorted names
    return _from_pictures(source, files, order[np.frombuffer(found, np.int64)], tuple(sorted(names)), size, progress)


def _open_files(source: str, path: Path, size: tuple[int, int] | None, progress: Progress | None) -> Images:
    """An array, an IDX file, a picture, or a glob of pictures."""
    if path.suffix in (".npy", ".npz") and path.exists():
        return _open_array_file(source, path, size)
    if path.is_file() and is_idx(path):
        return _from_array(source, read_idx(path), _idx_labels(path), size)
    files = [path] if path.is_file() else sorted(Path(match) for match in glob.glob(source, recursive=True))
    files = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise no_source(source)
    return _from_pictures(source, _Files(PathList(map(os.fsencode, files))), None, (), size, progress)


def _open_idx_folder(source: str, folder: Path, size: tuple[int, int] | None) -> Images:
    chosen = idx_images(folder)
    return _from_array(source, read_idx(chosen), _idx_labels(chosen), size)


def idx_images(folder: Path) -> Path:
    """The training part of a folder of IDX files, or its only part. Raises SourceError where there is none."""
    parts = sorted(file for file in folder.iterdir() if "idx3-ubyte" in file.name)
    if not parts:
        raise SourceError(f"{folder} holds no IDX file of images (…idx3-ubyte or …idx3-ubyte.gz)")
    return next((file for file in parts if file.name.startswith("train")), parts[0])


def _idx_labels(images: Path) -> NDArray[np.uint8] | None:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    labels = images.with_name(name)
    return read_idx(labels) if name != images.name and labels.is_file() else None


def array_labels(path: Path) -> NDArray[Any] | None:
    """Classes (N,) that go with a file of images: ``labels`` in a .npz, or the label file beside an IDX file.

    They are numbers or words; None where there are none, or only pickled ones.
    """
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return np.asarray(arrays["labels"]) if "labels" in arrays else None
        except ValueError:
            return None
    return None if path.suffix == ".npy" else _idx_labels(path)


def _open_array_file(source: str, path: Path, size: tuple[int, int] | None) -> Images:
    try:
        if path.suffix == ".npy":
            return _from_array(source, np.lib.format.open_memmap(path, mode="r"), None, size)
        # Opened here: of a damaged archive, np.load would leave its own file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as loaded:
            return _from_array(source, _images_of(path, loaded), loaded.get("labels"), size)
    except NPZ_ERRORS as error:
        raise SourceError(f"{path} cannot be read as an array: {' '.join(str(error).split())}") from error


def _images_of(path: Path, arrays: Any) -> NDArray[Any]:
    if "images" in arrays:
        return np.asarray(arrays["images"])
    if len(arrays.files) == 1:
        return np.asarray(arrays[arrays.files[0]])
    raise SourceError(f"{path} holds {', '.join(arrays.files) or 'nothing'}: name the array of images `images`")


def _from_array(source: str, array: NDArray[Any], labels: NDArray[Any] | None, size: tuple[int, int] | None) -> Images:
    """Images of an array (N, H, W), (N, H, W, C) or (N, C, H, W): uint8, bool, or floats in [0, 1]."""
    array = channels_first(source, array)
    count, channels, *own = array.shape
    size = size or (own[0], own[1])
    if min(*own, *size) < MIN_SIDE:
        raise SourceError(f"{source} has images of {own[0]}x{own[1]}: they need at least {MIN_SIDE}x{MIN_SIDE}")
    if count == 0:
        raise SourceError(f"{source} holds no images")
    if labels is not None and labels.shape != (count,):
        raise SourceError(f"{source} has {count} images but labels of shape {labels.shape}")
    classes = None if labels is None else labels.astype(np.int64)
    resized_from = "" if (own[0], own[1]) == size else f"{own[0]} x {own[1]}"

    def read(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return resize(to_uint8(source, array[indices]), size)

    shape = (channels, *size)
    if not _fits(count, shape):
        return Images(source, shape, classes, (), (), resized_from, False, count, read)
    pixels = np.empty((count, *shape), np.uint8)
    for first in range(0, count, _CHUNK):
        pixels[first : first + _CHUNK] = read(np.arange(first, min(first + _CHUNK, count)))
    return _held(source, pixels, classes, (), (), resized_from)


def channels_first(source: str, array: NDArray[Any]) -> NDArray[Any]:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W). Raises SourceError for other shapes."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.moveaxis(array, 3, 1)
    raise SourceError(
        f"{source} has the shape {array.shape}: images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
    )


def to_uint8(source: str, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels of uint8, bool, or floats in [0, 1] as uint8. Raises SourceError for others."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind != "f":
        raise SourceError(f"{source} has pixels of type {pixels.dtype}: give uint8, bool, or floats in [0, 1]")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise SourceError(
            f"{source} has pixels from {pixels.min():g} to {pixels.max():g}: floats must lie in [0, 1] and be finite"
        )
    rounded: NDArray[np.uint8] = np.rint(pixels * 255).astype(np.uint8)
    return rounded


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (n, C, H, W) by the one rule of ``vaekit.images.picture``."""
    if pixels.shape[2:] == size:
        return pixels
    if not len(pixels):
        return np.empty((0, pixels.shape[1], *size), np.uint8)
    pictures = (Image.fromarray(p[0] if len(p) == 1 else np.ascontiguousarray(p.transpose(1, 2, 0))) for p in pixels)
    return np.stack([fit(picture, size) for picture in pictures])


class Pictures(Protocol):
    """Encoded pictures that can be read by number."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> str | IO[bytes]:
        """The path of the file, or the file."""
        ...

    def name(self, index: int) -> str:
        """What to call it to people."""
        ...


class _Files:
    """Pictures that are files of their own."""

    def __init__(self, paths: PathList) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, index: int) -> str | IO[bytes]:
        return self.name(index)

    def name(self, index: int) -> str:
        return os.fsdecode(self._paths[index])


def _from_pictures(
    source: str,
    pictures: Pictures,
    labels: NDArray[np.int64] | None,
    label_names: tuple[str, ...],
    size: tuple[int, int] | None,
    progress: Progress | None,
) -> Images:
    """Images of encoded pictures. All are decoded once, so that unreadable ones are known and left out."""
    channels, sizes = _common_form(pictures)
    size = size or _native_size(sizes)
    resized_from = "" if sizes == {size} else " x ".join(map(str, *sizes)) if len(sizes) == 1 else "several sizes"
    shape = (channels, *size)

    def read_one(number: int) -> NDArray[np.uint8]:
        return read_image(pictures.open(number), channels, size, name=pictures.name(number))

    in_memory = _fits(len(pictures), shape)
    held = np.empty((len(pictures) if in_memory else 0, *shape), np.uint8)
    good = packed_array("q")
    skipped: list[str] = []
    digest = _new_digest()
    for number in range(len(pictures)):
        try:
            image = read_one(number)
            digest.update(np.ascontiguousarray(image).data)
            if in_memory:
                held[len(good)] = image
            good.append(number)
        except SourceError as error:
            skipped.append(str(error))
        if progress:
            progress(number + 1, len(pictures))
    if not good:
        raise SourceError(f"{source} holds no readable image; the first failed so: {skipped[0]}")
    numbers = np.frombuffer(good, np.int64)

    def read(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.array([read_one(int(number)) for number in numbers[indices]], np.uint8).reshape(-1, *shape)

    return Images(
        name=source,
        shape=shape,
        labels=None if labels is None else labels[numbers],
        label_names=label_names,
        skipped=tuple(skipped),
        resized_from=resized_from,
        in_memory=in_memory,
        _count=len(good),
        _read=held[: len(good)].__getitem__ if in_memory else read,
        _name_of=lambda index: pictures.name(int(numbers[index])),
        _digest=digest.hexdigest(),
    )


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _common_form(pictures: Pictures) -> tuple[int, set[tuple[int, int]]]:
    """Channels for a set of pictures, one if all are grey, and the sizes found, from the headers of some of them."""
    sizes, grey = set(), True
    for number in range(0, len(pictures), -(-len(pictures) // _PROBED)):
        try:
            size, is_grey = probe_image(pictures.open(number))
        except SourceError:
            continue
        sizes.add(size)
        grey = grey and is_grey
    return (1 if grey and sizes else 3), sizes


def _native_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """The size that all share, where it is small enough to train on as it is."""
    if len(sizes) == 1:
        (size,) = sizes
        if min(size) >= MIN_SIDE and max(size) <= _LARGEST_NATIVE_SIDE:
            return size
    return _MIXED_SIZE


def _fits(count: int, shape: tuple[int, int, int]) -> bool:
    channels, height, width = shape
    return count * channels * height * width < available_memory() / 2


def _held(
    name: str,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    label_names: tuple[str, ...],
    skipped: tuple[str, ...] = (),
    resized_from: str = "",
) -> Images:
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return Images(name, shape, labels, label_names, skipped, resized_from, True, len(pixels), pixels.__getitem__)
