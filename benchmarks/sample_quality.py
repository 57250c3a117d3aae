"""How good are samples of a run's priors, and does a learned one pay?

    python benchmarks/sample_quality.py RUN [--images 10000] [--seeds 5] [--peers] [--pictures FOLDER] [--json FILE]

RUN is a folder that `vaekit train fashion-mnist` wrote, with a flow of `vaekit prior`. A small classifier is trained on
Fashion-MNIST's labels; its accuracy on the test part is printed, and its last hidden layer gives the features. Samples
are compared with the official test part, which neither the VAE nor the classifier has seen:

- the Fréchet distance of Gaussians fitted to both sets' features (Heusel et al., 2017), with mean, least and most over
  the seeds;
- precision and recall with the 3 nearest neighbours (Kynkäänniemi et al., 2019);
- copying: the median distance, in pixels, of samples to their nearest training image, divided by that of test images'
  reconstructions.

Beside the priors stand the floor of a perfect prior, reconstructions at z ~ q(z|x) of test images, and with --peers
two samplers of pythae, trained on the same standardised codes for as many steps: a masked autoregressive flow (MAF;
Papamakarios et al., 2017), and a second VAE (Dai and Wipf, 2019) of 3 layers with 256 units. Needs the extras `train`
and, for the peers, `pythae`. Takes about twenty minutes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from timing import write_json
from torch import Tensor, nn

from vaekit.images.dataset import open_source
from vaekit.images.idx import read_idx
from vaekit.images.source import find_dataset
from vaekit.maths.prior import draw_normal
from vaekit.output.grid import grid, save_picture
from vaekit.output.table import text_table
from vaekit.system.machine import usable_cpus
from vaekit.training.flow import STEPS, Codes
from vaekit.training.holdout import hold_out
from vaekit.training.prior import codes_of, training_codes
from vaekit.training.run import Run, load_run
from vaekit.types import Array
from vaekit.vae import VAE, load
from vaekit_export import export_run

_BATCH, _EPOCHS, _FEATURES = 500, 4, 64
_NEIGHBOURS, _SHOWN = 3, 64
_FLOW_STEPS = (1, 2, 4, 8, 16)

Doubles = NDArray[np.float64]
Draw = Callable[[int, int], Array]
"""(number, seed) → latents."""


def main() -> None:
    """Train the classifier, measure the priors and print the table."""
    options = options_of()
    torch.set_num_threads(usable_cpus())
    torch.manual_seed(0)
    run = load_run(options.run)
    folder = find_dataset("fashion-mnist")
    (train, labels), (test, test_labels) = (part(folder, name) for name in ("train", "t10k"))
    classifier = trained_classifier(train, labels)
    accuracy = float((logits_of(classifier, test).argmax(1) == test_labels).mean())
    print(f"the classifier names {accuracy:.2%} of the test part")
    test = test[: options.images]
    real = features_of(classifier, test)
    codes = codes_of(run, (test[first : first + _BATCH] for first in range(0, len(test), _BATCH)), lambda done: None)
    rows, found = [["samples", "Fréchet distance", "precision", "recall", "copying"]], {}
    reference = nearest(decoded(run, codes.mu), train)
    draws = priors(run, codes, options.run).items()
    for name, draw in itertools.chain(draws, peers(run) if options.peers else ()):
        measured = measure(run, classifier, draw, real, train, reference, options)
        found[name] = measured
        mean, low, high = measured["frechet"]
        shares = (f"{measured[key]:.3f}" for key in ("precision", "recall", "copying"))
        rows.append([name, f"{mean:.2f} ({low:.2f} to {high:.2f})", *shares])
        print(f"{name}: {measured}", flush=True)
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            save_picture(grid(decoded(run, draw(_SHOWN, 0)), 8), options.pictures / f"{name}.png")
    print("\n".join(text_table(rows)))
    if "flow" in found and "mixture" in found:
        floor, mixture, flow = (found[name]["frechet"][0] for name in (FLOOR, "mixture", "flow"))
        print(f"excess over the floor: flow {flow - floor:.2f}, mixture {mixture - floor:.2f}; aim at most half of it")
    write_json(options.json, {"accuracy": accuracy, "samples": found})


def options_of() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="train pythae's samplers on the codes, and include them")
    parser.add_argument("--pictures", type=Path, help="a folder for 64 samples of each")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def part(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read images (N, 1, 28, 28) and labels (N,) of ``train`` or ``t10k``."""
    images, labels = (read_idx(next(folder.glob(f"{name}-{kind}-*"))) for kind in ("images", "labels"))
    return images[:, None], labels


