"""How well does vaekit find defects on surfaces, beside simpler methods and other autoencoders?

    python benchmarks/defects.py TILES [--minutes 5] [--preset tiny] [--size 96] [--latent 4] [--downscale 16]
                                 [--methods NAME …] [--pictures FOLDER] [--json FILE]

TILES has the layout of MVTec's data sets: train/good, test/good, test/KIND and ground_truth/KIND/NAME_mask.png, with
two kinds of defects or more. Every method learns from the good pictures alone; a tenth of them is held out for
statistics. All autoencoders train for the same time on random crops.

- vaekit: `vaekit train --crop`, `vaekit export`, and the bundle's maps and scores.
- a plain autoencoder: convolutions to a map of as many channels, squared error, Adam.
- pythae's VAE with its networks for 64x64 and its own loss; pictures are put together from windows of 64x64.
- principal components (PCA) of pictures resized to 128x128, of 5 ranks; and the distance to the mean picture.

The maps of all methods but vaekit are squared errors, blurred as vaekit's are. Beside them stand the autoencoders and
PCA with vaekit's statistics of contrast. A picture's score is the mean of a map, the mean of its highest hundredth, or
its peak. vaekit also has its scores without maps, and four that the command line does not offer: `error`, the mean
squared error; `ratio`, the likelihood ratio against one Gaussian for all pixels (Ren et al., 2019); `density`, -log of
a mixture of 8 Gaussians at each position of mu, averaged; and `sum`, of peak, mahalanobis and error, each in standard
deviations of held-out pictures.

For each kind of defect, the map and the score with the highest AUROC are chosen on this kind ("seen") and measured on
the others too ("unseen"). Intervals (95 %) come from 1,000 bootstrap samples of the pictures; leads are paired. At the
end, maps of pictures of 256x256 are timed beside bare sessions. Needs the extras `train`, `pythae` and `anomalies`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.mixture import GaussianMixture
from timing import ratio, write_json
from torch import nn

import vaekit as package
from vaekit.defaults import SMOOTH
from vaekit.diagnose.anomalies import read_mask
from vaekit.images.picture import read_image
from vaekit.maths.anomaly import mahalanobis, scores_of_maps
from vaekit.maths.detection import half_places
from vaekit.maths.surprise import ResidualStatistics, measure, smoothed_errors, surprise
from vaekit.output.grid import save_picture
from vaekit.output.heat import overlay
from vaekit.output.table import text_table
from vaekit.system.machine import usable_cpus
from vaekit.training.run import load_run, load_whole_pictures
from vaekit.types import Array

GOOD = "good"
RANKS = (4, 16, 64, 128, 256)
SIDE = 128  # of the pictures that PCA and the mean see
WINDOW = 64  # of pythae's networks
BATCH = 32
BINS = 1 << 12  # of the values of maps, by their place among numbers of half precision
SAMPLES = 1000  # of the bootstrap
SPEED_SIDE, SPEED_COUNT, ROUNDS = 256, 16, 7

Doubles = NDArray[np.float64]
Rebuild = Callable[[Array], Array]
"""(1, C, h, w) → the reconstruction."""


@dataclass(frozen=True)
class Picture:
    """A picture, and where its defects are."""

    path: str
    kind: str
    image: Array
    """(1, C, h, w)."""
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Seen:
    """What a method says about a picture."""

    maps: dict[str, Array]
    """(h, w), by kind of map."""
    scores: dict[str, float]
    """Scores that are not taken from maps."""


Method = Callable[[Array], Seen]


@dataclass
class Results:
    """A method's scores of all pictures, and counts of its maps' values."""

    scores: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """(P,) each."""
    pixels: dict[str, list[tuple[Doubles, Doubles]]] = dataclasses.field(default_factory=dict)
    """For each picture the counts (BINS,) of usual and of unusual pixels, by kind of map."""

    def add(self, seen: Seen, mask: NDArray[np.bool_] | None) -> None:
        """Keep what is needed of one picture."""
        found: dict[str, float] = dict(seen.scores)
        for kind, values in seen.maps.items():
            found[f"{kind}, mean"] = float(values.mean())
            found |= {f"{kind}, {name}": float(part[0]) for name, part in scores_of_maps(values[None]).items()}
            places = half_places(values) >> 4
            inside = np.zeros(values.shape, bool) if mask is None else mask
            both = (np.bincount(places[part], minlength=BINS).astype(np.float64) for part in (~inside, inside))
            self.pixels.setdefault(kind, []).append((next(both), next(both)))
        for name, score in found.items():
            self.scores.setdefault(name, []).append(score)


@dataclass(frozen=True)
class Counts:
    """Numbers of things (pictures or pixels) by increasing value, a row for each picture."""

    good: Doubles
    """(n, K), in good pictures."""
    beside: Doubles
    """(m, K), usual things in pictures with defects."""
    unusual: Doubles
    """(m, K), unusual things in them."""


def main() -> None:
    """Train and measure the methods and print the tables."""
    options = options_of(sys.argv[1:])
    torch.set_num_threads(usable_cpus())
    good = [path for path in sorted((options.tiles / "train" / GOOD).iterdir()) if not path.name.startswith(".")]
    chosen = np.random.default_rng(0).permutation(len(good)) < len(good) // 10
    held_out, training = ([read(good[i]) for i in np.flatnonzero(part)] for part in (chosen, ~chosen))
    pictures = read_test(options.tiles)
    results: dict[str, Results] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.methods:
            torch.manual_seed(0)
            for part, method in METHODS[name](options, training, held_out, Path(scratch)).items():
                results[part] = Results()
                for picture in pictures:
                    results[part].add(method(picture.image), picture.mask)
                print(f"{part}: done", flush=True)
        found: dict[str, Any] = {"minutes": options.minutes}
        kinds = np.array([picture.kind for picture in pictures])
        for kind in sorted(set(kinds) - {GOOD}):
            found[f"chosen on {kind}"] = report(results, kinds, kind)
        if VAEKIT in options.methods:
            found["speed"] = speed(Path(scratch, "bundle"), pictures)
            if options.pictures is not None:
                draw(Path(scratch, "bundle"), pictures, results[VAEKIT], options.pictures)
    write_json(options.json, found)


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--latent", type=int, default=4)
    parser.add_argument("--downscale", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--pictures", type=Path, help="a folder for overlays of each kind of defect")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def read(path: Path) -> Array:
    """Read a grey picture at its own size, (1, 1, h, w)."""
    return read_image(str(path), 1, None)[None].astype(np.float32) / np.float32(255)


def read_test(tiles: Path) -> list[Picture]:
    """Read the test pictures and their masks."""
    pictures = []
    for path in sorted((tiles / "test").glob("*/*")):
        kind, image = path.parent.name, read(path)
        mask = None if kind == GOOD else read_mask(tiles / "ground_truth", kind, str(path), image.shape[2:])
        pictures.append(Picture(str(path), kind, image, mask))
    return pictures


def train_vaekit(
    options: argparse.Namespace, training: Sequence[Array], held_out: Sequence[Array], scratch: Path
) -> dict[str, Method]:
    """Train and export by the command line, and take maps and scores from the bundle."""
    run, bundle = scratch / "run", scratch / "bundle"
    source = options.tiles / "train" / GOOD
    shape = {"size": options.size, "latent": options.latent, "downscale": options.downscale, "preset": options.preset}
    settings = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vaekit_cli"]
    minutes = ("--max-minutes", str(options.minutes))
    subprocess.run([*command, "train", source, "--crop", *settings, *minutes, "-q", "-o", run], check=True)
    subprocess.run([*command, "export", run, "-q", "-o", bundle], check=True)
    vae = package.load(bundle, provider="cpu")
    statistics, _ = vae.residual_statistics()
    latent = vae.manifest.latent
    sigma, pixels = vae.manifest.likelihood.sigma, np.concatenate([image.ravel() for image in training])
    assert sigma is not None
    mean, std = float(pixels.mean()), float(pixels.std())
    kept = load_whole_pictures(load_run(run))
    codes = [vae.at(*picture.shape[1:]).encode(picture[None] / np.float32(255))[0] for picture in kept]
    mixture = GaussianMixture(8, random_state=0, reg_covar=1e-4).fit(np.concatenate([rows(mu) for mu in codes]))

    def look(image: Array) -> Seen:
        sized = vae.at(*image.shape[2:])
        mu = sized.encode(image)[0]
        decoded = sized.decode(mu)
        terms = sized.elbo_terms(image)
        kinds = [kind for kind in statistics.kinds if kind != "pixel"]
        maps: dict[str, Array] = {kind: surprise(image, decoded, statistics, kind)[0] for kind in kinds}
        simple = np.square((image - mean) / std, dtype=np.float64).sum() / 2 + image.size * np.log(std)
        return Seen(
            maps,
            {
                "elbo": float(-terms.elbo[0]),
                "reconstruction": float(-terms.reconstruction[0]),
                "kl": float(terms.kl[0]),
                "error": float(np.square(image - decoded).mean()),
                "mahalanobis": float(mahalanobis(mu, np.array(latent.mean), np.array(latent.std))[0]),
                "ratio": float(-terms.elbo[0] - simple - image.size * np.log(2 * np.pi) / 2),
                "density": float(-mixture.score_samples(rows(mu)).mean()),
            },
        )

    found = [look(picture[None].astype(np.float32) / np.float32(255)) for picture in kept]
    usual = np.array([three(seen) for seen in found])

    def look_and_add(image: Array) -> Seen:
        seen = look(image)
        total = float(((three(seen) - usual.mean(axis=0)) / usual.std(axis=0)).sum())
        return Seen(seen.maps, seen.scores | {"sum": total})

    return {VAEKIT: look_and_add}


def three(seen: Seen) -> Doubles:
    """Return the parts of the score ``sum``, (3,)."""
    return np.array([seen.maps["contrast"].max(), seen.scores["mahalanobis"], seen.scores["error"]])


def rows(mu: Array) -> Array:
    """Return mu (1, c, h, w) at each position, (h · w, c)."""
    return np.asarray(mu[0].reshape(mu.shape[1], -1).T)


def train_autoencoder(
    options: argparse.Namespace, training: Sequence[Array], held_out: Sequence[Array], scratch: Path
) -> dict[str, Method]:
    """Train a plain convolutional autoencoder on random crops with Adam."""
    levels = int(np.log2(options.downscale))
    widths = (1, 32, *[64] * (levels - 1))
    layers: list[nn.Module] = []
    for ins, outs in pairwise(widths):
        layers += [nn.Conv2d(ins, outs, 4, 2, 1), nn.BatchNorm2d(outs), nn.ReLU()]
    layers += [nn.Conv2d(widths[-1], options.latent, 1), nn.Conv2d(options.latent, widths[-1], 1)]
    for ins, outs in pairwise((*widths[:0:-1], 16)):
        layers += [nn.ConvTranspose2d(ins, outs, 4, 2, 1), nn.BatchNorm2d(outs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, 1, 1), nn.Sigmoid())

    def loss(crops: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(network(crops), crops)

    train(network, loss, training, options.size, options.minutes)

    def rebuild(image: Array) -> Array:
        height, width = image.shape[2:]
        beyond = [(0, 0), (0, 0), *((0, -side % options.downscale) for side in (height, width))]
        with torch.inference_mode():
            decoded = network(torch.from_numpy(np.pad(image, beyond, "reflect")))
        return np.asarray(decoded.numpy()[:, :, :height, :width])

    return both_ways(AUTOENCODER, rebuild, held_out)


def train_pythae(
    options: argparse.Namespace, training: Sequence[Array], held_out: Sequence[Array], scratch: Path
) -> dict[str, Method]:
    """Train pythae's VAE on random crops by its own loss with Adam; grey is repeated in three channels."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.benchmarks.celeba import Decoder_Conv_AE_CELEBA, Encoder_Conv_VAE_CELEBA

    config = VAEConfig(input_dim=(3, WINDOW, WINDOW), latent_dim=64)
    model = VAE(config, Encoder_Conv_VAE_CELEBA(config), Decoder_Conv_AE_CELEBA(config))

    def loss(crops: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model({"data": crops.expand(-1, 3, -1, -1)}).loss
        return found

    train(model, loss, training, WINDOW, options.minutes)

    def rebuild(image: Array) -> Array:
        total, weight = np.zeros((2, *image.shape[2:]), np.float32)
        corners = product(starts(image.shape[2]), starts(image.shape[3]))
        parts = [np.s_[top : top + WINDOW, left : left + WINDOW] for top, left in corners]
        windows = torch.from_numpy(np.stack([image[0, 0][part] for part in parts]))[:, None].expand(-1, 3, -1, -1)
        with torch.inference_mode():
            rebuilt = model.decoder(model.encoder(windows).embedding).reconstruction.mean(1).numpy()
        for part, window in zip(parts, rebuilt, strict=True):
            total[part] += window
            weight[part] += 1
        return np.asarray((total / weight)[None, None])

    return both_ways(PYTHAE, rebuild, held_out)


def starts(side: int) -> list[int]:
    """Return where windows begin along a side, so that they overlap by a quarter or more."""
    count = max(1, -(-(side - WINDOW) * 4 // (3 * WINDOW)) + 1)
    return [int(start) for start in np.linspace(0, side - WINDOW, count)]


def train(
    network: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    pictures: Sequence[Array],
    side: int,
    minutes: float,
) -> None:
    """Train on random crops with Adam for some minutes, then switch to evaluation."""
    chance = np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        crops = np.empty((BATCH, 1, side, side), np.float32)
        for row, number in enumerate(chance.integers(0, len(pictures), BATCH)):
            image = pictures[number][0, 0]
            top, left = (chance.integers(0, room - side + 1) for room in image.shape)
            crops[row, 0] = image[top : top + side, left : left + side]
        optimiser.zero_grad()
        loss(torch.from_numpy(crops)).backward()  # type: ignore[no-untyped-call]  # in PyTorch's stubs
        optimiser.step()
    network.eval()


def both_ways(name: str, rebuild: Rebuild, held_out: Sequence[Array]) -> dict[str, Method]:
    """Return the method with squared errors, and that with vaekit's statistics of contrast."""
    known: dict[bytes, Array] = {}  # both look at the same pictures

    def once(image: Array) -> Array:
        key = hashlib.sha256(image.data).digest()
        if key not in known:
            known[key] = rebuild(image)
        return known[key]

    pairs = [(image, rebuild(image)) for image in held_out]
    images, decoded = (np.concatenate([pair[side][:, :, :WINDOW, :WINDOW] for pair in pairs]) for side in range(2))
    statistics: ResidualStatistics = measure(images, decoded, SMOOTH, pairs)
    return {
        name: lambda image: Seen({"squared error": smoothed_errors(image, once(image), SMOOTH)[0]}, {}),
        f"{name}, by contrast": lambda image: Seen(
            {"contrast": surprise(image, once(image), statistics, "contrast")[0]}, {}
        ),
    }


def fit_pca(
    options: argparse.Namespace, training: Sequence[Array], held_out: Sequence[Array], scratch: Path
) -> dict[str, Method]:
    """Fit principal components of resized pictures, and the mean picture."""
    small = flattened(training)
    mean = small.mean(axis=0)
    components = np.linalg.svd(small - mean, full_matrices=False)[2]

    def rebuilt(flat: Array, rank: int) -> tuple[Array, Array]:
        again = mean + (flat - mean) @ components[:rank].T @ components[:rank]
        before, after = (part.reshape(-1, 1, SIDE, SIDE) for part in (flat, np.clip(again, 0, 1)))
        return before, after

    statistics = {rank: measure(*rebuilt(flattened(held_out), rank), SMOOTH) for rank in RANKS}

    def look(image: Array, ranks: Sequence[int], *, by_contrast: bool = False) -> Seen:
        maps = {}
        for rank in ranks:
            before, after = rebuilt(flattened([image]), rank)
            if by_contrast:
                (found,) = surprise(before, after, statistics[rank], "contrast")
            else:
                (found,) = smoothed_errors(before, after, SMOOTH)
            maps[f"rank {rank}"] = resized(found, image.shape[2:])
        return Seen(maps, {})

    return {
        "PCA": lambda image: look(image, RANKS),
        "PCA, by contrast": lambda image: look(image, RANKS, by_contrast=True),
        "mean picture": lambda image: look(image, (0,)),
    }


def flattened(images: Sequence[Array]) -> Array:
    """Resize pictures (1, 1, h, w) to SIDE x SIDE: (N, SIDE²)."""
    return np.stack([resized(image[0, 0], (SIDE, SIDE)).ravel() for image in images])


def resized(values: Array, size: tuple[int, ...]) -> Array:
    """Resize numbers (h, w) to another height and width."""
    height, width = size
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def report(results: dict[str, Results], kinds: NDArray[np.str_], kind: str) -> dict[str, Any]:
    """Choose each method's map and score on a kind, measure both on all kinds, and print the table."""
    others = sorted(set(kinds) - {GOOD})
    table = [["method", "score", "map", *(f"{what} AUROC, {each}" for each in others for what in ("image", "pixel"))]]
    found: dict[str, Any] = {}
    samples: dict[str, dict[str, Doubles]] = {}
    for name, result in results.items():
        score, of_map = (best(part) for part in counts_of(result, kinds, kind))
        figures: dict[str, Any] = {"score": score, "map": of_map}
        samples[name] = {}
        for each in others:
            of_scores, of_maps = counts_of(result, kinds, each)
            for what, counts in (("image", of_scores[score]), ("pixel", of_maps[of_map])):
                spread = samples[name][f"{what} {each}"] = auroc(counts, draw_samples(counts))
                figures[f"{what} {each}"] = [float(auroc(counts)[0]), *interval(spread)]
        parts = [figures[key] for key in samples[name]]
        table.append([name, score, of_map, *(f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in parts)])
        found[name] = figures
    print(f"\nchosen on {kind}:")
    print("\n".join(text_table(table)))
    for name in [name for name in results if name != VAEKIT] if VAEKIT in results else ():
        leads = {key: interval(samples[VAEKIT][key] - spread) for key, spread in samples[name].items()}
        text = ", ".join(f"{key} {low:+.3f} to {high:+.3f}" for key, (low, high) in leads.items())
        print(f"vaekit's lead over {name}: {text}")
        found[name]["lead"] = leads
    return found


def best(counts: dict[str, Counts]) -> str:
    """Return the name with the highest AUROC."""
    return max(counts, key=lambda name: float(auroc(counts[name])[0]))


def interval(spread: Doubles) -> tuple[float, float]:
    """Return the interval that holds 95 % of bootstrap samples."""
    low, high = np.quantile(spread, (0.025, 0.975))
    return float(low), float(high)


def counts_of(result: Results, kinds: NDArray[np.str_], kind: str) -> tuple[dict[str, Counts], dict[str, Counts]]:
    """Return the counts of a method's scores and of its maps' pixels, by their name, for one kind of defect."""
    good, bad = kinds == GOOD, kinds == kind
    return (
        {name: image_counts(np.array(scores), good, bad) for name, scores in result.scores.items()},
        {name: pixel_counts(counts, good, bad) for name, counts in result.pixels.items()},
    )


def draw_samples(counts: Counts) -> tuple[Doubles, Doubles]:
    """Draw how often each good picture and each one with a defect is in each bootstrap sample, (SAMPLES, n)."""
    chance = np.random.default_rng(0)
    good, bad = (chance.multinomial(n, np.full(n, 1 / n), SAMPLES) for n in (len(counts.good), len(counts.unusual)))
    return good.astype(np.float64), bad.astype(np.float64)


def image_counts(scores: Doubles, good: NDArray[np.bool_], bad: NDArray[np.bool_]) -> Counts:
    """Return each picture's score as a count of one at its place among all scores."""
    values, places = np.unique(np.concatenate((scores[good], scores[bad])), return_inverse=True)
    each = np.eye(len(values))[places]
    usual, unusual = each[: good.sum()], each[good.sum() :]
    return Counts(usual, np.zeros_like(unusual), unusual)


def pixel_counts(counts: list[tuple[Doubles, Doubles]], good: NDArray[np.bool_], bad: NDArray[np.bool_]) -> Counts:
    """Return the counts of the pictures' pixels by their place among all numbers."""
    usual, unusual = (np.stack([pair[side] for pair in counts]) for side in range(2))
    return Counts(usual[good], usual[bad], unusual[bad])


def auroc(counts: Counts, weights: tuple[Doubles, Doubles] | None = None) -> Doubles:
    """Return the AUROC, ties counted half, for each row of weights of the pictures: (S,)."""
    good, bad = (np.ones((1, len(each))) for each in (counts.good, counts.unusual)) if weights is None else weights
    below, above = good @ counts.good + bad @ counts.beside, bad @ counts.unusual
    half = np.cumsum(below, axis=1) - below / 2
    return np.asarray((above * half).sum(axis=1) / (below.sum(axis=1) * above.sum(axis=1)))


def speed(bundle: Path, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Time maps of pictures of 256x256 beside bare sessions of the same graphs, in turn."""
    chosen = np.stack([resized(each.image[0, 0], (SPEED_SIDE, SPEED_SIDE))[None] for each in pictures[:SPEED_COUNT]])
    vae = package.load(bundle, provider="cpu").at(SPEED_SIDE, SPEED_SIDE)
    encoder, decoder = (
        onnxruntime.InferenceSession(bundle / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )

    def bare() -> None:
        for image in chosen:
            (mu,) = encoder.run(["mu"], {"image": image[None]})
            decoder.run(["image"], {"z": mu})

    def maps() -> None:
        for image in chosen:
            vae.score_map(image[None])

    seconds: dict[str, list[float]] = {"maps": [], "bare": []}
    for _ in range(ROUNDS):
        for name, work in (("maps", maps), ("bare", bare)):
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: SPEED_COUNT / float(np.median(each)) for name, each in seconds.items()}
    spread = ratio(seconds["bare"], seconds["maps"])
    print(
        f"\n256x256: {rates['maps']:.1f} pictures/s with maps, {rates['bare']:.1f} by bare sessions; ratio "
        f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f}); aim 20 pictures/s"
    )
    return rates | {"ratio": spread}


def draw(bundle: Path, pictures: Sequence[Picture], result: Results, folder: Path) -> None:
    """Draw the best, the median and the worst picture of each kind by the peak, each with its map by contrast."""
    vae = package.load(bundle, provider="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    scores = np.array(result.scores["contrast, peak"])
    for kind in sorted({picture.kind for picture in pictures}):
        numbers = [number for number, picture in enumerate(pictures) if picture.kind == kind]
        ranked = sorted(numbers, key=lambda number: -scores[number])
        for place, number in (("highest", ranked[0]), ("middle", ranked[len(ranked) // 2]), ("lowest", ranked[-1])):
            image = pictures[number].image
            sized = vae.at(*image.shape[2:])
            shown = overlay(image[0], sized.reconstruct(image)[0], sized.score_map(image, by="contrast")[0])
            save_picture(shown, folder / f"{kind}-{place}.png")
            print(f"{kind}, {place}: {Path(pictures[number].path).name}, peak {scores[number]:.1f}")


VAEKIT, AUTOENCODER, PYTHAE = "vaekit", "plain autoencoder", "pythae"
METHODS: dict[str, Callable[[argparse.Namespace, Sequence[Array], Sequence[Array], Path], dict[str, Method]]] = {
    VAEKIT: train_vaekit,
    AUTOENCODER: train_autoencoder,
    PYTHAE: train_pythae,
    "PCA": fit_pca,
}

if __name__ == "__main__":
    main()
