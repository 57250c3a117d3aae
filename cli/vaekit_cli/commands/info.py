"""`vaekit info`: describe a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaekit.errors import UsageError
from vaekit.output.table import text_table
from vaekit_cli.options import DEFAULT_MODEL, JsonOption, ModelOption

if TYPE_CHECKING:
    from vaekit.bundle.manifest import Manifest, Scaling
    from vaekit.bundle.reading import Bundle

Rows = list[tuple[str, str]]


def info(
    model: ModelOption = DEFAULT_MODEL,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Print one hash of the whole bundle, and nothing else.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's files and describe them."""
    from vaekit.bundle.reading import read_bundle

    if sha256 and as_json:
        raise UsageError("--sha256 and --json print different things: give one of them")
    bundle = read_bundle(model)
    if sha256:
        print(bundle.sha256)
        return
    if as_json:
        sizes = {name: len(data) for name, data in bundle.files.items()}
        print(json.dumps(bundle.document | {"path": str(model), "files": sizes}))
        return
    for line in text_table(_rows(bundle)):
        print(line)


def _rows(bundle: Bundle) -> Rows:
    manifest = bundle.manifest
    return [
        ("bundle", f"{bundle.path}, format {bundle.document['format_version']}"),
        *_model(manifest),
        *_graphs(bundle),
        ("runs on", f"ONNX Runtime {manifest.minimum_onnxruntime} or later; vaekit itself needs 1.24"),
        ("scores", _scores(manifest)),
        *_parity(manifest.parity),
        *_compression(_mapping(manifest.provenance, "compression")),
        *_origin(manifest.provenance),
        *_signature(bundle),
    ]


def _model(manifest: Manifest) -> Rows:
    image, likelihood = manifest.image, manifest.likelihood
    sigma = "" if likelihood.sigma is None else f", sigma {likelihood.sigma:.4g}"
    step = image.multiple_of
    free = "" if step is None else f"; --size may be anything from {step}x{step} on, padded to multiples of {step}"
    return [
        (
            "image",
            f"{image.channels} x {image.height} x {image.width} (channels x height x width), float32 in [0, 1]{free}",
        ),
        ("preprocessing", image.preprocessing),
        ("latent", f"{manifest.latent.describe()}, {manifest.posterior} posterior{_scaling(manifest.latent.scaling)}"),
        ("likelihood", f"{likelihood.name}{sigma}"),
        ("prior", _priors(manifest)),
        *([("labels", ", ".join(manifest.labels))] if manifest.labels else []),
        *_attributes(manifest),
    ]


def _attributes(manifest: Manifest) -> Rows:
    found = manifest.attributes
    if found is None:
        return []
    labels = f"{', '.join(found.labels)}; the likeliest is right for {found.accuracy:.0%} of images"
    factors = [f"{factor.name} (R^2 {factor.r2:.2f})" for factor in found.factors]
    return [("attributes", labels), *([("factors", ", ".join(factors))] if factors else [])]


def _priors(manifest: Manifest) -> str:
    flow, mixture = manifest.flow, manifest.mixture
    learned = [] if flow is None else [f"flow of {flow.steps} steps"]
    fitted = [] if mixture is None else [f"mixture of {len(mixture.weights)} Gaussians"]
    return ", or ".join((*learned, *fitted, "N(0, I)"))


def _scaling(scaling: Scaling | None) -> str:
    if scaling is None:
        return ""
    z = f"(z - {scaling.shift:g}" + (" - mean" if scaling.mean else "") + f") * {scaling.factor:g}"
    per_channel = ", mean and std of each channel" if scaling.mean or scaling.std else ""
    return f"; models trained on it expect {z}{' / std' if scaling.std else ''}{per_channel}"


def _graphs(bundle: Bundle) -> Rows:
    return [
        (
            name,
            f"{graph.file}, opset {graph.opset}, IR {graph.ir_version}, {graph.precision}, "
            f"{len(bundle.files[graph.file]) / 1e6:.2f} MB",
        )
        for name, graph in bundle.manifest.graphs.items()
    ]


def _scores(manifest: Manifest) -> str:
    scores = manifest.scores
    if scores is None:
        return f"none: {manifest.why_no_elbo}" if manifest.why_no_elbo else "none"
    quantiles = ", ".join(f"p{percent} {scores.percentile(percent):.1f}" for percent in (1, 50, 99))
    return f"of {scores.images:,} held-out images, in nats: {quantiles}"


# Other programs may write other keys into parity and provenance. Missing keys are not printed.


def _parity(record: Mapping[str, Any]) -> Rows:
    tolerances = [f"{name} {record[name]:g}" for name in ("atol", "rtol") if _is_number(record, name)]
    off = f"; ELBO off by {record['delta_elbo']:.2g} nats" if _is_number(record, "delta_elbo") else ""
    return [("parity", f"passed at {', '.join(tolerances)}{off}")] if tolerances else []


def _compression(record: Mapping[str, Any]) -> Rows:
    """Describe how a compressed bundle was made, and how it differs from its parent."""
    precisions = _mapping(record, "precision")
    pruned = record.get("pruned")
    parts = [f"{graph} {precision}" for graph, precision in precisions.items() if precision != "fp32"]
    if isinstance(pruned, list) and pruned:
        parts.append(f"dimensions {', '.join(map(str, pruned))} pruned")
    if not parts:
        return []
    psnr = f"{record['psnr']:.1f} dB" if _is_number(record, "psnr") else "equal"
    quality = f": prior samples {psnr} against the parent's" if "psnr" in record else ""
    delta = f"; ELBO {record['delta_elbo']:+.2g} nats" if _is_number(record, "delta_elbo") else ""
    return [("compressed", f"{', '.join(parts)}{quality}{delta}; parity is the parent's")]


def _origin(provenance: Mapping[str, Any]) -> Rows:
    dataset, model = provenance.get("dataset"), provenance.get("model")
    steps = _mapping(provenance, "training").get("steps")
    tools = _mapping(provenance, "tools")
    rows: Rows = []
    if model is not None:
        rows.append(("came from", f"{model}, checked on images of {dataset}" if dataset else str(model)))
    elif dataset is not None:
        rows.append(("trained on", f"{dataset}, {steps} steps" if steps is not None else str(dataset)))
    if tools:
        rows.append(("tools", ", ".join(f"{tool} {version}" for tool, version in tools.items())))
    return rows


def _signature(bundle: Bundle) -> Rows:
    if bundle.signature is None:
        return []
    from vaekit.bundle.signature import parse_signature

    try:
        found = bundle.signed or parse_signature(bundle.signature)
    except ValueError as error:
        return [("signature", f"unreadable: {error}")]
    if bundle.signed is None:
        return [("signature", f"said to be by {found.key_name}; `vaekit verify --signed-by KEY` checks it")]
    return [("signature", f"by {found.describe()}")]


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object in a record, or an empty one."""
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_number(record: Mapping[str, Any], key: str) -> bool:
    return isinstance(record.get(key), int | float)
