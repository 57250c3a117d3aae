"""The settings: allowed values, and config.json."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaekit.training.config import (
    CONFIG,
    Config,
    load_config,
    objective_defaults,
    read_settings,
    requirement,
    save_config,
    setting_of,
)

MakeConfig = Callable[..., Config]


@pytest.fixture
def run(tmp_path: Path, make_config: MakeConfig) -> Path:
    """Write a folder that contains only a config.json."""
    save_config(tmp_path, make_config())
    return tmp_path


def test_settings_come_back(run: Path, make_config: MakeConfig) -> None:
    assert load_config(run) == make_config()


def test_a_newer_format_asks_for_an_upgrade(
    run: Path, change_config: Callable[..., None], refused: Callable[..., None]
) -> None:
    change_config(run, format_version=99)
    refused(lambda: load_config(run), str(run), "newer", "pip install -U vaekit")


def test_an_older_format_asks_to_train_again(
    run: Path, change_config: Callable[..., None], refused: Callable[..., None]
) -> None:
    change_config(run, format_version=1)
    refused(lambda: load_config(run), str(run), "older", "train again")


def test_a_config_may_begin_with_a_byte_order_mark(run: Path, make_config: MakeConfig) -> None:
    save_config(run, config := make_config())
    (run / CONFIG).write_bytes(b"\xef\xbb\xbf" + (run / CONFIG).read_bytes())
    assert load_config(run) == config


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 2}', '{"format_version": "x"}', "\ud800"])
def test_a_damaged_config_is_named(run: Path, text: str, refused: Callable[..., None]) -> None:
    (run / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: load_config(run), str(run / CONFIG), "damaged")


@pytest.mark.parametrize(
    "changes",
    [
        *({"unknown": 1}, {"latent": "two"}, {"latent": -1}, {"height": None}, {"channels": [3]}),
        *({"posterior": "full"}, {"objective": "gan"}, {"objective": "iwae"}, {"objective": "iwae", "iwae_samples": 0}),
        *({"mc_samples": 0}, {"free_bits": -1}, {"beta_warmup": "slow"}, {"binarize": "twice"}, {"binarize": []}),
    ],
)
def test_a_config_with_values_that_are_none_is_named(
    run: Path, changes: dict[str, Any], change_config: Callable[..., None], refused: Callable[..., None]
) -> None:
    change_config(run, **changes)
    refused(lambda: load_config(run), str(run / CONFIG))


@pytest.mark.parametrize("name", ["latent", "lr", "sigma", "source"])
def test_a_config_without_a_setting_that_all_have_is_named(run: Path, name: str, refused: Callable[..., None]) -> None:
    document = json.loads((run / CONFIG).read_text())
    del document[name]
    (run / CONFIG).write_text(json.dumps(document))
    refused(lambda: load_config(run), str(run / CONFIG), "damaged", name)


@pytest.mark.parametrize("name", ["preset", "val", "checkpoint_every", "track"])
def test_an_old_config_without_a_later_setting_has_its_default(run: Path, make_config: MakeConfig, name: str) -> None:
    document = json.loads((run / CONFIG).read_text())
    del document[name]
    (run / CONFIG).write_text(json.dumps(document))
    assert load_config(run) == make_config()


def test_a_file_may_have_some_settings_only(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text('{"latent": 3}')
    assert read_settings(tmp_path / "some.json") == {"latent": 3}


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("latent", 1, None),
        ("latent", 0, "a whole number from 1"),
        ("latent", True, "a whole number from 1"),
        ("latent", 2.0, "a whole number from 1"),
        ("seed", 2**64 - 1, None),
        ("seed", 2**64, "a whole number from 0 to 18446744073709551615"),
        ("lr", 0.1, None),
        ("lr", 1, None),
        ("lr", 0, "positive"),
        ("lr", float("nan"), "positive"),
        ("beta", 0.0, None),
        ("beta", float("inf"), "0 or more"),
        ("free_bits", "much", "0 or more"),
        ("sigma", None, None),
        ("sigma", -0.1, "positive"),
        ("posterior", "full", "one of diagonal, isotropic"),
        ("track", None, None),
        ("track", "paper", "one of tensorboard, wandb, mlflow"),
        ("val", None, None),
        ("val", 0.1, "text"),
        ("source", None, "text"),
    ],
)
def test_what_a_setting_must_be_follows_from_its_type_and_range(name: str, value: object, needed: str | None) -> None:
    assert requirement(name, value) == needed


def test_every_default_is_one_that_its_setting_allows() -> None:
    for known in dataclasses.fields(Config):
        if known.default is not dataclasses.MISSING:
            assert requirement(known.name, known.default) is None, known.name


def test_an_objective_gives_settings_that_belong_to_it_their_defaults() -> None:
    assert objective_defaults("elbo") == {}
    assert objective_defaults("autoencoder") == {"beta": 0.0}
    (name,) = objective_defaults("iwae")
    assert setting_of(name).objectives == ("iwae",)


def test_the_settings_need_neither_pytorch_nor_numpy() -> None:
    check = "import sys, vaekit.training.config; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_schedule_comes_back_on_one_line(run: Path, make_config: MakeConfig) -> None:
    assert "schedule" not in (run / CONFIG).read_text()
    config = make_config(steps=20, schedule=((0, 0.0), (8, 0.5), (20, 1.0)))
    save_config(run, config)
    assert '\n  "schedule": [[0, 0.0], [8, 0.5], [20, 1.0]],\n' in (run / CONFIG).read_text()
    assert load_config(run) == config


@pytest.mark.parametrize(
    "schedule",
    [
        [],
        3,
        "0 0",
        [[0]],
        [[0, 0.0], [20, 1.5]],
        [[0, 0.0], [8, 0.5], [8, 0.6]],
        [[0.5, 0.0]],
        [[True, 0]],
        [[0, None]],
    ],
    ids=str,
)
def test_an_impossible_schedule_is_refused(
    run: Path, schedule: object, change_config: Callable[..., None], refused: Callable[..., None]
) -> None:
    change_config(run, schedule=schedule)
    refused(lambda: load_config(run), CONFIG, "schedule must be a list of pairs")


def test_a_schedule_of_another_length_is_refused(
    run: Path, change_config: Callable[..., None], refused: Callable[..., None]
) -> None:
    change_config(run, schedule=[[0, 0.0], [20, 1.0]], steps=30)
    refused(lambda: load_config(run), "schedule ends at step 20, steps is 30")
