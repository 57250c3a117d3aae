from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import vaekit

ROOT = Path(__file__).parents[2]
PACKAGES = ("vaekit", "export/vaekit_export", "cli/vaekit_cli")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    """Read constraints.txt as versions by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if line.strip() and not line.startswith("#"))


def requirements(pyproject: dict[str, Any]) -> dict[str, str]:
    """Return each requirement's specifier by name, without those of other extras."""
    project = pyproject["project"]
    every = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    every += pyproject["build-system"]["requires"]
    found: dict[str, str] = {}
    for line in every:
        name, specifier = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?([^;]*)(?:;.*)?", line).groups()  # type: ignore[union-attr]
        if name != "vaekit":
            found[name] = specifier.strip()
    return found


def test_the_newest_version_in_the_changelog_is_the_packages() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert "Unreleased" not in headings[1:]
    assert next(heading for heading in headings if heading != "Unreleased") == vaekit.__version__


def test_the_version_is_written_once(pyproject: dict[str, Any]) -> None:
    assert "version" in pyproject["project"]["dynamic"]
    assert "version" not in pyproject["project"]
    assert pyproject["tool"]["hatch"]["version"]["path"] == "vaekit/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", vaekit.__version__)


def test_the_import_contracts_cover_every_module_by_themselves(pyproject: dict[str, Any]) -> None:
    library, export, reach, command = pyproject["tool"]["importlinter"]["contracts"][1:]
    for contract, package in ((library, "vaekit"), (export, "vaekit_export")):
        assert contract["containers"] == [package]
        assert contract["exhaustive"]
    for contract, package in ((reach, "vaekit"), (command, "vaekit_cli")):
        assert contract["source_modules"] == [package]
        assert {"torch", "onnx"} <= set(contract["forbidden_modules"])


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed_and_shipped(pyproject: dict[str, Any], package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert package in pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_constraints_are_exact_and_of_no_build_of_their_own() -> None:
    assert len(pins()) >= 10
    for name, version in pins().items():
        assert re.fullmatch(r"\d+(\.\d+)+", version), name


def test_constraints_pin_what_is_required_and_within_its_range(pyproject: dict[str, Any]) -> None:
    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    wanted = requirements(pyproject)
    others = {"onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"}  # one excludes the other
    assert set(pins()) == set(wanted) - others
    for name, version in pins().items():
        for operator, bound in re.findall(r"(>=|<)([\d.]+)", wanted[name]):
            assert (numbers(version) >= numbers(bound)) == (operator == ">="), f"{name} {version} {wanted[name]}"


def test_every_script_starts_something(pyproject: dict[str, Any]) -> None:
    scripts = pyproject["project"]["scripts"]
    assert set(scripts) == {"vaekit"}
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_onnx_runtime_is_no_base_dependency_and_stands_alone_in_each_extra(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    assert not any(line.startswith("onnxruntime") for line in project["dependencies"])
    for extra in ("cpu", "gpu", "openvino", "directml"):
        assert len(project["optional-dependencies"][extra]) == 1


def test_the_edges_tests_import_nothing_of_the_workstation() -> None:
    banned = re.compile(
        r"^\s*(?:import|from) (?:torch|onnx|onnx_ir|onnxscript|safetensors|sklearn|vaekit_export|vaekit\.training)\b"
    )
    for path in [ROOT / "tests" / "conftest.py", *(ROOT / "tests" / "edge").rglob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not banned.match(line), f"{path.name}: {line}"
