"""Complete trainings of minimal size."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaekit.errors import RunError, SourceError, VaekitError
from vaekit.images.dataset import Images
from vaekit.training.config import Config
from vaekit.training.holdout import split_numbers
from vaekit.training.networks import reparameterise
from vaekit.training.run import METRICS, MODEL, PREVIEWS, load_holdout, load_run
from vaekit.training.trainer import Outcome, Progress, Trainer

MakeConfig = Callable[..., Config]


def strict_json(text: str) -> Any:
    """Parse strict JSON, which does not allow Python's NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def metrics(run: Path, part: str) -> list[dict[str, Any]]:
    records = [strict_json(line) for line in (run / METRICS).read_text().splitlines()]
    return [record for record in records if record["split"] == part]


def subset(images: Images, count: int) -> Images:
    return dataclasses.replace(images, _count=count)


def test_training_raises_the_bound(trained: tuple[Path, Outcome]) -> None:
    path, outcome = trained
    first, *_, last = metrics(path, "training")
    assert last["elbo"] > first["elbo"] + 50
    assert outcome.elbo > first["elbo"] + 50


def test_the_outcome_is_that_of_the_kept_model_on_held_out_images(trained: tuple[Path, Outcome]) -> None:
    path, outcome = trained
    run = load_run(path)
    assert run.variance is not None
    assert outcome.sigma == pytest.approx(math.sqrt(run.variance))
    assert outcome.elbo == pytest.approx(outcome.reconstruction - outcome.kl)
    assert outcome.steps == outcome.config.steps == 60
    assert not outcome.interrupted
    assert run.mixture is not None
    assert outcome.components == len(run.mixture.weights) > 1
    assert run.config == outcome.config
    assert run.summary["steps"] == 60
    assert run.summary["validation"]["elbo"] == pytest.approx(outcome.elbo)
    assert outcome.elbo >= max(record["elbo"] for record in metrics(path, "validation")) - 5  # of about 50


def test_metrics_are_json_with_finite_numbers(trained: tuple[Path, Outcome]) -> None:
    path, _ = trained
    training, validation = metrics(path, "training"), metrics(path, "validation")
    assert [record["step"] for record in training] == [10, 20, 30, 40, 50, 60]
    steps = [record["step"] for record in validation]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60
    for record in (*training, *validation):
        assert record["elbo"] == pytest.approx(record["reconstruction"] - record["kl"], abs=1e-3)
        assert all(math.isfinite(value) for key, value in record.items() if key != "split")
        assert record["kl"] >= 0
    assert all(record["variance"] > 0 for record in validation)


def test_frozen_variance_is_the_mean_squared_error_over_training_images(
    trained: tuple[Path, Outcome], images: Images
) -> None:
    run = load_run(trained[0])
    training, _ = split_numbers(len(images), run.config.seed)
    x = torch.from_numpy(images.read(training)).float() / 255
    errors = []
    with torch.inference_mode():
        mu, logvar = run.network.encoder(x)
        for seed in range(10):
            eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed))
            errors.append((x - run.network.decoder(reparameterise(mu, logvar, eps))).square().mean())
    assert run.variance == pytest.approx(torch.stack(errors).mean().item(), rel=0.03)


