from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekit.images.paths import PathList, Paths, PathSpool, is_picture_name

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)
paths = st.lists(st.binary(max_size=20).map(lambda path: path.replace(b"\0", b"")), max_size=20)


@pytest.fixture(scope="module")
def spool() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file


@pytest.mark.parametrize("kind", ["list", "spool"])
@quick
@given(first=paths, second=paths, start=st.integers(0, 22), step=st.integers(1, 22))
def test_what_is_kept_comes_out(
    spool: IO[bytes], kind: str, first: list[bytes], second: list[bytes], start: int, step: int
) -> None:
    kept: list[Paths] = [PathList(some) if kind == "list" else PathSpool(spool, some) for some in (first, second)]
    for found, some in zip(kept, (first, second), strict=True):
        assert len(found) == len(some)
        assert list(found.every(1)) == [found[number] for number in range(len(found))] == some
        assert list(found.every(step, start)) == some[start::step]
    both = list(zip(kept[0].every(1), kept[1].every(1), strict=False))
    assert both == list(zip(first, second, strict=False))


@pytest.mark.parametrize(
    ("name", "is_one"), [(b"a.png", True), (b"A.JPG", True), (b"\xff.tiff", True), (b"a.txt", False), (b"png", False)]
)
def test_pictures_are_known_by_their_suffix(name: bytes, is_one: bool) -> None:
    assert is_picture_name(name) is is_one
