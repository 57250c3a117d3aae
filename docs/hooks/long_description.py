"""The long description of the package: the README, with pictures and links that work away from the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>(?!https?:)[^)]+)\)\n(?:\n\*[^*]+\*\n)?")
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>(?!https?:|#)[^)]+)\)")


def long_description(readme: str, repository: str | None, version: str) -> str:
    """Return the README with absolute addresses in ``repository`` at the version's tag, in GitHub's form.

    Without a repository, pictures are left out with their captions, and links keep only their words.
    """
    if repository is None:
        return _LINK.sub(r"\g<text>", _PICTURE.sub("", readme))
    base = repository.rstrip("/")
    readme = re.sub(r"(!\[[^\]]*\])\((?!https?:)([^)]+)\)", rf"\1({base}/raw/v{version}/\2)", readme)
    return _LINK.sub(rf"[\g<text>]({base}/blob/v{version}/\g<path>)", readme)


class LongDescription(MetadataHookInterface):
    """Fill in the project's ``readme``, which pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme`` from README.md and ``[project.urls]``."""
        root = Path(self.root)
        module = (root / "vaekit" / "__init__.py").read_text("utf-8")
        (version,) = re.findall(r'^__version__ = "(.+)"$', module, re.MULTILINE)
        repository = metadata.get("urls", {}).get("Repository")
        text = long_description((root / "README.md").read_text("utf-8"), repository, version)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
