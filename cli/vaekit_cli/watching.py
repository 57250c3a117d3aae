"""`vaekit score --watch`: score each new picture of a folder until a signal says stop."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit.errors import SourceError, UsageError
from vaekit_cli.on_flag import OnFlag
from vaekit_cli.score_record import ScoreRecord
from vaekit_cli.scoring import Scoring, rows, save_map, surprises
from vaekit_cli.stopping import stop_asked

if TYPE_CHECKING:
    from vaekit.images.watch import FolderWatch, NewPicture
    from vaekit.types import Array
    from vaekit.vae import VAE

_WAIT_SECONDS = 0.5  # so long after a signal the watch ends at the latest, if it has nothing to do


@dataclass
class Watching:
    """What is done with each picture of the folder, and how often it was."""

    vae: VAE
    own_sizes: bool
    """Whether each picture keeps its own size."""
    folder: Path
    resize: bool
    scoring: Scoring
    record: ScoreRecord
    maps: Path | None
    on_flag: OnFlag | None
    scored: int = 0
    flagged: int = 0
    unreadable: int = 0

    def described(self) -> str:
        """Count what was done."""
        flags = "" if self.scoring.calibration is None and self.scoring.limit is None else f", {self.flagged:,} flagged"
        bad = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        return f"{self.scored:,} pictures scored{flags}{bad}"

    def handle(self, picture: NewPicture) -> None:
        """Score a picture, and write its line and its map. Raises SourceError or UsageError if it cannot be scored."""
        path = str(self.folder / picture.name)
        images, model = self._read(path)
        decoded = found = None
        if self.maps is not None or self.scoring.needs_maps:
            decoded, found = surprises(model, images, self.scoring)
        (row,) = rows(model, images, [os.fsencode(path)], self.scoring, found)
        if self.maps is not None and decoded is not None and found is not None:
            _write_map(self.maps, picture.name, images[0], decoded[0], found[0])
        line = self.record.add(row | _times(picture))
        self.scored += 1
        if row["flagged"]:
            self.flagged += 1
            if self.on_flag is not None:
                self.on_flag.start(path, line)

    def give_up(self, picture: NewPicture, reason: str) -> None:
        """Write a line that says why a picture has no score."""
        self.unreadable += 1
        self.record.add({"path": str(self.folder / picture.name), "error": reason} | _times(picture))

    def _read(self, path: str) -> tuple[Array, VAE]:
        from vaekit.images.parts import Chunk
        from vaekit.images.picture import read_image

        channels, height, width = self.vae.image_shape
        pixels = read_image(path, channels, None if self.own_sizes else (height, width), resize=self.resize)
        images = Chunk(pixels[None], (os.fsencode(path),), ()).images
        return images, self.vae.at(*pixels.shape[1:]) if self.own_sizes else self.vae


def watch(work: Watching, pictures: FolderWatch, say: Callable[[str], None]) -> None:
    """Score the pictures of a folder until SIGTERM or Ctrl-C. The picture at hand is finished.

    Raises SourceError if the folder is gone, and VaekitError if results cannot be written.
    """
    pictures.skip(work.record.pictures())
    say(f"watching {work.folder}" + (f", by listing it: {why}" if (why := pictures.without_events) else ""))
    try:
        with stop_asked() as stop:
            while not stop():
                found = pictures.take(_WAIT_SECONDS)
                if found is not None:
                    _try(work, pictures, *found)
                if work.on_flag is not None:
                    work.on_flag.tend()
            if work.on_flag is not None:
                work.on_flag.finish()
    finally:
        if work.on_flag is not None:
            work.on_flag.kill()


def _try(work: Watching, pictures: FolderWatch, picture: NewPicture, last: bool) -> None:
    try:
        work.handle(picture)
    except (SourceError, UsageError, MemoryError) as error:
        if not last:
            pictures.retry(picture)
            return
        work.give_up(picture, str(error) or "out of memory")


def _times(picture: NewPicture) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"bytes": picture.size, "modified_ns": picture.modified_ns, "time": now}


def _write_map(folder: Path, name: str, image: Array, decoded: Array, values: Array) -> None:
    """Write a picture's map as NAME.npy and NAME.png, under temporary names first."""
    temporary = folder / f".{name}.tmp"
    try:
        for suffix in save_map(temporary, image, decoded, values):
            os.replace(f"{temporary}{suffix}", folder / f"{name}{suffix}")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise SourceError(f"{name}: its name is too long for that of a map") from error
