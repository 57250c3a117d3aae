"""A smaller bundle passes its quality checks, or nothing changes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import vaekit
from vaekit.bundle.manifest import MANIFEST
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, CheckError, SourceError, UsageError
from vaekit.images.shapes import draw_shapes
from vaekit.types import PRECISIONS, one_of
from vaekit_export.compress import speed
from vaekit_export.compress.compress import compress_bundle
from vaekit_export.compress.judge import array_psnr, run
from vaekit_export.compress.report import Compression

Change = Callable[[dict[str, Any]], object]

FLOAT = TensorProto.FLOAT


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def squeeze(bundle: Path, target: Path, source: str | None = None, **options: Any) -> Compression:
    """Compress without timing, which takes seconds."""
    return compress_bundle(bundle, target, source, **{"seconds": 0.0, **options})


@pytest.fixture(scope="module")
def int8(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Compression:
    return squeeze(small, tmp_path_factory.mktemp("int8") / "bundle", precision="int8", min_psnr=30.0)


# INT8 and float16


def test_int8_is_smaller_and_within_its_bounds(small: Path, int8: Compression) -> None:
    parent, vae = vaekit.load(small, provider="cpu"), vaekit.load(int8.path, provider="cpu")
    assert {graph.precision for graph in vae.manifest.graphs.values()} == {"int8"}
    assert int8.psnr >= 30
    z = parent.sample_latents(256)
    assert array_psnr(vae.decode(z), parent.decode(z), 1.0) == pytest.approx(int8.psnr, abs=0.01)
    assert int8.graphs["encoder"].bytes < 0.7 * int8.graphs["encoder"].parent_bytes
    assert all(graph.in_float == () for graph in int8.graphs.values())
    images = parent.sample(40, seed=9)
    assert vae.elbo_terms(images).elbo.mean() == pytest.approx(parent.elbo_terms(images).elbo.mean(), abs=5)
    operators = [node.op_type for node in onnx.load(int8.path / "decoder.onnx").graph.node]
    assert "QuantizeLinear" in operators
    assert "ConvTranspose" not in operators
    assert int8.graphs["decoder"].rewritten_transposed == 1


def test_int8_weights_are_of_seven_bits_so_that_no_processor_saturates(int8: Compression) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        weights = [w for w in onnx.load(int8.path / name).graph.initializer if w.data_type == TensorProto.INT8]
        matrices = [numpy_helper.to_array(w).astype(int) for w in weights if len(w.dims) > 1]
        assert matrices
        for values in matrices:
            assert np.abs(values).max() <= 64
            assert 2 * 255 * np.abs(values).max() < 2**15  # the sum of two products, in 16 bits


def test_a_compressed_bundle_proves_itself_and_knows_its_parent(small: Path, int8: Compression) -> None:
    vae = vaekit.load(int8.path, provider="cpu")
    assert vae.verify().passed
    with np.load(io.BytesIO(vae.bundle.files["golden.npz"])) as golden, np.load(small / "golden.npz") as old:
        np.testing.assert_array_equal(golden["image"], old["image"])
        np.testing.assert_array_equal(golden["decoded"], run(vae.bundle.files["decoder.onnx"], golden["z"])[0])
        assert np.abs(golden["decoded"] - old["decoded"]).max() > 1e-4
    record = vae.manifest.provenance["compression"]
    assert record["parent"]["manifest_sha256"] == hashlib.sha256((small / MANIFEST).read_bytes()).hexdigest()
    assert record["precision"] == {"encoder": "int8", "decoder": "int8"}
    assert record["psnr"] == int8.psnr
    assert record["processor"]["name"]
    old = read_bundle(small).manifest
    assert vae.manifest.scores == old.scores
    assert vae.manifest.latent == old.latent
    assert vae.manifest.mixture is not None
    assert old.mixture is not None
    np.testing.assert_array_equal(vae.manifest.mixture.cholesky, old.mixture.cholesky)
    assert str(small) not in json.dumps(vae.bundle.document)


def test_tolerances_let_kernels_round_but_no_other_model_pass(
    int8: Compression, tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    allowed = int8.manifest.tolerances["int8"]
    assert allowed["cpu"].atol <= allowed["accelerator"].atol <= allowed["reduced"].atol
    broken = tmp_path / "bundle"
    broken.mkdir()
    for name, data in files_of(int8.path).items():
        (broken / name).write_bytes(data)
    decoder = onnx.load(broken / "decoder.onnx")
    scale = next(w for w in decoder.graph.initializer if w.name.endswith("expand.0.weight_scale"))
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.5), scale.name))
    rewrite(broken, decoder=decoder.SerializeToString())
    assert not vaekit.load(broken, provider="cpu").verify().passed


def test_the_same_bundle_compressed_twice_gives_the_same_graphs(small: Path, int8: Compression, tmp_path: Path) -> None:
    code = (
        "import sys; from vaekit_export.compress.compress import compress_bundle; "
        "compress_bundle(sys.argv[1], sys.argv[2], precision='int8', min_psnr=30.0, seconds=0)"
    )
    subprocess.run([sys.executable, "-c", code, small, tmp_path / "again"], check=True, timeout=300)
    for name in ("encoder.onnx", "decoder.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (int8.path / name).read_bytes()


@pytest.mark.parametrize(
    ("precision", "dtype", "psnr"), [("int8", TensorProto.INT8, 45.0), ("fp16", TensorProto.FLOAT16, 80.0)]
)
def test_weights_alone_leave_arithmetic_and_tolerances_to_float32(
    small: Path, tmp_path: Path, precision: str, dtype: int, psnr: float
) -> None:
    done = squeeze(small, tmp_path / "bundle", precision=precision, weights_only=True)
    vae = vaekit.load(done.path, provider="cpu")
    assert done.psnr > psnr
    for name, graph in done.graphs.items():
        assert graph.precision == vae.manifest.graphs[name].precision == f"{precision}-weights"
        assert graph.bytes < graph.parent_bytes
        stored = onnx.load(done.path / f"{name}.onnx").graph
        assert dtype in {weight.data_type for weight in stored.initializer}
        assert not {node.op_type for node in stored.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert vae.manifest.tolerances[one_of(PRECISIONS, f"{precision}-weights", "precision")]["cpu"].atol < 1e-4
    assert vae.verify().passed


def test_among_int8_weights_the_most_sensitive_are_float16(small: Path, tmp_path: Path) -> None:
    whole = squeeze(small, tmp_path / "whole", precision="int8", weights_only=True)
    options: dict[str, Any] = {"precision": "int8", "weights_only": True, "max_delta_elbo": 100.0}
    done = squeeze(small, tmp_path / "bundle", min_psnr=whole.psnr + 2, **options)
    graph = done.graphs["decoder"]
    assert done.psnr >= whole.psnr + 2
    assert (graph.precision, len(graph.in_float)) == ("int8-weights", 1)
    assert whole.graphs["decoder"].bytes < graph.bytes < graph.parent_bytes
    kinds = {weight.data_type for weight in onnx.load(done.path / "decoder.onnx").graph.initializer}
    assert {TensorProto.INT8, TensorProto.FLOAT16} < kinds


def test_weights_that_are_too_small_to_gain_stay(tmp_path: Path) -> None:
    said: list[str] = []
    maps = Path(__file__).parents[2] / "bundles" / "free"
    done = squeeze(maps, tmp_path / "bundle", precision="int8", weights_only=True, say=said.append)
    assert {name: graph.precision for name, graph in done.graphs.items()} == {
        "encoder": "int8-weights",
        "decoder": "fp32",
    }
    assert said[0] == "lowering the weights of both graphs to int8"
    assert any(line.startswith("decoder: no layer") and "it stays as it is" in line for line in said)
    with pytest.raises(CheckError, match=r"makes neither file smaller: nothing was published"):
        squeeze(maps.with_name("map"), tmp_path / "other", precision="fp16", weights_only=True, min_psnr=999.0)


def test_fp16_keeps_float32_at_its_borders(small: Path, tmp_path: Path) -> None:
    done = squeeze(small, tmp_path / "bundle", precision="fp16")
    vae = vaekit.load(done.path, provider="cpu")
    assert done.psnr > 60
    assert done.delta_elbo is not None
    assert abs(done.delta_elbo.nats) < 0.1
    for name, graph in done.graphs.items():
        stored = onnx.load(done.path / f"{name}.onnx").graph
        assert all(value.type.tensor_type.elem_type == FLOAT for value in (*stored.input, *stored.output))
        large = [weight for weight in stored.initializer if np.prod(weight.dims) > 16]
        assert {weight.data_type for weight in large} == {TensorProto.FLOAT16}
        assert graph.precision == "fp16"
        assert graph.bytes < graph.parent_bytes
    assert vae.verify().passed
    assert vae.sample(2).dtype == np.float32


def test_transposed_convolutions_can_be_kept(small: Path, tmp_path: Path) -> None:
    done = squeeze(small, tmp_path / "bundle", precision="int8", min_psnr=25.0, keep_transposed=True)
    assert done.graphs["decoder"].transposed == 1
    assert done.graphs["decoder"].rewritten_transposed == 0


def test_images_of_a_source_calibrate_and_measure(small: Path, tmp_path: Path) -> None:
    digits = tmp_path / "digits.npy"
    np.save(digits, vaekit.load(small, provider="cpu").sample(30, seed=5)[:, 0])
    said: list[str] = []
    done = squeeze(small, tmp_path / "b", str(digits), precision="int8", min_psnr=25.0, say=said.append)
    assert done.measured_on == "digits.npy"
    assert any("calibrated on 15 images of digits.npy" in line for line in said)


def test_what_misses_the_bound_keeps_its_most_sensitive_layers_in_float(
    small: Path, int8: Compression, tmp_path: Path
) -> None:
    wanted = int8.psnr + 2
    done = squeeze(small, tmp_path / "bundle", precision="int8", min_psnr=wanted, max_delta_elbo=100.0)
    graph = done.graphs["decoder"]
    assert done.psnr >= wanted
    assert graph.in_float
    assert graph.precision == "int8"
    assert done.manifest.provenance["compression"]["in_float"]["decoder"] == list(graph.in_float)
    decoder = onnx.load(done.path / "decoder.onnx")
    quantised = {name for node in decoder.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floating = [node for node in decoder.graph.node if node.name in graph.in_float]
    assert floating
    assert not any(node.input[1] in quantised for node in floating)


def test_what_cannot_be_good_enough_is_not_published(small: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"nothing was published.*--min-psnr") as caught:
        squeeze(small, tmp_path / "bundle", precision="int8", min_psnr=120.0, max_delta_elbo=0.0)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


# Pruning


def test_dead_dimensions_go_and_results_stay(half_dead: Path, tmp_path: Path) -> None:
    parent = vaekit.load(half_dead, provider="cpu")
    done = squeeze(half_dead, tmp_path / "out", prune=True)
    vae = vaekit.load(done.path, provider="cpu")
    assert done.pruned == (1, 3)
    assert vae.latent_shape == (2,)
    assert done.delta_elbo is not None
    assert abs(done.delta_elbo.nats) <= 0.1
    images = parent.sample(20, seed=3)
    (mu, logvar), (old_mu, old_logvar) = vae.posterior(images), parent.posterior(images)
    np.testing.assert_allclose(mu, old_mu[:, [0, 2]], atol=1e-5)
    np.testing.assert_allclose(logvar, old_logvar[:, [0, 2]], atol=1e-5)
    z = old_mu.copy()
    z[:, [1, 3]] = 0.02
    np.testing.assert_allclose(vae.decode(mu), parent.decode(z), atol=1e-5)
    manifest, old = vae.manifest, parent.manifest
    assert manifest.latent.kl == (old.latent.kl[0], old.latent.kl[2])
    assert manifest.latent.mean == (old.latent.mean[0], old.latent.mean[2])
    assert {graph.precision for graph in manifest.graphs.values()} == {"fp32"}
    assert vae.verify().passed
    assert vae.sample(3).shape == (3, 1, 8, 8)


def test_the_pruned_mixture_is_the_marginal(half_dead: Path, tmp_path: Path) -> None:
    old = read_bundle(half_dead).manifest.mixture
    new = squeeze(half_dead, tmp_path / "out", prune=True).manifest.mixture
    assert old is not None
    assert new is not None
    chosen = np.array([0, 2])
    np.testing.assert_array_equal(new.means, old.means[:, chosen])
    covariance = old.cholesky @ old.cholesky.transpose(0, 2, 1)
    np.testing.assert_allclose(
        new.cholesky @ new.cholesky.transpose(0, 2, 1), covariance[:, chosen[:, None], chosen], atol=1e-12
    )


def test_pruning_and_int8_go_together(half_dead: Path, tmp_path: Path) -> None:
    done = squeeze(half_dead, tmp_path / "out", prune=True, precision="int8", min_psnr=25.0)
    assert done.manifest.latent.shape == (2,)
    assert done.graphs["decoder"].precision == "int8"
    assert vaekit.load(done.path, provider="cpu").verify().passed
    # A pruned bundle of float32 can be lowered later as well.
    pruned = squeeze(half_dead, tmp_path / "pruned", prune=True)
    later = squeeze(pruned.path, tmp_path / "later", precision="int8", min_psnr=25.0)
    assert later.manifest.provenance["compression"]["parent"]["compression"]["pruned"] == [1, 3]


def test_a_dimension_that_the_elbo_misses_stays(half_dead: Path, tmp_path: Path, save: Callable[..., None]) -> None:
    manifest = read_bundle(half_dead).manifest
    kl = (0.005, *manifest.latent.kl[1:])  # the manifest wrongly says that dimension 0 is dead
    save(half_dead, dataclasses.replace(manifest, latent=dataclasses.replace(manifest.latent, kl=kl)))
    said: list[str] = []
    done = squeeze(half_dead, tmp_path / "out", prune=True, say=said.append)
    assert done.pruned == (1, 3)
    assert any(line.startswith("dimension 0 is kept") for line in said)


def test_that_the_elbo_rises_without_a_dimensions_noise_is_no_reason_to_keep_it(
    copied_bundle: Path, tmp_path: Path, kill: Callable[..., Path]
) -> None:
    done = squeeze(kill(copied_bundle, heard=0.5), tmp_path / "out", prune=True)
    assert done.pruned == (1, 3)
    assert done.delta_elbo is not None
    assert done.delta_elbo.nats > 0.1


def test_nothing_to_prune_is_an_error_only_where_nothing_else_is_done(small: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nothing to prune.*least is"):
        squeeze(small, tmp_path / "bundle", prune=True, dead_below=0.0)
    said: list[str] = []
    squeeze(small, tmp_path / "bundle", prune=True, dead_below=0.0, precision="fp16", say=said.append)
    assert any("nothing to prune" in line for line in said)


Rates = dict[str, dict[str, float]]


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rates], list[tuple[Path, str, int]]]:
    """Replace timing by fixed images per second; return a list of the requests.

    The speeds depend on graph and precision, and are ten times higher at batch size 64.
    """

    def rate(rates: Rates) -> list[tuple[Path, str, int]]:
        timed: list[tuple[Path, str, int]] = []

        def bench(path: Path, selection: object, chosen: list[Any], *, seconds: float) -> Any:
            (setting,) = chosen
            timed.append((path, setting.operation, setting.batch))
            graph = {"encode": "encoder", "decode": "decoder"}[setting.operation]
            found = rates[graph][read_bundle(path).manifest.graphs[graph].precision]
            yield type("Timing", (), {"images_per_second": found * (10 if setting.batch > 1 else 1)})

        monkeypatch.setattr(speed, "bench", bench)
        return timed

    return rate


def test_speed_is_told_by_graph_and_batch(small: Path, tmp_path: Path, rated: Any) -> None:
    timed = rated({"encoder": {"fp32": 100.0, "fp16": 110.0}, "decoder": {"fp32": 100.0, "fp16": 50.0}})
    done = squeeze(small, tmp_path / "bundle", precision="fp16", weights_only=False, seconds=0.1)
    assert done.graphs["encoder"].speed[1].median == pytest.approx(1.1)
    assert done.graphs["decoder"].speed[64].median == pytest.approx(0.5)
    assert done.graphs["decoder"].tried == {}
    assert [path == small for path, _, _ in timed] == [True, False] * (len(timed) // 2)  # in turn


def test_each_graph_keeps_what_is_faster_here(small: Path, tmp_path: Path, rated: Any) -> None:
    rates = {"fp32": 100.0, "int8-weights": 99.0}
    timed = rated({"encoder": rates | {"int8": 150.0}, "decoder": rates | {"int8": 70.0}})
    done = squeeze(small, tmp_path / "bundle", precision="int8", min_psnr=25.0, seconds=0.1)
    assert {name: graph.precision for name, graph in done.graphs.items()} == {
        "encoder": "int8",
        "decoder": "int8-weights",
    }
    assert done.graphs["encoder"].speed[1].median == pytest.approx(1.5)
    assert done.graphs["encoder"].tried["int8-weights"][64].median == pytest.approx(0.99)
    assert done.graphs["decoder"].tried["int8"][1].median == pytest.approx(0.7)
    assert done.graphs["decoder"].transposed == 1  # integer kernels alone would have removed it
    assert len({path for path, _, _ in timed}) == 3
    vae = vaekit.load(done.path, provider="cpu")
    assert {name: graph.precision for name, graph in vae.manifest.graphs.items()} == {
        name: graph.precision for name, graph in done.graphs.items()
    }
    assert set(vae.manifest.tolerances) == {"fp32", "int8", "int8-weights"}
    assert vae.verify().passed


def test_what_is_hardly_faster_is_no_reason_to_lower_activations(small: Path, tmp_path: Path, rated: Any) -> None:
    rates = {"fp32": 100.0, "fp16": 102.0, "fp16-weights": 100.0}
    rated({"encoder": rates, "decoder": rates})
    done = squeeze(small, tmp_path / "bundle", precision="fp16", seconds=0.1)
    assert {graph.precision for graph in done.graphs.values()} == {"fp16-weights"}


def test_a_graph_that_only_weights_can_be_lowered_of_is_not_left_as_it_was(
    small: Path, tmp_path: Path, rated: Any
) -> None:
    rates = {"fp32": 100.0, "int8": 300.0, "int8-weights": 100.0}
    rated({"encoder": rates, "decoder": rates})
    done = squeeze(small, tmp_path / "b", precision="int8", min_psnr=52.0, max_delta_elbo=100.0, seconds=0.1)
    assert done.graphs["decoder"].precision == "int8-weights"
    assert done.psnr >= 52


# Errors


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "say how to compress"),
        ({"precision": "int4"}, "int8 or fp16"),
        ({"prune": True, "dead_below": -1.0}, "--dead-below"),
        ({"prune": True, "dead_below": float("nan")}, "--dead-below"),
        ({"precision": "int8", "min_psnr": 0.0}, "--min-psnr"),
        ({"precision": "int8", "min_psnr": float("inf")}, "--min-psnr"),
        ({"precision": "int8", "max_delta_elbo": -0.1}, "--max-delta-elbo"),
        ({"precision": "int8", "seconds": -1.0}, "--seconds"),
    ],
)
def test_arguments_that_make_no_sense(small: Path, tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        squeeze(small, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_bundle_is_not_compressed_again(int8: Compression, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="already compressed, to int8"):
        squeeze(int8.path, tmp_path / "bundle", precision="fp16")


def test_a_bundle_is_not_written_over_itself(copied_bundle: Path) -> None:
    before = files_of(copied_bundle)
    with pytest.raises(UsageError, match="is the bundle itself"):
        squeeze(copied_bundle, copied_bundle, precision="fp16")
    assert files_of(copied_bundle) == before


def test_what_is_no_bundle_is_not_replaced(small: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("a letter")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        squeeze(small, tmp_path / "letter", precision="fp16")
    assert (tmp_path / "letter").read_text() == "a letter"


def test_an_older_bundle_is_replaced_only_by_one_that_is_good_enough(small: Path, copied_bundle: Path) -> None:
    before = files_of(copied_bundle)
    with pytest.raises(CheckError):
        squeeze(small, copied_bundle, precision="fp16", min_psnr=150.0, max_delta_elbo=0.0)
    assert files_of(copied_bundle) == before
    squeeze(small, copied_bundle, precision="fp16")
    assert read_bundle(copied_bundle).manifest.graphs["encoder"].precision == "fp16"


def test_calibration_images_that_are_not_there_or_none(small: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("a letter")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "latents.npz", mu=np.zeros((3, 4), np.float32))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for source in ("missing", "letter.txt", "empty", "latents.npz", "broken.png"):
        with pytest.raises(SourceError):
            squeeze(small, tmp_path / "bundle", str(tmp_path / source), precision="int8")
    assert not (tmp_path / "bundle").exists()


def test_colour_pictures_of_another_size_are_fitted_by_the_bundles_rule(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "shapes.npy", draw_shapes(10, (12, 9)).images)
    done = squeeze(small, tmp_path / "b", str(tmp_path / "shapes.npy"), precision="fp16", max_delta_elbo=100.0)
    assert done.delta_elbo is not None
