"""Training with two processes, compared with a single one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vaekit.errors import UsageError
from vaekit.images.dataset import Images
from vaekit.training.config import Config
from vaekit.training.processes import ProcessGroup
from vaekit.training.run import METRICS, MODEL
from vaekit.training.trainer import Trainer

MakeConfig = Callable[..., Config]

SCRIPT = Path(__file__).with_name("train_without_statistics.py")


def run_alone(*command: str | Path) -> None:
    started([sys.executable, *command])


def run_two(*command: str | Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    started([sys.executable, *torchrun, *command])


def started(command: list[str | Path]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {"binarize": "dynamic", "augment": "flip"},
        {"objective": "iwae", "iwae_samples": 3},
        {"free_bits": 0.3, "beta_warmup": 0.5, "mc_samples": 2},
    ],
    ids=["optimal sigma", "iwae", "free bits"],
)
def test_without_batch_statistics_two_processes_train_as_one_does(
    tmp_path: Path, images: Images, make_config: MakeConfig, changes: dict[str, Any]
) -> None:
    settings = json.dumps(dataclasses.asdict(make_config(steps=20, lr=1e-3, **changes)))
    run_alone(SCRIPT, images.name, tmp_path / "one", settings)
    run_two(SCRIPT, images.name, tmp_path / "two", settings)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [record["step"] for record in two] == [10, 20, 20]
    for alone, shared in zip(one, two, strict=True):
        for name in ("elbo", "reconstruction", "kl", "objective"):
            assert shared[name] == pytest.approx(alone[name], rel=2e-4, abs=2e-4)
    weights, shared_weights = load_file(tmp_path / "one" / MODEL), load_file(tmp_path / "two" / MODEL)
    for name, tensor in weights.items():
        if not name.startswith("prior."):
            assert torch.allclose(shared_weights[name], tensor, rtol=1e-3, atol=1e-4), name


def test_the_command_trains_in_two_processes(tmp_path: Path, images: Images) -> None:
    options = ("--latent", "2", "--steps", "120", "--batch-size", "32", "--lr", "4e-3", "--device", "cpu")
    run_alone("-m", "vaekit_cli", "train", images.name, *options, "-o", tmp_path / "one")
    run_two("-m", "vaekit_cli", "train", images.name, *options, "-o", tmp_path / "two")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [(record["step"], record["split"]) for record in two] == [(r["step"], r["split"]) for r in one]
    assert two[-1]["elbo"] == pytest.approx(one[-1]["elbo"], abs=12)  # small compared with the gain of about 300
    files = [{path.name for path in (tmp_path / run).rglob("*")} for run in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize("size", [3, 32])
def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, images: Images, make_config: MakeConfig, size: int
) -> None:
    with pytest.raises(UsageError, match=f"a batch of 32 cannot be shared equally by {size} processes"):
        Trainer(make_config(), images, tmp_path / "run", group=ProcessGroup(0, size))