def test_the_frozen_variance_is_not_refitted_on_held_out_images(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    _, holdout = split_numbers(len(images), 0)

    def read(indices: Any) -> Any:
        """Make the held-out images noise, which no model can reconstruct."""
        pixels = images.read(indices).copy()
        noise = np.random.default_rng(0).integers(0, 2, pixels.shape, np.uint8) * 255
        pixels[np.isin(indices, holdout)] = noise[np.isin(indices, holdout)]
        return pixels

    Trainer(make_config(steps=90), dataclasses.replace(images, _read=read), tmp_path / "run").run()
    run = load_run(tmp_path / "run")
    x = torch.from_numpy(load_holdout(run)).float() / 255
    with torch.inference_mode():
        held_out = (x - run.network.decoder(run.network.encoder(x)[0])).square().mean().item()
    assert run.variance is not None
    assert run.variance < held_out / 2


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    models = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / str(number)
        Trainer(make_config(steps=8, seed=seed), images, path).run()
        models.append((path / MODEL).read_bytes())
    assert models[0] == models[1] != models[2]


def test_streamed_images_give_the_same_model(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    models = []
    for in_memory in (True, False):
        path = tmp_path / str(in_memory)
        Trainer(make_config(), dataclasses.replace(images, in_memory=in_memory), path).run()
        models.append((path / MODEL).read_bytes())
    assert models[0] == models[1]


def test_images_that_cannot_be_read_while_training_end_it(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    reads = 0

    def read(indices: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads > 4:
            raise SourceError("photo.png: the disk is gone")
        return images.read(indices)

    broken = dataclasses.replace(images, in_memory=False, _read=read)
    with pytest.raises(SourceError, match="the disk is gone"):
        Trainer(make_config(), broken, tmp_path / "run").run()


def test_stopping_early_keeps_what_was_learnt(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    seen: list[Progress] = []
    trainer = Trainer(make_config(steps=1000), images, tmp_path / "run", stop=lambda: bool(seen), report=seen.append)
    outcome = trainer.run()
    assert outcome.interrupted
    assert outcome.steps == seen[0].step < 1000
    run = load_run(tmp_path / "run")
    assert run.variance == pytest.approx((outcome.sigma or 0) ** 2)
    assert run.mixture is not None
    assert run.summary["steps"] == outcome.steps
    assert metrics(tmp_path / "run", "validation")


def test_stopping_before_the_first_step_is_no_divergence(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    outcome = Trainer(make_config(), images, tmp_path / "run", stop=lambda: True).run()
    assert outcome.interrupted
    assert outcome.steps == 0
    assert load_run(tmp_path / "run").summary["steps"] == 0


def test_a_fixed_sigma_is_kept(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    outcome = Trainer(make_config(sigma=0.25), images, tmp_path / "run").run()
    assert outcome.sigma == pytest.approx(0.25)
    assert load_run(tmp_path / "run").variance == pytest.approx(0.0625)
    assert {record["variance"] for record in metrics(tmp_path / "run", "validation")} == {0.0625}


def test_bernoulli_has_no_variance(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    outcome = Trainer(make_config(likelihood="bernoulli"), images, tmp_path / "run").run()
    assert outcome.sigma is None
    assert load_run(tmp_path / "run").variance is None
    assert outcome.reconstruction < 0  # a log probability


def test_beta_weighs_the_kl(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    none, heavy = (
        Trainer(make_config(steps=30, beta=beta, sigma=0.3), images, tmp_path / str(beta)).run() for beta in (0.0, 50.0)
    )
    assert heavy.kl < none.kl / 2


def test_an_autoencoder_spreads_its_codes_and_prior_only_makes_all_the_same(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    both, holes, same = (
        Trainer(make_config(steps=120, objective=name, beta=beta), images, tmp_path / name).run()
        for name, beta in (("elbo", 1.0), ("autoencoder", 0.0), ("prior-only", 1.0))
    )
    assert holes.kl > 1.5 * both.kl
    assert holes.objective == holes.reconstruction > same.reconstruction
    assert same.kl < 0.1 < both.kl
    assert same.objective == pytest.approx(-same.kl)
    assert same.reconstruction < both.reconstruction


def test_iwae_trains_its_own_bound(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    outcome = Trainer(make_config(steps=60, objective="iwae", iwae_samples=4), images, tmp_path / "run").run()
    first, *_, last = metrics(tmp_path / "run", "training")
    assert last["objective"] > first["objective"] + 50
    assert outcome.objective > outcome.elbo
    assert load_run(tmp_path / "run").variance == pytest.approx((outcome.sigma or 0) ** 2)


def test_several_monte_carlo_samples_train(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    Trainer(make_config(steps=20, mc_samples=3), images, tmp_path / "three").run()
    Trainer(make_config(steps=20), images, tmp_path / "one").run()
    three, one = (metrics(tmp_path / name, "training")[-1]["elbo"] for name in ("three", "one"))
    assert math.isfinite(three)
    assert three != one


def test_an_isotropic_run_comes_back(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    Trainer(make_config(posterior="isotropic"), images, tmp_path / "run").run()
    run = load_run(tmp_path / "run")
    with torch.inference_mode():
        _, logvar = run.network.encoder(torch.rand(4, 3, 12, 9))
    assert torch.equal(logvar[:, 0], logvar[:, 1])


def test_free_bits_keep_dimensions_from_dying(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    free, none = (
        Trainer(make_config(steps=150, beta=50.0, sigma=0.5, free_bits=nats), images, tmp_path / str(nats)).run()
        for nats in (1.0, 0.0)
    )
    assert none.kl < 0.2
    assert free.kl > 0.7  # the floor of almost a nat per dimension costs nothing


def test_the_checkpoint_kept_is_the_best_by_what_is_maximised(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    Trainer(make_config(steps=200, beta=50.0, sigma=0.5), images, tmp_path / "run").run()
    records = metrics(tmp_path / "run", "validation")
    best = max(records, key=lambda record: record["objective"])
    assert load_run(tmp_path / "run").summary["kept_step"] == best["step"]
    assert best["objective"] == pytest.approx(best["reconstruction"] - 50 * best["kl"], rel=1e-4)


@pytest.mark.parametrize("mode", ["fixed", "dynamic"])
def test_binarised_trainings_see_and_hold_out_binary_images(
    tmp_path: Path, images: Images, make_config: MakeConfig, mode: str
) -> None:
    grey = dataclasses.replace(images, _read=lambda indices: np.full((len(indices), 3, 12, 9), 128, np.uint8))
    trainer = Trainer(make_config(likelihood="bernoulli", binarize=mode), grey, tmp_path / "run")
    assert set(np.unique(trainer.batches.pixels(0))) == {0, 255}
    trainer.run()
    held_out = load_holdout(load_run(tmp_path / "run"))
    assert set(np.unique(held_out)) == {0, 255}
    assert (held_out == 255).mean() == pytest.approx(0.5, abs=0.05)


def test_training_that_diverges_says_so(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    with pytest.raises(VaekitError, match=r"diverged.*[Ll]ower --lr"):
        Trainer(make_config(steps=40, lr=1e30), images, tmp_path / "run").run()
    for line in (tmp_path / "run" / METRICS).read_text().splitlines():
        strict_json(line)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"sigma": 1e30}, r"likely cause is --sigma 1e\+30"),
        ({"sigma": 1e-30}, "likely cause is --sigma 1e-30"),
        ({"beta": 1e30}, r"likely cause is --beta 1e\+30"),
        ({"free_bits": 3e38}, r"likely cause is --free-bits 3e\+38"),
    ],
    ids=str,
)
def test_a_divergence_names_its_likely_cause(
    tmp_path: Path, images: Images, make_config: MakeConfig, changes: dict[str, float], cause: str
) -> None:
    with pytest.raises(VaekitError, match=rf"diverged.*{cause}") as caught:
        Trainer(make_config(steps=40, **changes), images, tmp_path / "run").run()
    assert "Lower --lr" not in str(caught.value)


def test_a_divergence_after_a_checkpoint_leaves_the_checkpoint(
    tmp_path: Path, images: Images, make_config: MakeConfig
) -> None:
    def poison(progress: Progress) -> None:
        with torch.no_grad():
            if progress.step >= 100:
                trainer.network.decoder.get_parameter("doublings.0.bias").fill_(math.nan)

    trainer = Trainer(make_config(steps=200), images, tmp_path / "run", report=poison)
    with pytest.raises(VaekitError, match=f"diverged.*{tmp_path / 'run'}"):
        trainer.run()
    run = load_run(tmp_path / "run")
    assert run.summary["steps"] <= 100
    assert all(parameter.isfinite().all() for parameter in run.network.parameters())


@pytest.mark.parametrize("seed", [2**32, 2**64 - 1])
def test_any_seed_of_64_bits_trains(tmp_path: Path, images: Images, make_config: MakeConfig, seed: int) -> None:
    outcome = Trainer(make_config(steps=2, seed=seed), images, tmp_path / "run").run()
    assert math.isfinite(outcome.elbo)


def test_a_new_training_leaves_nothing_of_the_old_one(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    Trainer(make_config(steps=9), images, tmp_path / "run").run()
    Trainer(make_config(steps=1), images, tmp_path / "run").run()
    assert [record["step"] for record in metrics(tmp_path / "run", "validation")] == [1]
    assert not (tmp_path / "run" / PREVIEWS / "reconstructions-000009.png").exists()


def test_three_images_are_enough(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    outcome = Trainer(make_config(batch_size=2), subset(images, 3), tmp_path / "run").run()
    assert outcome.components == 0  # samples come from N(0, I)
    assert load_run(tmp_path / "run").mixture is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, images: Images, make_config: MakeConfig) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        Trainer(make_config(), images, tmp_path / "file" / "run").run()
