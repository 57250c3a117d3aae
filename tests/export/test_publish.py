"""A run is exported to a bundle that passes its checks, or nothing changes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import vaekit
from vaekit.bundle import writing
from vaekit.bundle.manifest import Manifest, Tolerance, dump_json
from vaekit.bundle.reading import read_bundle
from vaekit.errors import BundleError, ParityError, RunError, UsageError, VaekitError
from vaekit.maths.elbo import kl_standard_normal
from vaekit.training.run import HOLDOUT, MODEL, Run, load_holdout
from vaekit_export import onnx_export, publish
from vaekit_export.onnx_export import ExportedGraph, minimum_onnxruntime, newest_opset
from vaekit_export.parity import BATCH_SIZES, Tolerances
from vaekit_export.passes import apply
from vaekit_export.passes.metadata import tidy
from vaekit_export.publish import Export, export_run

MakeGraph = Callable[..., ExportedGraph]
Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(bundle: Path) -> dict[str, Any]:
    document = json.loads((bundle / "manifest.json").read_text())
    assert isinstance(document, dict)
    return document


def strings(value: object) -> Iterator[str]:
    """Yield every string in a JSON document, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def golden_of(bundle: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def ready_graphs(make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make exports reuse graphs that were exported before, which saves seconds."""

    def ready(module: object, example: object, *, input_name: str, **rest: object) -> bytes:
        return make_graph("encoder" if input_name == "image" else "decoder").onnx

    monkeypatch.setattr(publish, "export_onnx", ready)


@pytest.fixture
def sabotaged_decoder(make_graph: MakeGraph, ready_graphs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make exports change one weight of the decoder."""

    def sabotaged(module: object, example: object, *, input_name: str, **rest: object) -> bytes:
        if input_name == "image":
            return make_graph("encoder").onnx
        model = onnx.load_from_string(make_graph("decoder").onnx)
        weight = next(weight for weight in model.graph.initializer if len(weight.dims) == 4)
        values = numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.5
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        data: bytes = model.SerializeToString()
        return data

    monkeypatch.setattr(publish, "export_onnx", sabotaged)


@pytest.fixture
def older_bundle(published: Export, tmp_path: Path) -> tuple[Path, Files]:
    """Return a bundle at the target of the next export, alone in its folder, and its files."""
    place = tmp_path / "place" / "bundle"
    place.mkdir(parents=True)
    files = files_of(published.path)
    document = json.loads(files["manifest.json"])
    document["provenance"]["note"] = "the older one"
    files["manifest.json"] = json.dumps(document).encode()
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place, files


def assert_untouched(older_bundle: tuple[Path, Files]) -> None:
    place, files = older_bundle
    assert files_of(place) == files
    assert {path.name for path in place.parent.iterdir()} - {"bundle.parity"} == {"bundle"}


def test_a_bundle_holds_its_five_files_and_nothing_else(published: Export) -> None:
    files = files_of(published.path)
    assert sorted(files) == ["decoder.onnx", "encoder.onnx", "golden.npz", "manifest.json", "residuals.npz"]
    assert published.files == {name: len(data) for name, data in files.items()}
    assert [path.name for path in published.path.parent.iterdir()] == ["bundle"]


def test_the_manifest_carries_what_the_run_learnt(published: Export, tiny_run: Run) -> None:
    manifest = read_bundle(published.path).manifest
    assert manifest.image.shape == (3, 16, 13)
    assert manifest.posterior == "diagonal"
    assert manifest.likelihood.name == "gaussian"
    assert tiny_run.variance is not None
    assert manifest.likelihood.sigma == pytest.approx(tiny_run.variance**0.5)
    assert manifest.mixture is not None
    assert tiny_run.mixture is not None
    for part in ("weights", "means", "cholesky"):
        assert np.array_equal(getattr(manifest.mixture, part), getattr(tiny_run.mixture, part))
    images = load_holdout(tiny_run).astype(np.float32) / 255
    mu, logvar = vaekit.load(published.path).posterior(images)
    assert manifest.latent.shape == (2,)
    np.testing.assert_allclose(manifest.latent.mean, mu.mean(0), atol=1e-4)
    np.testing.assert_allclose(manifest.latent.std, mu.std(0), atol=1e-4)
    np.testing.assert_allclose(manifest.latent.kl, kl_standard_normal(mu, logvar).mean(0), atol=1e-3)


def test_the_manifest_tells_what_was_proved(published: Export) -> None:
    parity = manifest_of(published.path)["parity"]
    assert parity["passed"] is True
    assert (parity["atol"], parity["rtol"]) == (1e-5, 1e-4)
    assert parity["batch_sizes"] == list(BATCH_SIZES)
    assert abs(parity["delta_elbo"]) < 0.01
    assert published.delta_elbo == parity["delta_elbo"]
    tried = {(result["graph"], result["output"], result["inputs"], result["count"]) for result in parity["results"]}
    assert {("encoder", output, "held-out images", 20) for output in ("mu", "logvar")} < tried
    assert sum(graph == "decoder" for graph, *_ in tried) == 3  # the normal prior, the mixture, far latents
    assert all(result["max_ratio"] <= 1 for result in parity["results"])


def test_a_bundle_of_another_model_does_not_verify(tiny_run: Run, published: Export, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, data in files_of(published.path).items():
        (bundle / name).write_bytes(data)
    model = onnx.load_from_string((bundle / "decoder.onnx").read_bytes())
    weight = next(weight for weight in model.graph.initializer if len(weight.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    (bundle / "decoder.onnx").write_bytes(model.SerializeToString())
    document = manifest_of(bundle)
    document["graphs"]["decoder"]["sha256"] = hashlib.sha256((bundle / "decoder.onnx").read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(document))
    found = vaekit.load(bundle, provider="cpu").verify()
    assert [check.output for check in found.outputs if not check.passed] == ["image"]


def test_the_oldest_onnx_runtime_is_that_of_the_opset(published: Export) -> None:
    manifest = read_bundle(published.path).manifest
    assert {graph.opset for graph in manifest.graphs.values()} == {17}
    assert manifest.minimum_onnxruntime == minimum_onnxruntime(17) == "1.15.0"


def test_an_opset_that_was_not_tried_names_the_runtime_that_it_was_proved_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export.onnxruntime, "__version__", "9.8.7")  # type: ignore[attr-defined]
    assert minimum_onnxruntime(newest_opset() + 1) == "9.8.7"


def test_the_new_parts_of_a_manifest_survive_the_way_to_json_and_back(published: Export) -> None:
    manifest = published.manifest
    again = Manifest.from_json(json.loads(dump_json(manifest.to_json())))
    assert again.scores == manifest.scores
    assert again.tolerances == manifest.tolerances
    assert again.tolerances["fp32"]["cpu"] == Tolerance(
        manifest.tolerances["fp32"]["cpu"].atol, manifest.tolerances["fp32"]["cpu"].rtol
    )
    assert again.minimum_onnxruntime == manifest.minimum_onnxruntime
    assert json.loads(dump_json(again.to_json())) == manifest_of(published.path)


def test_a_manifest_may_have_no_scores(published: Export) -> None:
    document = manifest_of(published.path)
    document["scores"] = None
    manifest = Manifest.from_json(document)
    assert manifest.scores is None
    assert json.loads(dump_json(manifest.to_json()))["scores"] is None


Change = Callable[[dict[str, Any]], object]

DAMAGES: dict[str, Change] = {
    "no tolerances": lambda document: document.pop("verify"),
    "tolerances of another precision": lambda document: document.update(verify={"fp16": document["verify"]["fp32"]}),
    "a class without tolerances": lambda document: document["verify"]["fp32"].pop("accelerator"),
    "a tolerance without its half": lambda document: document["verify"]["fp32"]["cpu"].pop("rtol"),
    "a tolerance in words": lambda document: document["verify"]["fp32"]["cpu"].update(atol="small"),
    "a tolerance below nothing": lambda document: document["verify"]["fp32"]["cpu"].update(atol=-1e-5),
    "a tolerance that allows everything": lambda document: document["verify"]["fp32"]["cpu"].update(rtol=np.inf),
    "a tolerance that is no number": lambda document: document["verify"]["fp32"]["reduced"].update(atol=np.nan),
    "tolerances in a list": lambda document: document.update(verify=[1e-5]),
    "scores left out": lambda document: document.pop("scores"),
    "scores without a seed": lambda document: document["scores"].pop("seed"),
    "no quantiles": lambda document: document["scores"].update(quantiles={}),
    "quantiles in a list": lambda document: document["scores"].update(quantiles=[1.0, 2.0]),
    "a quantile that is no number": lambda document: document["scores"]["quantiles"].update(p50=np.nan),
    "a quantile in words": lambda document: document["scores"]["quantiles"].update(p50="middling"),
    "no oldest ONNX Runtime": lambda document: document.pop("minimum_onnxruntime"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_manifest_is_refused(published: Export, tmp_path: Path, what: str) -> None:
    for name, data in files_of(published.path).items():
        (tmp_path / name).write_bytes(data)
    document = manifest_of(tmp_path)
    DAMAGES[what](document)
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"manifest\.json") as caught:
        read_bundle(tmp_path)
    assert "\n" not in str(caught.value)


def test_provenance_names_tools_and_settings_but_no_place(published: Export, tiny_run: Run) -> None:
    document = manifest_of(published.path)
    provenance = document["provenance"]
    assert provenance["dataset"] == "secret-shapes.npy"
    assert {"vaekit", "python", "torch", "onnx", "onnxruntime", "numpy"} <= set(provenance["tools"])
    assert provenance["tools"]["vaekit"] == vaekit.__version__
    assert provenance["settings"]["latent"] == 2
    assert provenance["training"]["steps"] == 40
    assert not [text for text in strings(document) if text.startswith(("/", "~", "\\")) or ":\\" in text]
    for name, data in files_of(published.path).items():
        for place in (tiny_run.path.parent, tiny_run.path, Path.home(), Path.cwd(), published.path):
            assert str(place).encode() not in data, name


def test_exporting_again_gives_the_same_graphs(published: Export, make_graph: MakeGraph) -> None:
    """Both exports used different example inputs. tests/cli compares two processes."""
    for name in ("encoder", "decoder"):
        assert apply((published.path / f"{name}.onnx").read_bytes(), tidy) == make_graph(name).onnx  # but for metadata


def test_an_older_bundle_is_replaced(
    tiny_run: Run, older_bundle: tuple[Path, Files], published: Export, ready_graphs: None
) -> None:
    place, _ = older_bundle
    export_run(tiny_run.path, place)
    assert "note" not in manifest_of(place)["provenance"]
    assert [path.name for path in place.parent.iterdir()] == ["bundle"]
    assert files_of(place)["decoder.onnx"] == files_of(published.path)["decoder.onnx"]


def test_a_parity_failure_publishes_nothing(tiny_run: Run, tmp_path: Path, sabotaged_decoder: None) -> None:
    with pytest.raises(ParityError, match="nothing was published: decoder, output image"):
        export_run(tiny_run.path, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.parity"]


def test_a_parity_failure_keeps_the_older_bundle(
    tiny_run: Run, older_bundle: tuple[Path, Files], sabotaged_decoder: None
) -> None:
    with pytest.raises(ParityError):
        export_run(tiny_run.path, older_bundle[0])
    assert_untouched(older_bundle)


def test_tolerances_decide(tiny_run: Run, tmp_path: Path, ready_graphs: None) -> None:
    with pytest.raises(ParityError):
        export_run(tiny_run.path, tmp_path / "strict", tolerances=Tolerances(0.0, 0.0))
    loose = tmp_path / "an empty folder"
    loose.mkdir()
    export_run(tiny_run.path, loose, tolerances=Tolerances(0.01, 0.02))
    assert manifest_of(loose)["parity"]["atol"] == 0.01
    for tolerance in read_bundle(loose).manifest.tolerances["fp32"].values():  # tolerances for devices are not smaller
        assert tolerance.atol >= 0.01
        assert tolerance.rtol >= 0.02


@pytest.mark.parametrize("name", ["encoder.onnx", "manifest.json"])
def test_a_full_disk_keeps_the_older_bundle(
    tiny_run: Run,
    older_bundle: tuple[Path, Files],
    ready_graphs: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        if path.name == name:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(VaekitError, match=r"cannot write .*bundle: No space left on device"):
        export_run(tiny_run.path, older_bundle[0])
    assert_untouched(older_bundle)


def test_a_rename_that_fails_brings_the_older_bundle_back(
    tiny_run: Run, older_bundle: tuple[Path, Files], ready_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = older_bundle
    replace, failed = os.replace, False

    def fail_once(source: Path, target: Path) -> None:
        nonlocal failed
        if Path(target).absolute() == place and not failed:
            failed = True
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    monkeypatch.setattr("vaekit.system.files._exchange", lambda one, other: False)  # as on a system without it
    with pytest.raises(VaekitError, match="cannot write"):
        export_run(tiny_run.path, place)
    assert failed
    assert_untouched(older_bundle)


def test_an_interrupt_while_writing_keeps_the_older_bundle(
    tiny_run: Run, older_bundle: tuple[Path, Files], ready_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, **rest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "read_bundle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_run(tiny_run.path, older_bundle[0])
    assert_untouched(older_bundle)


def test_a_bundle_that_fails_its_own_checks_is_not_published(
    tiny_run: Run, older_bundle: tuple[Path, Files], ready_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: write(path, data[:-1]))
    with pytest.raises(VaekitError, match="nothing was published"):
        export_run(tiny_run.path, older_bundle[0])
    assert_untouched(older_bundle)


def test_what_is_no_bundle_is_never_replaced(tiny_run: Run, tmp_path: Path, ready_graphs: None) -> None:
    file, folder, web = tmp_path / "letter", tmp_path / "photos", tmp_path / "web-page"
    file.write_text("a letter")
    folder.mkdir()
    (folder / "photo.jpg").write_text("a photo")
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "My page", "icons": []}')  # many programs' files have that name
    (web / "index.html").write_text("a page")
    for target in (file, folder, web):
        before = files_of(target) if target.is_dir() else target.read_bytes()
        with pytest.raises(BundleError, match="is not a bundle"):
            export_run(tiny_run.path, target)
        assert (files_of(target) if target.is_dir() else target.read_bytes()) == before


def test_golden_samples_hold_no_held_out_image(tiny_run: Run, tmp_path: Path, ready_graphs: None) -> None:
    said: list[str] = []
    done = export_run(str(tiny_run.path), str(tmp_path / "bundle"), golden="samples", say=said.append)
    assert done.path == tmp_path / "bundle"
    assert "opset 17" in said[0]
    golden = golden_of(tmp_path / "bundle")
    held_out = load_holdout(tiny_run).astype(np.float32) / np.float32(255)
    for image in golden["image"]:
        assert np.abs(held_out - image).max(axis=(1, 2, 3)).min() > 0.02
    for name, data in files_of(tmp_path / "bundle").items():
        assert all(image.tobytes() not in data for image in held_out), name
    mu, logvar = vaekit.load(tmp_path / "bundle").posterior(golden["image"])
    np.testing.assert_allclose(mu, golden["mu"], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(logvar, golden["logvar"], atol=1e-5, rtol=1e-4)
    assert vaekit.load(tmp_path / "bundle", provider="cpu").verify().passed


def test_an_opset_out_of_range_comes_before_all_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opset 16"):
        export_run(tmp_path / "no such run", tmp_path / "bundle", opset=16)


@pytest.mark.parametrize("missing", [MODEL, HOLDOUT])
def test_a_run_that_is_not_whole_is_refused(tiny_run: Run, tmp_path: Path, missing: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name, data in files_of(tiny_run.path).items():
        if "/" not in name and name != missing:
            (run / name).write_bytes(data)
    with pytest.raises(RunError, match=missing):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
