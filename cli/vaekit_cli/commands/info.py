"""`vaekit info`: what a bundle is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vaekit_cli.options import DEFAULT_MODEL, JsonOption, ModelOption

if TYPE_CHECKING:
    from vaekit.bundle.manifest import Manifest, Scaling
    from vaekit.bundle.reading import Bundle


def info(model: ModelOption = DEFAULT_MODEL, as_json: JsonOption = False) -> None:
    """Check a bundle's files and print what they are."""
    from vaekit.bundle.reading import read_bundle

    bundle = read_bundle(model)
    if as_json:
        sizes = {name: len(data) for name, data in bundle.files.items()}
        print(json.dumps(bundle.document | {"path": str(model), "files": sizes}))
        return
    for name, value in _rows(bundle):
        print(f"{name:<12} {value}")


def _scaling(scaling: Scaling | None) -> str:
    return "" if scaling is None else f"; models trained on it take (z - {scaling.shift:g}) * {scaling.factor:g}"


def _origin(provenance: dict[str, Any]) -> tuple[str, str]:
    if "training" in provenance:
        return "trained on", f"{provenance['dataset']}, {provenance['training'].get('steps')} steps"
    return "came from", f"{provenance['model']}, checked on images of {provenance['dataset']}"


def _scores(manifest: Manifest) -> str:
    scores = manifest.scores
    if scores is None:
        return f"none: {manifest.why_no_elbo}" if manifest.why_no_elbo else "none"
    from vaekit.bundle.manifest import threshold

    quantiles = ", ".join(f"{name} {threshold(name, scores):.1f}" for name in ("p1", "p50", "p99"))
    return f"of {scores.images:,} held-out images, in nats: {quantiles}"


def _compressed(record: dict[str, Any] | None) -> list[tuple[str, str]]:
    """How a compressed bundle was made, and how far it lies from the one that it was made from."""
    if record is None:
        return []
    how = [f"{name} {precision}" for name, precision in record["precision"].items() if precision != "fp32"]
    if record["pruned"]:
        how.append(f"dimensions {', '.join(map(str, record['pruned']))} pruned")
    psnr = "equal" if record["psnr"] is None else f"{record['psnr']:.1f} dB"
    delta = "" if record["delta_elbo"] is None else f"; ELBO {record['delta_elbo']:+.2g} nats"
    told = f"{', '.join(how)}: prior samples {psnr} against the parent's{delta}; parity is the parent's"
    return [("compressed", told)]


def _rows(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    image, likelihood, parity = manifest.image, manifest.likelihood, manifest.parity
    sigma = "" if likelihood.sigma is None else f", sigma {likelihood.sigma:.4g}"
    mixture = manifest.mixture
    free = "" if image.multiple_of is None else f"; --size takes any multiples of {image.multiple_of}"
    off = "" if parity["delta_elbo"] is None else f"; ELBO off by {parity['delta_elbo']:.2g} nats"
    return [
        ("bundle", f"{bundle.path}, format {bundle.document['format_version']}"),
        (
            "image",
            f"{image.channels} x {image.height} x {image.width} (channels x height x width), float32 in [0, 1]{free}",
        ),
        ("made by", image.preprocessing),
        ("latent", f"{manifest.latent.describe()}, {manifest.posterior} posterior{_scaling(manifest.latent.scaling)}"),
        ("likelihood", f"{likelihood.name}{sigma}"),
        ("prior", "N(0, I)" if mixture is None else f"mixture of {len(mixture.weights)} Gaussians, or N(0, I)"),
        *(
            (
                name,
                f"{graph.file}, opset {graph.opset}, IR {graph.ir_version}, {graph.precision}, "
                f"{len(bundle.files[graph.file]) / 1e6:.2f} MB",
            )
            for name, graph in manifest.graphs.items()
        ),
        ("runs on", f"ONNX Runtime from {manifest.minimum_onnxruntime}; vaekit itself needs 1.24"),
        ("scores", _scores(manifest)),
        ("parity", f"passed at atol {parity['atol']:g}, rtol {parity['rtol']:g}{off}"),
        *_compressed(manifest.provenance.get("compression")),
        _origin(manifest.provenance),
        ("made with", ", ".join(f"{tool} {version}" for tool, version in manifest.provenance["tools"].items())),
    ]
