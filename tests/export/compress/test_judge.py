"""A compressed model's loss is measured against its bundle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import vaekit
from vaekit.errors import CheckError
from vaekit.maths.elbo import kl_standard_normal, log_likelihood
from vaekit_export.compress.judge import Delta, Graphs, Judge, Limits, array_psnr, rows_in_memory
from vaekit_export.passes import apply
from vaekit_export.passes.prune import prune_decoder, prune_encoder

Kill = Callable[..., Path]


def pruned_to(graphs: Graphs, kept: tuple[int, ...], means: NDArray[np.float64]) -> Graphs:
    encoder = apply(graphs.encoder, partial(prune_encoder, kept=kept))
    return Graphs(encoder, apply(graphs.decoder, partial(prune_decoder, kept=kept, means=means)), kept)


def test_the_parent_measured_against_itself_loses_nothing(small: Path) -> None:
    vae = vaekit.load(small, provider="cpu")
    judge = Judge(vae, vae.sample(16), Limits(42.0, 0.1))
    assert judge.psnr(judge.parent) == np.inf
    assert judge.delta_elbo(judge.parent, 0.1) == Delta(0.0, 0.0)
    assert judge.check(judge.parent) == (np.inf, Delta(0.0, 0.0))


def test_a_fall_beyond_the_limit_is_refused(small: Path) -> None:
    vae = vaekit.load(small, provider="cpu")
    judge = Judge(vae, vae.sample(16), Limits(-np.inf, 0.1))
    means = np.array(vae.manifest.latent.mean)
    alive = pruned_to(judge.parent, (1, 2), means)
    with pytest.raises(CheckError, match=r"fell by \d.* at most 0\.1 are allowed: nothing was published"):
        judge.check(alive)


def test_the_change_of_the_elbo_is_what_much_noise_gives(copied_bundle: Path, kill: Kill) -> None:
    """Compare with 4,000 independent noise vectors per image."""
    vae = vaekit.load(kill(copied_bundle, heard=0.3), provider="cpu")
    images, means = vae.sample(8), np.array(vae.manifest.latent.mean)
    judge = Judge(vae, images, Limits(42.0, 0.1))
    pruned = pruned_to(judge.parent, (0, 2), means)
    found = judge.delta_elbo(pruned, 0.1, exactly=True)
    mu, logvar = vae.posterior(images)
    z = mu[:, None] + np.exp(logvar / 2)[:, None] * np.random.default_rng(0).standard_normal((8, 4000, 4))
    fixed = z.copy()
    fixed[..., [1, 3]] = means[[1, 3]]
    many = np.repeat(images, 4000, axis=0)
    with_and_without = [
        log_likelihood(many, vae.decode(codes.reshape(-1, 4).astype(np.float32)), vae.manifest.likelihood).mean()
        for codes in (z, fixed)
    ]
    kl = kl_standard_normal(mu, logvar).mean(axis=0)[[1, 3]].sum()
    assert found is not None
    assert 0 < found.standard_error < 0.2
    assert found.nats == pytest.approx(with_and_without[1] - with_and_without[0] + kl, abs=4 * found.standard_error)


def test_large_images_are_fewer() -> None:
    assert rows_in_memory((1, 28, 28), 512) == 512
    assert rows_in_memory((3, 64, 64), 512) == 512
    assert rows_in_memory((3, 512, 512), 512) == 85
    assert rows_in_memory((3, 4096, 4096), 512) == 8


def test_the_psnr_of_arrays() -> None:
    a = np.zeros((2, 5), np.float32)
    assert array_psnr(a, a, 1.0) == np.inf
    assert array_psnr(a + np.float32(0.1), a, 1.0) == pytest.approx(20, abs=1e-4)
    assert array_psnr(a * np.nan, a, 1.0) == -np.inf
