"""A bundle becomes a smaller one that is good enough and proves itself, or nothing changes."""

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
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import vaekit
from vaekit.bundle.manifest import MANIFEST, Manifest, dump_json
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, CheckError, ExportError, SourceError, UsageError
from vaekit.images.shapes import draw_shapes
from vaekit.maths.elbo import kl_standard_normal, log_likelihood
from vaekit.maths.prior import Mixture
from vaekit.types import PRECISIONS, one_of
from vaekit_export.compress import speed
from vaekit_export.compress.compress import Compression, compress_bundle
from vaekit_export.compress.judge import Delta, Graphs, Judge, Limits, decibels, run
from vaekit_export.passes.precision import layers_of, lower, to_int8
from vaekit_export.passes.prune import marginal, prune_decoder, prune_encoder
from vaekit_export.passes.subpixel import as_convolutions

Array = NDArray[np.float32]
Change = Callable[[dict[str, Any]], object]

FLOAT = TensorProto.FLOAT


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def squeeze(bundle: Path, target: Path, source: str | None = None, **options: Any) -> Compression:
    """Compressed without timing, which takes seconds and proves nothing."""
    return compress_bundle(bundle, target, source, **{"seconds": 0.0, **options})


def rewrite(bundle: Path, **graphs: bytes) -> None:
    """Put other graphs into a bundle, with a manifest that fits."""
    manifest = read_bundle(bundle).manifest
    specs = dict(manifest.graphs)
    for name, data in graphs.items():
        (bundle / specs[name].file).write_bytes(data)
        specs[name] = dataclasses.replace(specs[name], sha256=hashlib.sha256(data).hexdigest())
    save(bundle, dataclasses.replace(manifest, graphs=specs))


def save(bundle: Path, manifest: Manifest) -> None:
    (bundle / MANIFEST).write_text(dump_json(manifest.to_json()))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edge's tiny bundle: real digits of 8 x 8 pixels, four latent dimensions."""
    return Path(__file__).parents[2] / "bundles" / "tiny"


