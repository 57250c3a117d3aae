from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vaekit as package
from vaekit.output.grid import grid
from vaekit_cli.commands.info import info

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]
Fails = Callable[..., None]

HEAVY = {"numpy", "PIL", "onnxruntime", "torch", "onnx", "onnxscript", "sklearn", "safetensors", "matplotlib"}

OUTPUT = ("-o", "--output")
RUNTIME = ("-m", "--model", "--provider", "--provider-option", "--allow-fallback", "--threads", "--json", "--quiet")
ON_EDGE = (*RUNTIME, "--batch-size", "--untrusted", "--memory-limit", "--time-limit")
IMAGES = ("--from-file", "--no-resize", "--skip-errors")
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (*OUTPUT, "--seed", "--quiet"),
    "compress": ("--int8", "--fp16", "--prune", "--min-psnr", "--max-delta-elbo", "--json", "--quiet"),
    "prior": ("--kind", "--steps", "--max-minutes", "--resume", "--seed", "--quiet"),
    "evaluate": ("--limit", "--batch-size", "--seed", "--json", "--quiet"),
    "export": (*OUTPUT, "--json", "--quiet"),
    "sample": (*ON_EDGE, *OUTPUT, "--seed"),
    "encode": (*ON_EDGE, *OUTPUT, *IMAGES, "--resume", "--overwrite"),
    "decode": (*ON_EDGE, *OUTPUT),
    "reconstruct": (*ON_EDGE, *OUTPUT, *IMAGES, "--limit"),
    "interpolate": (*ON_EDGE, *OUTPUT, "--from-seed", "--to-seed", "--steps", "--mode"),
    "traverse": (*ON_EDGE, *OUTPUT, "--seed", "--dimensions", "--steps"),
    "score": (*ON_EDGE, *OUTPUT, *IMAGES, "--seed", "--flag-above"),
    "plot": (*ON_EDGE, *OUTPUT, *IMAGES),
    "web": ("-m", "--model", "-o", "--output", "--runtime", "--serve", "PORT", "--json", "--quiet"),
    "sign": ("BUNDLE", "--key", "--new-key", "--comment", "--json", "--quiet"),
    "verify": (*ON_EDGE, "--signed-by"),
    "info": ("-m", "--model", "--sha256", "--json"),
    "bench": (*RUNTIME, "--batch", "--seconds"),
    "doctor": ("--json",),
}
"""Every command, with common options and some of its own that it must have."""


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


def imported(result: Result) -> set[str]:
    """Return the top-level modules listed by PYTHONPROFILEIMPORTTIME."""
    names = re.findall(r"^import time:.*\|\s*([\w.]+)$", result.stderr, re.MULTILINE)
    assert "vaekit_cli" in names
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_light_and_names_the_common_options(vaekit: Run, command: str) -> None:
    result = vaekit(*command.split(), "--help", env={"PYTHONPROFILEIMPORTTIME": "1", "COLUMNS": "200"})
    assert result.returncode == 0
    assert f"Usage: vaekit {command}".strip() in result.stdout
    assert imported(result) & HEAVY == set()
    for option in COMMANDS.get(command, ()):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", result.stdout), option


def test_help_names_the_commands(vaekit: Run) -> None:
    result = vaekit("--help")
    named = re.findall(r"^  ([a-z]+)  ", result.stdout.partition("Commands:")[2], re.MULTILINE)
    assert set(named) == set(COMMANDS)
    assert "..." not in result.stdout.partition("Commands:")[2]
    assert result.stderr == ""
    assert vaekit().stdout == result.stdout


def test_help_names_the_options_and_their_defaults(vaekit: Run) -> None:
    text = " ".join(vaekit("sample", "--help", env={"COLUMNS": "200"}).stdout.split())
    options = ("-n", "-o", "-m", "--model", "--prior", "--temperature", "--columns", "--seed", "--provider")
    for word in (*options, "--threads", "--batch-size", "--json", "--quiet", "vae-onnx", "grid.png", "VAEKIT_MODEL"):
        assert word in text


