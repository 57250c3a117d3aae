"""`vaekit compress` on the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]

FAST = ("--seconds", "0")


def test_compress_says_what_it_did_and_what_to_type_next(vaekit: Run, tiny_bundle: Path) -> None:
    done = vaekit("compress", tiny_bundle, "--int8", "--min-psnr", "30", *FAST, "-o", "small")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for words in ("encoder", "int8", "dB against the bundle's", "ELBO", "smaller", "measured on"):
        assert words in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last == "next: vaekit verify -m small"
    assert vaekit(*shlex.split(last)[2:]).returncode == 0
    told = vaekit("info", "-m", "small")
    assert "int8" in told.stdout
    assert "compressed" in told.stdout


def test_json_says_the_same(in_process: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    done = in_process("compress", tiny_bundle, "--fp16", "--json", *FAST, "-o", "small")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["psnr"] > 60
    assert found["ratio"] == pytest.approx(found["parent_bytes"] / found["bytes"])
    assert set(found["graphs"]) == {"encoder", "decoder"}
    for graph in found["graphs"].values():
        assert graph["precision"] == "fp16"
        assert graph["ratio"] == pytest.approx(graph["parent_bytes"] / graph["bytes"])
        assert graph["speed"] == {}
    assert found["processor"]["name"]


def test_a_run_that_is_timed_says_honestly_what_it_gained(in_process: Run, tiny_bundle: Path) -> None:
    done = in_process("compress", tiny_bundle, "--fp16", "--json", "--seconds", "0.01", "-o", "small")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, graph in found["graphs"].items():
        (other,) = graph["tried"]
        assert {graph["precision"], other} == {"fp16", "fp16-weights"}
        assert any(note.startswith(f"{name}: {graph['precision']} was chosen; {other} runs") for note in found["notes"])
        if min(speed["median"] for speed in graph["speed"].values()) < 1.05:
            reason = "float16" if graph["precision"] == "fp16" else "computes in float32"
            assert any(note.startswith(f"{name}: ") and reason in note for note in found["notes"]), found["notes"]
        for speeds in (graph["speed"], graph["tried"][other]):
            assert set(speeds) == {"1", "64"}
            for speed in speeds.values():
                assert 0 < speed["min"] <= speed["median"] <= speed["max"]


def test_weights_alone(in_process: Run, tiny_bundle: Path) -> None:
    done = in_process("compress", tiny_bundle, "--int8", "--weights-only", *FAST, "-o", "small")
    assert done.returncode == 0, done.stderr
    assert "int8-weights" in done.stderr
    assert "int8-weights" in in_process("info", "-m", "small").stdout
    assert in_process("verify", "-m", "small", "--provider", "cpu").returncode == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, ("say how to compress",)),
        (("--int8", "--fp16"), 2, ("--int8", "--fp16", "contradict")),
        (("--int8", "--dead-below", "0.1"), 2, ("--dead-below", "--prune")),
        (("--prune", "--keep-transposed"), 2, ("--keep-transposed", "--int8")),
        (("--int8", "--weights-only", "--keep-transposed"), 2, ("--keep-transposed", "activations")),
        (("--prune", "--weights-only"), 2, ("--weights-only", "--int8", "--fp16")),
        (("--int8", "--min-psnr", "-1"), 2, ("--min-psnr",)),
        (("--prune", "--dead-below", "0"), 1, ("nothing to prune",)),
        (("--int8", "--min-psnr", "150", "--max-delta-elbo", "0"), 3, ("nothing was published",)),
    ],
)
def test_bad_input_ends_in_one_line(
    in_process: Run,
    assert_fails: Fails,
    tiny_bundle: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
) -> None:
    assert_fails(in_process("compress", tiny_bundle, *options, *FAST, "-o", "small"), code, *words)
    assert not (tmp_path / "small").exists()


def test_bad_files_end_in_one_line(in_process: Run, assert_fails: Fails, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("a letter")
    assert_fails(in_process("compress", "nowhere", "--int8"), 1, "there is no bundle at nowhere")
    assert_fails(in_process("compress", tiny_bundle, "nowhere", "--int8"), 1, "nowhere")
    assert_fails(in_process("compress", tiny_bundle, "letter", "--int8"), 1, "letter")
    assert_fails(in_process("compress", tiny_bundle, "--int8", "-o", "letter"), 1, "letter", "not a bundle")
    done = in_process("compress", tiny_bundle, "--fp16", *FAST, "-q", "-o", "small")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_fails(in_process("compress", "small", "--fp16", "-o", "other"), 1, "already compressed")
    assert_fails(in_process("compress", tiny_bundle, "--fp16", "-o", tiny_bundle), 2, "is the bundle itself")