@pytest.fixture(scope="module")
def int8(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Compression:
    return squeeze(small, tmp_path_factory.mktemp("int8") / "bundle", precision="int8", min_psnr=30.0)


@pytest.fixture
def half_dead(copied_bundle: Path) -> Path:
    """The tiny bundle with dimensions 1 and 3 dead: constant posteriors N(0.02, 1), and no weight in the decoder."""
    return kill(copied_bundle, heard=1e-3)


def kill(bundle: Path, heard: float) -> Path:
    """Let dimensions 1 and 3 of a bundle be dead, and the decoder hear so much of them."""
    files = read_bundle(bundle).files
    encoder = onnx.load_from_string(files["encoder.onnx"])
    for weight in encoder.graph.initializer:
        if weight.name.startswith(("mu.", "logvar.")):
            values = numpy_helper.to_array(weight).copy()
            values[[1, 3]] = 0.02 if weight.name == "mu.bias" else 0.0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    decoder = onnx.load_from_string(files["decoder.onnx"])
    for weight in decoder.graph.initializer:
        if weight.name == "expand.0.weight":
            values = numpy_helper.to_array(weight).copy()
            values[:, [1, 3]] *= heard
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    rewrite(bundle, encoder=encoder.SerializeToString(), decoder=decoder.SerializeToString())
    manifest = read_bundle(bundle).manifest
    kl, mean = list(manifest.latent.kl), list(manifest.latent.mean)
    kl[1], kl[3], mean[1], mean[3] = 0.0002, 0.0003, 0.02, 0.02
    latent = dataclasses.replace(manifest.latent, kl=tuple(kl), mean=tuple(mean))
    save(bundle, dataclasses.replace(manifest, latent=latent))
    return bundle


# INT8 and float16


def test_int8_is_smaller_and_within_its_bounds(small: Path, int8: Compression) -> None:
    parent, vae = vaekit.load(small, provider="cpu"), vaekit.load(int8.path, provider="cpu")
    assert {graph.precision for graph in vae.manifest.graphs.values()} == {"int8"}
    assert int8.psnr >= 30
    z = parent.sample_latents(256)
    assert decibels(vae.decode(z), parent.decode(z), 1.0) == pytest.approx(int8.psnr, abs=0.01)
    assert int8.halves["encoder"].bytes < 0.7 * int8.halves["encoder"].parent_bytes
    assert all(half.in_float == () for half in int8.halves.values())
    images = parent.sample(40, seed=9)
    assert vae.elbo_terms(images).elbo.mean() == pytest.approx(parent.elbo_terms(images).elbo.mean(), abs=5)
    operators = [node.op_type for node in onnx.load(int8.path / "decoder.onnx").graph.node]
    assert "QuantizeLinear" in operators
    assert "ConvTranspose" not in operators
    assert int8.halves["decoder"].rewritten == 1


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


def test_tolerances_let_kernels_round_but_no_other_model_pass(int8: Compression, tmp_path: Path, small: Path) -> None:
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
        "import sys; from vaekit_export.compress import compress_bundle; "
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
    for name, half in done.halves.items():
        assert half.precision == vae.manifest.graphs[name].precision == f"{precision}-weights"
        assert half.bytes < half.parent_bytes
        graph = onnx.load(done.path / f"{name}.onnx").graph
        assert dtype in {weight.data_type for weight in graph.initializer}
        assert not {node.op_type for node in graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert vae.manifest.tolerances[one_of(PRECISIONS, f"{precision}-weights", "precision")]["cpu"].atol < 1e-4
    assert vae.verify().passed


def test_among_int8_weights_the_most_sensitive_are_float16(small: Path, tmp_path: Path) -> None:
    whole = squeeze(small, tmp_path / "whole", precision="int8", weights_only=True)
    options: dict[str, Any] = {"precision": "int8", "weights_only": True, "max_delta_elbo": 100.0}
    done = squeeze(small, tmp_path / "bundle", min_psnr=whole.psnr + 2, **options)
    half = done.halves["decoder"]
    assert done.psnr >= whole.psnr + 2
    assert (half.precision, len(half.in_float)) == ("int8-weights", 1)
    assert whole.halves["decoder"].bytes < half.bytes < half.parent_bytes
    kinds = {weight.data_type for weight in onnx.load(done.path / "decoder.onnx").graph.initializer}
    assert {TensorProto.INT8, TensorProto.FLOAT16} < kinds


def test_weights_that_are_too_small_to_gain_stay(tmp_path: Path) -> None:
    said: list[str] = []
    maps = Path(__file__).parents[2] / "bundles" / "free"
    done = squeeze(maps, tmp_path / "bundle", precision="int8", weights_only=True, say=said.append)
    assert {name: half.precision for name, half in done.halves.items()} == {
        "encoder": "int8-weights",
        "decoder": "fp32",
    }
    assert said[0] == "lowering the weights of both graphs to int8"
    assert any(line.startswith("decoder: no layer") and "it stays as it is" in line for line in said)
    with pytest.raises(CheckError, match=r"or would be smaller so, nothing was published"):
        squeeze(maps.with_name("map"), tmp_path / "other", precision="fp16", weights_only=True, min_psnr=999.0)


def test_fp16_keeps_float32_at_its_borders(small: Path, tmp_path: Path) -> None:
    done = squeeze(small, tmp_path / "bundle", precision="fp16")
    vae = vaekit.load(done.path, provider="cpu")
    assert done.psnr > 60
    assert done.delta_elbo is not None
    assert abs(done.delta_elbo.nats) < 0.1
    for name, half in done.halves.items():
        graph = onnx.load(done.path / f"{name}.onnx").graph
        assert all(value.type.tensor_type.elem_type == FLOAT for value in (*graph.input, *graph.output))
        large = [weight for weight in graph.initializer if np.prod(weight.dims) > 16]
        assert {weight.data_type for weight in large} == {TensorProto.FLOAT16}
        assert half.precision == "fp16"
        assert half.bytes < half.parent_bytes
    assert vae.verify().passed
    assert vae.sample(2).dtype == np.float32


def test_transposed_convolutions_can_be_kept(small: Path, tmp_path: Path) -> None:
    done = squeeze(small, tmp_path / "bundle", precision="int8", min_psnr=25.0, keep_transposed=True)
    assert done.halves["decoder"].transposed == 1
    assert done.halves["decoder"].rewritten == 0


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
    half = done.halves["decoder"]
    assert done.psnr >= wanted
    assert half.in_float
    assert half.precision == "int8"
    assert done.manifest.provenance["compression"]["in_float"]["decoder"] == list(half.in_float)
    decoder = onnx.load(done.path / "decoder.onnx")
    quantised = {name for node in decoder.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floating = [node for node in decoder.graph.node if node.name in half.in_float]
    assert floating
    assert not any(node.input[1] in quantised for node in floating)


def test_what_cannot_be_good_enough_is_not_published(small: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"nothing was published.*--min-psnr") as caught:
        squeeze(small, tmp_path / "bundle", precision="int8", min_psnr=120.0, max_delta_elbo=0.0)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_sensitive_layers_are_left_out_in_the_order_that_was_measured() -> None:
    loss = {"a": 5.0, "b": 1.0, "c": 3.0}  # dB by layer; ten may be lost

    def convert(keep: Any) -> bytes:
        return ",".join(name for name in loss if name not in keep).encode()

    def headroom(limit: float) -> Callable[[bytes], float]:
        return lambda data: limit - sum(loss[name] for name in data.decode().split(",") if name)

    cases = {9.0: (), 8.0: ("a",), 3.0: ("a", "c"), 0.5: None}
    for limit, kept in cases.items():
        found = lower(list(loss), convert, headroom(limit))
        assert (found.in_float if found else None) == (kept if limit < 9 else ()), limit


def test_a_layer_is_a_weight_and_what_follows_it(small: Path) -> None:
    layers = layers_of((small / "decoder.onnx").read_bytes())
    assert [len(nodes) for nodes in layers.values()] == [4, 2]
    assert sum(len(nodes) for nodes in layers.values()) == len(onnx.load(small / "decoder.onnx").graph.node)


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ExportError, match="could not quantise"):
        to_int8(b"no graph", "image", np.zeros((2, 1, 8, 8), np.float32))


# Transposed convolutions as ordinary ones


def transposed(kernel: tuple[int, int], stride: int, pads: list[int], *, bias: bool, output_padding: int = 0) -> bytes:
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.standard_normal((3, 2, *kernel)).astype(np.float32), "w")]
    if bias:
        weights.append(numpy_helper.from_array(random.standard_normal(2).astype(np.float32), "b"))
    extra: dict[str, Any] = {"output_padding": [output_padding] * 2} if output_padding else {}
    node = helper.make_node(
        "ConvTranspose", ["x", *(w.name for w in weights)], ["y"], "up", strides=[stride] * 2, pads=pads, **extra
    )
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 5, 4])
    y = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph([node], "up", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return data


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        ((4, 4), 2, [1, 1, 1, 1]),
        ((3, 3), 2, [1, 1, 1, 1]),
        ((4, 3), 2, [1, 1, 1, 1]),
        ((2, 2), 2, [0, 0, 0, 0]),
        ((5, 5), 3, [2, 1, 1, 2]),
        ((3, 3), 1, [1, 1, 1, 1]),
        ((1, 1), 2, [0, 0, 0, 0]),
    ],
)
def test_a_transposed_convolution_is_an_ordinary_one_with_its_pixels_put_in_place(
    kernel: tuple[int, int], stride: int, pads: list[int], bias: bool
) -> None:
    data = transposed(kernel, stride, pads, bias=bias)
    model = onnx.load_from_string(data)
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 4)).astype(np.float32)
    assert as_convolutions(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert "ConvTranspose" not in [node.op_type for node in model.graph.node]
    (expected,), (actual,) = run(data, x), run(model.SerializeToString(), x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_other_transposed_convolutions_are_left_alone() -> None:
    model = onnx.load_from_string(transposed((1, 1), 2, [0, 0, 0, 0], bias=False, output_padding=1))
    model.graph.node[0].attribute.append(helper.make_attribute("dilations", [2, 2]))
    before = model.SerializeToString()
    assert as_convolutions(model) == 0
    assert model.SerializeToString() == before


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
    assert done.halves["decoder"].precision == "int8"
    assert vaekit.load(done.path, provider="cpu").verify().passed
    # A pruned bundle of float32 can be lowered later as well.
    pruned = squeeze(half_dead, tmp_path / "pruned", prune=True)
    later = squeeze(pruned.path, tmp_path / "later", precision="int8", min_psnr=25.0)
    assert later.manifest.provenance["compression"]["parent"]["compression"]["pruned"] == [1, 3]


def test_a_dimension_that_the_elbo_misses_stays(half_dead: Path, tmp_path: Path) -> None:
    manifest = read_bundle(half_dead).manifest
    kl = (0.005, *manifest.latent.kl[1:])  # dimension 0 is said to be dead, and is not
    save(half_dead, dataclasses.replace(manifest, latent=dataclasses.replace(manifest.latent, kl=kl)))
    said: list[str] = []
    done = squeeze(half_dead, tmp_path / "out", prune=True, say=said.append)
    assert done.pruned == (1, 3)
    assert any(line.startswith("dimension 0 stays") for line in said)


def test_that_the_elbo_rises_without_a_dimensions_noise_is_no_reason_to_keep_it(
    copied_bundle: Path, tmp_path: Path
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


def test_a_decoder_that_does_not_begin_linearly_is_not_pruned() -> None:
    z, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in "zy")
    graph = helper.make_graph([helper.make_node("Sigmoid", ["z"], ["y"])], "g", [z], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ExportError, match="first layer is Sigmoid"):
        prune_decoder(model.SerializeToString(), (0, 1), np.zeros(3))


def test_an_output_without_a_linear_head_is_gathered() -> None:
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    pruned = prune_encoder(model.SerializeToString(), (0, 2))
    np.testing.assert_array_equal(run(pruned, rows)[0], run(model.SerializeToString(), rows)[0][:, [0, 2]])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed_weight", [True, False])
@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
def test_dimensions_fold_into_any_linear_first_layer(operator: str, transposed_weight: bool, bias: bool) -> None:
    if operator == "MatMul" and (bias or transposed_weight):
        pytest.skip("MatMul has neither")
    random = np.random.default_rng(0)
    weight = random.standard_normal((5, 3) if transposed_weight else (3, 5)).astype(np.float32)
    weights = [numpy_helper.from_array(weight, "w")]
    if bias:
        weights.append(numpy_helper.from_array(random.standard_normal(5).astype(np.float32), "b"))
    attributes: dict[str, Any] = (
        {"transB": int(transposed_weight), "alpha": 0.5, "beta": 2.0} if operator == "Gemm" else {}
    )
    node = helper.make_node(operator, ["z", *(w.name for w in weights)], ["y"], "first", **attributes)
    z, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", size]) for name, size in (("z", 3), ("y", 5)))
    graph = helper.make_graph([node], "g", [z], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    means = np.array([0.3, -1.0, 0.7])
    rows = random.standard_normal((4, 3)).astype(np.float32)
    rows[:, 1] = means[1]
    pruned = prune_decoder(model.SerializeToString(), (0, 2), means)
    np.testing.assert_allclose(
        run(pruned, rows[:, [0, 2]])[0], run(model.SerializeToString(), rows)[0], rtol=1e-5, atol=1e-6
    )


def test_marginals_of_a_mixture_have_its_moments() -> None:
    random = np.random.default_rng(0)
    cholesky = np.tril(random.standard_normal((2, 3, 3)))
    for k in range(2):
        np.fill_diagonal(cholesky[k], 1.5)
    mixture = Mixture(np.array([0.25, 0.75]), random.standard_normal((2, 3)), cholesky)
    whole = marginal(mixture, (0, 1, 2))
    np.testing.assert_allclose(whole.cholesky, cholesky, atol=1e-12)
    assert marginal(mixture, (2,)).cholesky.shape == (2, 1, 1)


# Measuring


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
    alive = Graphs(
        prune_encoder(judge.parent.encoder, (1, 2)), prune_decoder(judge.parent.decoder, (1, 2), means), (1, 2)
    )
    with pytest.raises(CheckError, match=r"changes by -.* may fall by 0\.1, nothing was published"):
        judge.check(alive)


def test_the_change_of_the_elbo_is_what_much_noise_gives(copied_bundle: Path) -> None:
    """Against 4,000 noise vectors for each image, drawn otherwise."""
    vae = vaekit.load(kill(copied_bundle, heard=0.3), provider="cpu")
    images, means = vae.sample(8), np.array(vae.manifest.latent.mean)
    judge = Judge(vae, images, Limits(42.0, 0.1))
    pruned = Graphs(
        prune_encoder(judge.parent.encoder, (0, 2)), prune_decoder(judge.parent.decoder, (0, 2), means), (0, 2)
    )
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


def test_decibels() -> None:
    a = np.zeros((2, 5), np.float32)
    assert decibels(a, a, 1.0) == np.inf
    assert decibels(a + np.float32(0.1), a, 1.0) == pytest.approx(20, abs=1e-4)
    assert decibels(a * np.nan, a, 1.0) == -np.inf


Rates = dict[str, dict[str, float]]


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rates], list[tuple[Path, str, int]]]:
    """Instead of timing, images a second by graph and precision, ten times as many at batch size 64; what was asked."""

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
    assert done.halves["encoder"].speed[1].median == pytest.approx(1.1)
    assert done.halves["decoder"].speed[64].median == pytest.approx(0.5)
    assert done.halves["decoder"].tried == {}
    assert [path == small for path, _, _ in timed] == [True, False] * (len(timed) // 2)  # in turn


def test_each_half_keeps_what_is_faster_here(small: Path, tmp_path: Path, rated: Any) -> None:
    rates = {"fp32": 100.0, "int8-weights": 99.0}
    timed = rated({"encoder": rates | {"int8": 150.0}, "decoder": rates | {"int8": 70.0}})
    done = squeeze(small, tmp_path / "bundle", precision="int8", min_psnr=25.0, seconds=0.1)
    assert {name: half.precision for name, half in done.halves.items()} == {
        "encoder": "int8",
        "decoder": "int8-weights",
    }
    assert done.halves["encoder"].speed[1].median == pytest.approx(1.5)
    assert done.halves["encoder"].tried["int8-weights"][64].median == pytest.approx(0.99)
    assert done.halves["decoder"].tried["int8"][1].median == pytest.approx(0.7)
    assert done.halves["decoder"].transposed == 1  # which integer kernels alone had been rid of
    assert len({path for path, _, _ in timed}) == 3
    vae = vaekit.load(done.path, provider="cpu")
    assert {name: graph.precision for name, graph in vae.manifest.graphs.items()} == {
        name: half.precision for name, half in done.halves.items()
    }
    assert set(vae.manifest.tolerances) == {"fp32", "int8", "int8-weights"}
    assert vae.verify().passed


def test_what_is_hardly_faster_is_no_reason_to_lower_activations(small: Path, tmp_path: Path, rated: Any) -> None:
    rates = {"fp32": 100.0, "fp16": 102.0, "fp16-weights": 100.0}
    rated({"encoder": rates, "decoder": rates})
    done = squeeze(small, tmp_path / "bundle", precision="fp16", seconds=0.1)
    assert {half.precision for half in done.halves.values()} == {"fp16-weights"}


def test_a_half_that_only_weights_can_be_lowered_of_is_not_left_as_it_was(
    small: Path, tmp_path: Path, rated: Any
) -> None:
    rates = {"fp32": 100.0, "int8": 300.0, "int8-weights": 100.0}
    rated({"encoder": rates, "decoder": rates})
    done = squeeze(small, tmp_path / "b", precision="int8", min_psnr=52.0, max_delta_elbo=100.0, seconds=0.1)
    assert done.halves["decoder"].precision == "int8-weights"
    assert done.psnr >= 52


# Refusals


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
    with pytest.raises(BundleError, match="compressed already, to int8"):
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