def test_the_version_is_the_packages(vaekit: Run) -> None:
    result = vaekit("--version", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert (result.returncode, result.stdout) == (0, f"vaekit {package.__version__}\n")
    assert imported(result) & HEAVY == set()


# sample


def test_sample_writes_a_grid(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    result = vaekit("sample", "-m", tiny_bundle, "-n", "10", "-o", "out.png")
    assert (result.returncode, result.stdout) == (0, "")
    assert size(tmp_path / "out.png") == (4 * 66 + 2, 3 * 66 + 2)  # images of 8 x 8, enlarged eight times
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    told, following = result.stderr.splitlines()
    assert all(word in told for word in ("out.png", "10", "mixture", str(tiny_bundle), "seed 0"))
    assert following.startswith("next: vaekit ")


def test_sample_writes_what_the_library_draws(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--seed", "7", "--prior", "normal", "--temperature", "0.5", "--columns", "5", "--batch-size", "3")
    assert vaekit("sample", "-m", tiny_bundle, "-n", "5", "-o", "a.png", *options).returncode == 0
    images = package.load(tiny_bundle).sample(5, seed=7, prior="normal", temperature=0.5)
    with Image.open(tmp_path / "a.png") as picture:
        difference = np.abs(np.asarray(picture).astype(int) - grid(images, 5))
    assert difference.max() <= 1  # another batch size may round differently


def test_sample_has_defaults_for_everything(vaekit: Run, copied_bundle: Path, tmp_path: Path) -> None:
    copied_bundle.rename(tmp_path / "vae-onnx")
    assert vaekit("sample").returncode == 0
    assert size(tmp_path / "grid.png") == (8 * 66 + 2, 8 * 66 + 2)


def test_the_environment_names_the_bundle(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    result = vaekit("sample", "-n", "1", env={"VAEKIT_MODEL": str(tiny_bundle)})
    assert result.returncode == 0
    assert (tmp_path / "grid.png").exists()
    assert vaekit("sample", "-m", "none", env={"VAEKIT_MODEL": str(tiny_bundle)}).returncode == 1


def test_a_seed_gives_the_same_file_each_time(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    for name, seed in (("a.png", 3), ("b.png", 3), ("c.png", 4)):
        assert vaekit("sample", "-m", tiny_bundle, "-n", "4", "-o", name, "--seed", str(seed)).returncode == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert a == b != c


def test_sample_tells_machines_in_one_document(vaekit: Run, tiny_bundle: Path) -> None:
    result = vaekit("sample", "-m", tiny_bundle, "-n", "4", "-o", "a.png", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "output": "a.png",
        "count": 4,
        "seed": 0,
        "prior": "mixture",
        "labels": [],
        "provider": "cpu",
        "model": str(tiny_bundle),
    }


def test_the_next_command_draws_from_the_same(vaekit: Run, bundles: Path) -> None:
    options = "--prior flow --prior-steps 2 --temperature 0.5 --guidance 1.5 --label left"
    result = vaekit("sample", "-m", bundles / "labels", *options.split(), "-n", "4")
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("next: "))
    assert all(part in line for part in options.split(" --")), line
    again = vaekit(*line.removeprefix("next: vaekit ").split())
    assert again.returncode == 0, again.stderr


def test_quiet_is_quiet(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    result = vaekit("sample", "-m", tiny_bundle, "-n", "1", "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "grid.png").exists()


def test_sample_replaces_a_picture(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_text("old")
    assert vaekit("sample", "-m", tiny_bundle, "-n", "1").returncode == 0
    assert size(tmp_path / "grid.png") == (68, 68)


WRONG_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no images": (("sample", "-n", "0"), ("--count", "0")),
    "another suffix": (("sample", "-o", "grid.bmp"), ("grid.bmp", ".png")),
    "a seed too large": (("sample", "--seed", str(2**64)), ("--seed",)),
    "a negative temperature": (("sample", "--temperature", "-1"), ("--temperature",)),
    "a temperature of no number": (("sample", "--temperature", "nan"), ("temperature",)),
    "an unknown prior": (("sample", "--prior", "uniform"), ("uniform", "mixture", "normal")),
    "an unknown provider": (("sample", "--provider", "abacus"), ("abacus", "cpu")),
    "an unknown option": (("sample", "--sed", "1"), ("--sed", "vaekit sample --help")),
    "an option without its value": (("sample", "-n"), ("-n",)),
    "an unknown command": (("smaple",), ("smaple", "vaekit --help")),
}


@pytest.mark.parametrize("what", WRONG_OPTIONS)
def test_wrong_options_end_in_one_line(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    arguments, words = WRONG_OPTIONS[what]
    result = vaekit(*arguments, env={"VAEKIT_MODEL": str(tiny_bundle)})
    assert_fails(result, 2, *words)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["sample", "info"])
def test_a_missing_bundle_is_named_with_the_way_to_one(vaekit: Run, assert_fails: Fails, command: str) -> None:
    result = vaekit(command, "-m", "none")
    assert_fails(result, 1, "none", "vaekit export")
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert_fails(vaekit(command), 1, "vae-onnx", "-m")


def test_an_altered_bundle_is_refused(vaekit: Run, assert_fails: Fails, copied_bundle: Path) -> None:
    data = (copied_bundle / "decoder.onnx").read_bytes()
    (copied_bundle / "decoder.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for command in ("sample", "info"):
        assert_fails(vaekit(command, "-m", copied_bundle), 1, "decoder.onnx", "sha256")


UNWRITABLE = {"a folder that is not there": "none/a.png", "a file for a folder": "file/a.png", "a folder": "b.png"}


@pytest.mark.parametrize("what", [*UNWRITABLE, "a name too long"])
def test_a_picture_that_cannot_be_written_is_named(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path, what: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "b.png").mkdir()
    result = vaekit("sample", "-m", tiny_bundle, "-n", "1", "-o", UNWRITABLE.get(what, "n" * 300 + ".png"))
    assert_fails(result, 1, "cannot write", UNWRITABLE.get(what, "nnn"))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "b.png"}


def test_a_grid_larger_than_its_format_allows_is_refused(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = vaekit("sample", "-m", tiny_bundle, "-n", "260", "--columns", "1", "-o", "a.webp")
    assert_fails(result, 1, "cannot write a.webp")
    assert list(tmp_path.iterdir()) == []


def test_debugging_adds_one_traceback(vaekit: Run, assert_fails: Fails) -> None:
    result = vaekit("info", "-m", "none", env={"VAEKIT_DEBUG": "1"})
    assert result.returncode == 1
    assert result.stderr.count("Traceback (most recent call last)") == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert_fails(vaekit("info", "-m", "none", env={"VAEKIT_DEBUG": "0"}), 1, "none")


def test_results_that_nobody_reads_are_no_traceback(tiny_bundle: Path) -> None:
    script = Path(sys.executable).with_name("vaekit")
    piped = subprocess.Popen([script, "info", "-m", tiny_bundle], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert piped.stdout is not None
    assert piped.stderr is not None
    piped.stdout.close()
    with piped:
        assert b"Traceback" not in piped.stderr.read()
        assert piped.wait(timeout=60) == 1


# info


def test_info_is_for_people(vaekit: Run, tiny_bundle: Path) -> None:
    result = vaekit("info", "-m", tiny_bundle)
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "1 x 8 x 8" in rows["image"]
    assert "4 dimensions" in rows["latent"]
    assert "gaussian, sigma 0.1" in rows["likelihood"]
    assert "mixture of 50" in rows["prior"]
    assert "opset 17, IR 8, fp32" in rows["encoder"]
    assert "atol 1e-05" in rows["parity"]


def test_info_is_for_machines(vaekit: Run, tiny_bundle: Path) -> None:
    result = vaekit("info", "-m", tiny_bundle, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["format_version"] == 1
    assert {key: document["image"][key] for key in ("channels", "height", "width")} == {
        "channels": 1,
        "height": 8,
        "width": 8,
    }
    assert document["latent"]["shape"] == [4]
    assert document["likelihood"]["name"] == "gaussian"
    assert document["prior"]["default"] == "mixture"
    for graph in ("encoder", "decoder"):
        assert (document["graphs"][graph]["opset"], document["graphs"][graph]["ir_version"]) == (17, 8)
    assert document["parity"]["passed"] is True
    assert document["provenance"]["tools"]["torch"].startswith("2.")
    assert document["files"] == {path.name: path.stat().st_size for path in tiny_bundle.iterdir()}


# Parity and provenance may lack any key. Each case: the two records, and the rows that are printed.
RECORDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "nothing": ({}, {}, {}),
    "null": ({"atol": None, "delta_elbo": None}, dict.fromkeys(("tools", "training", "dataset", "compression")), {}),
    "other kinds": (
        {"atol": "small", "rtol": [1]},
        {"tools": ["torch"], "training": 3, "compression": "int8", "model": 3},
        {"came from": "3"},
    ),
    "some": (
        {"rtol": 1e-3, "delta_elbo": 0.5},
        {"dataset": "digits", "tools": {}, "compression": {"pruned": [2]}},
        {
            "parity": "passed at rtol 0.001; ELBO off by 0.5 nats",
            "trained on": "digits",
            "compressed": "dimensions 2 pruned; parity is the parent's",
        },
    ),
    "a model without its data": ({"atol": 1}, {"model": "mine"}, {"parity": "passed at atol 1", "came from": "mine"}),
}


@pytest.mark.parametrize("what", RECORDS)
def test_info_leaves_out_what_a_manifest_lacks(
    what: str, copied_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parity, provenance, rows = RECORDS[what]
    document = json.loads((copied_bundle / "manifest.json").read_text())
    (copied_bundle / "manifest.json").write_text(json.dumps(document | {"parity": parity, "provenance": provenance}))
    info(copied_bundle)
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    told = {name: value.strip() for name, value in lines}
    free = ("parity", "compressed", "came from", "trained on", "tools")
    assert {name: told[name] for name in free if name in told} == rows
    assert "1 x 8 x 8" in told["image"]


def test_info_names_every_graph_and_the_newest_format(newest_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((newest_bundle / "manifest.json").read_text())
    shutil.copy(newest_bundle / "decoder.onnx", newest_bundle / "prior.onnx")
    document["graphs"]["prior"] = document["graphs"]["decoder"] | {"file": "prior.onnx"}
    (newest_bundle / "manifest.json").write_text(json.dumps(document))
    info(newest_bundle)
    told = capsys.readouterr().out
    assert "format 3" in told
    assert "prior.onnx, opset 17, IR 8, fp32" in told


def test_info_reads_a_zip(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "b"), "zip", tiny_bundle)
    assert vaekit("info", "-m", "b.zip").returncode == 0


def test_one_hash_stands_for_a_whole_bundle(
    vaekit: Run, assert_fails: Fails, tiny_bundle: Path, newest_bundle: Path, tmp_path: Path
) -> None:
    found = vaekit("info", "-m", tiny_bundle, "--sha256")
    assert re.fullmatch(r"[0-9a-f]{64}\n", found.stdout)
    shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny_bundle)
    assert vaekit("info", "-m", "bundle.zip", "--sha256").stdout == found.stdout
    assert vaekit("info", "-m", newest_bundle, "--sha256").stdout != found.stdout
    assert_fails(vaekit("info", "-m", tiny_bundle, "--sha256", "--json"), 2, "--sha256 and --json")
    (newest_bundle / "golden.npz").write_bytes(b"")
    assert_fails(vaekit("info", "-m", newest_bundle, "--sha256"), 1, "golden.npz was changed after export")


def test_a_terminal_does_not_obey_a_bundle(vaekit: Run, bundles: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles / "labels", tmp_path / "copy"))
    document = json.loads((copy / "manifest.json").read_text())
    red = "\x1b[31mred\nerror: \x9b2J"
    document["labels"][0] = document["attributes"]["labels"][0]["name"] = red
    document["provenance"] |= {"model": red, "dataset": red, "tools": {red: red}}
    document["minimum_onnxruntime"] = document["image"]["preprocessing"] = red
    (copy / "manifest.json").write_text(json.dumps(document))
    for command in (("info",), ("sample", "--label", "none"), ("sample", "--label", "all"), ("verify",)):
        result = vaekit(*command, "-m", "copy")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.stdout + result.stderr), command
        assert sum(line.startswith("error:") for line in result.stderr.splitlines()) == (command[-1] == "none")


def test_info_needs_no_onnx_runtime(vaekit: Run, tiny_bundle: Path) -> None:
    result = vaekit("info", "-m", tiny_bundle, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert imported(result) & {"onnxruntime", "torch", "onnx"} == set()


def test_sample_needs_no_torch(vaekit: Run, tiny_bundle: Path) -> None:
    result = vaekit("sample", "-m", tiny_bundle, "-n", "1", env={"PYTHONPROFILEIMPORTTIME": "1"})
    modules = imported(result)
    assert "onnxruntime" in modules
    assert modules & {"torch", "onnx", "onnxscript", "sklearn", "safetensors"} == set()
