"""The README on a package index: no picture or link may point at a file that is not there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
long_description = runpy.run_path(str(ROOT / "docs" / "hooks" / "long_description.py"))["long_description"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

_TARGET = re.compile(r"\]\(([^)]+)\)")


def test_with_an_address_pictures_and_links_are_absolute() -> None:
    text = long_description(README, "https://host.example/owner/vaekit/", "1.2.3")
    base = "https://host.example/owner/vaekit"
    assert f"]({base}/raw/v1.2.3/docs/samples.png)" in text
    assert f"]({base}/blob/v1.2.3/docs/quickstart.md)" in text
    assert all(target.startswith("https://") for target in _TARGET.findall(text))
    assert len(_TARGET.findall(text)) == len(_TARGET.findall(README))


def test_without_one_pictures_are_left_out_and_links_keep_their_words() -> None:
    text = long_description(README, None, "1.2.3")
    assert all(target.startswith("https://") for target in _TARGET.findall(text))
    assert "Bundle format" in text
    assert "![" not in text
    assert "*Samples that" not in text


def test_code_and_words_stay_as_they_are() -> None:
    for repository in (None, "https://host.example/owner/vaekit"):
        text = long_description(README, repository, "1.2.3")
        assert text.count("```") == README.count("```")
        assert "vaekit train [SOURCE] -o RUN" in text


def test_every_file_that_the_readme_points_at_exists() -> None:
    for target in _TARGET.findall(README):
        if not target.startswith("https://"):
            assert (ROOT / target).is_file(), target
