"""Check the contents of the wheel and the sdist: `python tests/packaging/check_distributions.py dist`.

In addition, `twine check --strict dist/*` checks that the long description renders.
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

SUFFIXES = (".py", ".onnx", ".npz", ".js", ".json", ".html", ".css", ".svg", ".md")
PACKAGES = {"vaekit": "vaekit", "vaekit_export": "export/vaekit_export", "vaekit_cli": "cli/vaekit_cli"}


def sources(root: Path) -> set[str]:
    """Modules, what a site is made of, and type markers of the checkout, by their names in the wheel."""
    found = set()
    for package, folder in PACKAGES.items():
        for path in (root / folder).rglob("*"):
            if path.suffix in SUFFIXES or path.name == "py.typed":
                found.add(f"{package}/{path.relative_to(root / folder).as_posix()}")
    return found


def check_description(wheel: Path) -> None:
    """Exit with an error if the long description links to files that a package index does not have."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    if relative := re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        sys.exit(f"{wheel.name}'s long description has relative links: {relative}")


def main(dist: Path) -> None:
    """Exit with an error unless the wheel has exactly the modules, and the sdist can be built."""
    root = Path(__file__).parents[2]
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    if held != sources(root):
        sys.exit(f"{wheel.name} differs from the sources in {sorted(held ^ sources(root))}")
    if missing := [name for name in PACKAGES if f"{name}/py.typed" not in held]:
        sys.exit(f"{wheel.name} has no py.typed in {missing}")
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "constraints.txt",
    }
    needed |= {"docs/hooks/long_description.py", "mkdocs.yml", "vaekit/__init__.py"}
    pages = (path for path in (root / "docs").rglob("*.*") if "__pycache__" not in path.parts)
    needed |= {path.relative_to(root).as_posix() for path in pages}
    needed |= {"export/vaekit_export/__init__.py", "cli/vaekit_cli/main.py", "tests/conftest.py"}
    if missing := sorted(needed - names):
        sys.exit(f"{sdist.name} lacks {missing}")
    tops = {name.split("/")[0] for name in names if name} - {"PKG-INFO", ".gitignore"}
    if extra := tops - {"vaekit", "export", "cli", "tests", "benchmarks", "docs"} - needed:
        sys.exit(f"{sdist.name} holds {sorted(extra)} too")
    check_description(wheel)
    print(f"{wheel.name}: {len(held)} files; {sdist.name}: {len(names)} entries")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