def trained_classifier(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> nn.Module:
    """Train a small convolutional network; its last layer is the only one behind the features."""

    def stage(ins: int, outs: int) -> list[nn.Module]:
        return [nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU(), nn.MaxPool2d(2)]

    network = nn.Sequential(
        *(*stage(1, 32), *stage(32, 64), *stage(64, 64), nn.Flatten()),
        *(nn.Linear(64 * 9, _FEATURES), nn.ReLU(), nn.Linear(_FEATURES, 10)),
    )
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    steps = _EPOCHS * len(images) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    random = np.random.default_rng(0)
    for _ in range(steps):
        rows = random.integers(len(images), size=128)
        loss = nn.functional.cross_entropy(network(as_tensor(images[rows])), torch.from_numpy(labels[rows]).long())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # in PyTorch's stubs
        optimiser.step()
        schedule.step()
    return network.eval()


def as_tensor(images: NDArray[np.uint8] | Array) -> Tensor:
    """Return images of 8 bits, or in [0, 1], as a tensor in [0, 1]."""
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return torch.from_numpy(images.astype(np.float32) / scale)


def logits_of(network: nn.Module, images: NDArray[np.uint8] | Array) -> Array:
    """Run a network on images in batches."""
    parts = (as_tensor(images[first : first + _BATCH]) for first in range(0, len(images), _BATCH))
    with torch.inference_mode():
        return np.concatenate([network(images).numpy() for images in parts])


def features_of(classifier: nn.Module, images: NDArray[np.uint8] | Array) -> Doubles:
    """Return the classifier's last hidden layer, (N, 64)."""
    assert isinstance(classifier, nn.Sequential)
    return logits_of(classifier[:-1], images).astype(np.float64)


FLOOR = "z ~ q(z|x)"


def priors(run: Run, codes: Codes, path: Path) -> dict[str, Draw]:
    """Return the priors of a run's bundle by name, and the floor."""
    with tempfile.TemporaryDirectory() as folder:
        export_run(path, Path(folder, "bundle"))
        vae = load(Path(folder, "bundle"), provider="cpu")
        vae.sample_latents(1)  # opens the learned prior, if there is one
    found: dict[str, Draw] = {FLOOR: lambda count, seed: codes_drawn(codes, count, seed)}
    for prior in reversed(vae.priors):
        default = None if vae.manifest.flow is None or prior != "flow" else vae.manifest.flow.steps
        for steps in (None,) if default is None else _FLOW_STEPS:
            name = prior if steps in (None, default) else f"{prior}, {steps} step{'s' * (steps != 1)}"
            found[name] = partial(drawn, vae, prior, steps)
    return found


def drawn(vae: VAE, prior: str, steps: int | None, count: int, seed: int) -> Array:
    """Draw latents from one of a bundle's priors."""
    return vae.sample_latents(count, seed=seed, prior=prior, prior_steps=steps)


def codes_drawn(codes: Codes, count: int, seed: int) -> Array:
    """Draw one z ~ q(z|x) for each of the first ``count`` images."""
    noise = np.random.default_rng(seed).standard_normal(codes.mu[:count].shape, np.float32)
    return np.asarray(codes.mu[:count] + np.exp(0.5 * codes.logvar[:count]) * noise)


def peers(run: Run) -> Iterator[tuple[str, Draw]]:
    """Train pythae's samplers on the training images' codes, one after the other."""
    import pythae.models
    from pythae.models.normalizing_flows import MAF, MAFConfig
    from pythae.samplers import TwoStageVAESampler, TwoStageVAESamplerConfig

    d = run.config.latent
    images = open_source(run.config.source, size=run.config.image_shape[1:])
    codes = training_codes(run, hold_out(images, run.config.seed), lambda done, total: None)
    maf = MAF(MAFConfig(input_dim=(d,), n_made_blocks=4, hidden_size=128, n_hidden_in_made=2))
    sampler = TwoStageVAESampler(
        pythae.models.VAE(pythae.models.VAEConfig(input_dim=(1, 8, 8), latent_dim=d)),
        TwoStageVAESamplerConfig(second_stage_depth=3, second_layers_dim=256),
    )

    def maf_loss(z: Tensor) -> Tensor:
        found = maf(z)
        loss: Tensor = (0.5 * found.out.square().sum(1) - found.log_abs_det_jac).mean()
        return loss

    def second_loss(z: Tensor) -> Tensor:
        loss: Tensor = sampler.second_vae({"data": z}).loss
        return loss

    yield "pythae's MAF", trained_peer(codes, maf, maf_loss, lambda noise: maf.inverse(noise).out)
    second = sampler.second_vae
    yield (
        "pythae's two-stage VAE",
        trained_peer(codes, second, second_loss, lambda noise: second.decoder(noise).reconstruction),
    )


def trained_peer(
    codes: Codes, network: nn.Module, loss: Callable[[Tensor], Tensor], sample: Callable[[Tensor], Tensor]
) -> Draw:
    """Train a network on standardised codes with Adam; ``sample`` makes codes of noise, each (N, d)."""
    mean, std = codes.moments()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    random = np.random.default_rng(0)
    network.train()
    started = time.monotonic()
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss(torch.from_numpy((codes.draw(random, 1024)[0] - mean) / std)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    print(f"{type(network).__name__}: {STEPS} steps in {time.monotonic() - started:.0f} s", flush=True)
    network.eval()

    def draw(count: int, seed: int) -> Array:
        torch.manual_seed(seed)
        with torch.inference_mode():
            z = sample(torch.from_numpy(draw_normal(len(mean), count, seed=seed))).numpy()
        return np.asarray(mean + std * z, np.float32)

    return draw


def decoded(run: Run, latents: Array) -> Array:
    """Decode latents to images in [0, 1]."""
    with torch.inference_mode():
        parts = (torch.from_numpy(latents[first : first + _BATCH]) for first in range(0, len(latents), _BATCH))
        return np.concatenate([run.network.decoder(part).numpy() for part in parts])


def measure(
    run: Run,
    classifier: nn.Module,
    draw: Draw,
    real: Doubles,
    train: NDArray[np.uint8],
    reference: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measure samples: Fréchet distance of all seeds, the rest of the first."""
    distances = []
    for seed in range(options.seeds):
        images = decoded(run, draw(options.images, seed))
        features = features_of(classifier, images)
        distances.append(frechet(features, real))
        if seed == 0:
            shares: Mapping[str, float] = {
                "precision": covered(features, real),
                "recall": covered(real, features),
                "copying": nearest(images, train) / reference,
            }
    return {"frechet": [float(np.mean(distances)), min(distances), max(distances)], **shares}


def frechet(a: Doubles, b: Doubles) -> float:
    """Return the squared Fréchet distance of two Gaussians, fitted to features (N, F) and (M, F)."""
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def covered(points: Doubles, support: Doubles) -> float:
    """Return the share of points that lie within the distance of some support point's 3rd neighbour."""
    a, b = (torch.from_numpy(part).float() for part in (points, support))
    radii = torch.cat([torch.cdist(rows, b).kthvalue(_NEIGHBOURS + 1).values for rows in torch.split(b, _BATCH)])
    return float(
        np.mean(torch.cat([(torch.cdist(rows, b) <= radii).any(1) for rows in torch.split(a, _BATCH)]).numpy())
    )


def nearest(images: Array, train: NDArray[np.uint8], count: int = 500) -> float:
    """Return the median distance of images to the nearest training image, in pixels."""
    rows, known = as_tensor(images[:count]).flatten(1), as_tensor(train).flatten(1)
    return float(torch.cat([torch.cdist(part, known).min(1).values for part in torch.split(rows, 100)]).median())


if __name__ == "__main__":
    main()
