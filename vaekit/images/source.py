"""The kinds of sources: how a name is turned into images, for training and for the edge.

| name | images | labels |
|---|---|---|
| ``shapes`` | drawn | the shapes' names |
| ``fashion-mnist``, ``mnist`` | the training part of the IDX files on this machine | the label file beside it |
| ``hf:NAME[:SPLIT]`` | a data set that Hugging Face's library loads; SPLIT is ``train`` by default | its classes |
| a folder | pictures at any depth, by suffix; without one, ``.tar``, ``.parquet`` or IDX files in it | subfolders |
| a file ``.npy`` | rows of an array | none |
| a file ``.npz`` | its array ``images``, or its only array | its array ``labels`` |
| a file ``.tar`` | the pictures in it, by suffix | its ``.cls`` files, or folders |
| a file ``.parquet`` | its column of encoded pictures | its column ``label`` |
| a file of IDX bytes, gzipped or not | rows of an array | the label file beside it |
| any other file | a picture, whatever its suffix | none |
| anything else | a glob of pictures, by suffix, or of ``.tar`` or ``.parquet`` files | none, or those of the files |

The first row that matches wins. Suffixes may be in upper case. Inside a folder, ``__MACOSX`` and names that begin with
a dot are skipped: they are other programs' leftovers.

``open_part`` turns a name into a ``Part`` (``vaekit.images.parts``), which knows its length, labels and names, and
reads pixels. Two modules use parts:

    name → open_part → Part → dataset.open_source   images in memory, or by number, for training
                            → stream.ImageStream    images in order, in chunks, at the edge
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vaekit.errors import SourceError
from vaekit.images.array_parts import ArrayImages, DrawnShapes
from vaekit.images.arrays import RowFile, is_npz, npz_names
from vaekit.images.hub import open_hub
from vaekit.images.idx import check_idx, is_idx
from vaekit.images.labels import Labels, labels_of_array
from vaekit.images.parts import Part
from vaekit.images.paths import MACOSX, Leftovers, PathList, Paths, is_picture_name, pictures_under
from vaekit.images.picture import SUFFIXES
from vaekit.images.picture_parts import HubImages, PictureFiles

KeepPaths = Callable[[Iterable[bytes]], Paths]
"""A function that stores the paths of pictures, in memory or in a temporary file."""

SHAPES_COUNT = 40_000
"""The number of images of the source ``shapes``."""

HUB = "hf:"
"""The prefix for names of Hugging Face data sets."""

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
"""The class names of built-in data sets, by class number. ``mnist`` has none: its numbers are its names."""

_KINDS = (
    "a folder of images, a picture or glob, .npy, .npz, .tar, .parquet, an IDX file, hf:NAME, shapes, fashion-mnist or "
    "mnist"
)
_TAR, _PARQUET, _PACKED_TARS = ".tar", ".parquet", (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_DEBIAN_DATASETS = Path("/usr/share/datasets")


def open_part(source: str, keep_paths: KeepPaths = PathList) -> Part:
    """Open the images of a source.

    Raises SourceError if there is no such source or it holds no images, and MissingExtraError for ``hf:`` if the
    library is not installed.
    """
    if not source:
        raise SourceError(f"the name of a source is empty: give {_KINDS}")
    if source == "shapes":
        return DrawnShapes(SHAPES_COUNT)
    if source in BUILT_IN_FILES:
        return _open_idx(source, idx_images(find_dataset(source)), CLASS_NAMES.get(source, ()))
    if source.startswith(HUB):
        return HubImages(source, open_hub(source.removeprefix(HUB)))
    if os.path.isdir(source):
        return _open_folder(source, keep_paths)
    if os.path.isfile(source):
        return _open_file(source, keep_paths)
    return _open_glob(source, keep_paths)


def no_source(source: str) -> SourceError:
    """Make the error for a name that is not a source."""
    if os.path.exists(source):
        return SourceError(f"{source} is not a source of images: vaekit reads {_KINDS}")
    return SourceError(f"there is no source {source}: give {_KINDS}")


def find_dataset(name: str) -> Path:
    """Return the folder of a built-in data set's IDX files.

    Raises SourceError if it is missing; the message says how to get the data set.
    """
    roots = [Path(os.environ["VAEKIT_DATA"])] if os.environ.get("VAEKIT_DATA") else []
    for root in (*roots, _DEBIAN_DATASETS):
        if os.path.isdir(root / name):
            return root / name
    raise SourceError(f"{name} is not on this machine: {BUILT_IN_FILES[name]}")


def find_test_part(source: str) -> str | None:
    """Return a data set's official test part as a source; None without one.

    Only ``fashion-mnist`` and ``mnist`` have one. Raises SourceError if its file is not on this machine.
    """
    if source not in BUILT_IN_FILES:
        return None
    folder = find_dataset(source)
    parts = [file for file in _idx_files(folder) if file.name.startswith("t10k")]
    if not parts:
        raise SourceError(f"{folder} holds no test part of {source} (t10k-images-idx3-ubyte or .gz)")
    return str(parts[0])


def idx_images(folder: Path) -> Path:
    """Return the training part of a folder of IDX files.

    Without a training part, it is the first part by name. Raises SourceError if the folder has no IDX file of images.
    """
    parts = _idx_files(folder)
    if not parts:
        raise SourceError(f"{folder} holds no IDX file of images (…idx3-ubyte or …idx3-ubyte.gz)")
    return next((file for file in parts if file.name.startswith("train")), parts[0])


def _open_folder(source: str, keep_paths: KeepPaths) -> Part:
    folder = Path(source)
    root = os.fsencode(folder)
    leftovers = Leftovers()
    paths = keep_paths(pictures_under(root, leftovers))
    if len(paths):
        return PictureFiles(paths, root, leftovers.in_words())
    for suffix, open_files in ((_TAR, _open_tars), (_PARQUET, _open_parquet)):
        if files := sorted(file for file in folder.glob(f"[!.]*{suffix}") if file.is_file()):
            return open_files(source, files)
    if _idx_files(folder):
        return _open_idx(str(folder), idx_images(folder))
    besides = f"; {leftovers.in_words()}" if leftovers.in_words() else ""
    raise SourceError(f"{folder} holds no images: vaekit reads {', '.join(sorted(SUFFIXES))}{besides}")


def _open_file(source: str, keep_paths: KeepPaths) -> Part:
    path = Path(source)
    if is_npz(path):
        return _open_npz(source, path)
    if path.suffix.lower() == ".npy":
        return ArrayImages(source, RowFile(path), None)
    if path.suffix.lower() == _TAR:
        return _open_tars(source, [path])
    if path.suffix.lower() == _PARQUET:
        return _open_parquet(source, [path])
    if path.name.lower().endswith(_PACKED_TARS):
        raise SourceError(f"{source} is compressed: pictures are read from a .tar that is not, so decompress it first")
    if is_idx(path):
        return _open_idx(source, path)
    return PictureFiles(keep_paths((os.fsencode(path),)))


def _open_tars(source: str, archives: Sequence[Path]) -> Part:
    from vaekit.images.tar_parts import TarImages  # here, because few sources need tarfile

    return TarImages(source, archives)


def _open_parquet(source: str, files: Sequence[Path]) -> Part:
    from vaekit.images.parquet_parts import ParquetImages  # here, because few sources need it

    return ParquetImages(source, files)


def _open_glob(source: str, keep_paths: KeepPaths) -> Part:
    if "\0" in source:  # glob would raise ValueError
        raise no_source(source)
    matches = glob.glob(source, recursive=True)
    for suffix, open_files in ((_TAR, _open_tars), (_PARQUET, _open_parquet)):
        if matches and all(match.lower().endswith(suffix) for match in matches):
            return open_files(source, sorted(map(Path, matches)))
    pictures = [match for match in matches if is_picture_name(os.fsencode(match)) and os.path.isfile(match)]
    if not pictures and any(map(os.path.isfile, matches)):
        raise SourceError(f"{source} matches no pictures: vaekit reads {', '.join(sorted(SUFFIXES))}")
    if not pictures:
        raise no_source(source)
    leftovers = Leftovers()
    if MACOSX not in source:  # glob itself skips names that begin with a dot, unless the pattern has the dot
        matched = len(pictures)
        pictures = [picture for picture in pictures if MACOSX not in Path(picture).parts]
        leftovers.files = matched - len(pictures)
    pictures.sort(key=lambda match: match.replace(os.sep, "\0"))  # folder by folder, as Path sorts
    return PictureFiles(keep_paths(map(os.fsencode, pictures)), left_out=leftovers.in_words())


def _open_npz(source: str, path: Path) -> Part:
    images = RowFile(path, ("images",))
    labels = _npz_labels(source, path, len(images)) if "labels" in npz_names(path) else None
    return ArrayImages(source, images, labels)


def _npz_labels(source: str, path: Path, count: int) -> Labels:
    try:
        array = RowFile(path, ("labels",)).whole()
    except SourceError as error:
        raise SourceError(f"the labels in {source} cannot be used: {error}") from error
    return labels_of_array(source, array, count)


def _open_idx(source: str, path: Path, class_names: tuple[str, ...] = ()) -> Part:
    check_idx(path)
    images = RowFile(path)
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels: Labels | None = None
    if beside.name != path.name and beside.is_file():
        check_idx(beside)
        labels = labels_of_array(source, RowFile(beside).whole(), len(images), class_names)
    return ArrayImages(source, images, labels)


def _idx_files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if re.match(r"[^.].*idx3-ubyte", file.name))
    except OSError as error:
        raise SourceError(f"cannot read the folder {folder}: {error.strerror or error}") from error
