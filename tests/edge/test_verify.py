"""A device that reproduces PyTorch's results passes; for any other, verify reports where and how far it is off."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vaekit import verify as verification
from vaekit.bundle.manifest import Tolerance
from vaekit.errors import BundleError, ProviderError
from vaekit.ort.providers import CPU, PROVIDERS
from vaekit.types import PROVIDER_CLASSES, Array, ProviderClass
from vaekit.vae import VAE, load
from vaekit.verify import OutputCheck, Verification, compare

Golden = dict[str, Any]

CUDA, COREML, XNNPACK = (PROVIDERS[name] for name in ("cuda", "coreml", "xnnpack"))
TOLERANCE = Tolerance(1e-3, 1e-2)
NAMES = [("encoder", "mu"), ("encoder", "logvar"), ("decoder", "image")]

quick = settings(max_examples=50, deadline=None, derandomize=True, database=None)


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


def put_golden(bundle: Path, data: bytes) -> None:
    """Replace golden.npz, and update the hash in the manifest."""
    (bundle / "golden.npz").write_bytes(data)
    edit_manifest(bundle, lambda document: document["golden"].update(sha256=hashlib.sha256(data).hexdigest()))


def alter_golden(bundle: Path, change: Callable[[Golden], object]) -> None:
    """Change the golden vectors, as if PyTorch had computed something else."""
    with np.load(bundle / "golden.npz") as arrays:
        golden = dict(arrays)
    change(golden)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden)
    put_golden(bundle, buffer.getvalue())


def declare(bundle: Path, precision: str, *graphs: str) -> None:
    """Declare another precision for graphs, with its own tolerances."""

    def change(document: dict[str, Any]) -> None:
        for graph in graphs:
            document["graphs"][graph]["precision"] = precision
        document["verify"][precision] = {
            kind: {"atol": atol, "rtol": 0.0} for kind, atol in zip(PROVIDER_CLASSES, (0.1, 0.2, 0.3), strict=True)
        }

    edit_manifest(bundle, change)


def pretend(vae: VAE, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Simulate graphs on another machine, with other placements or results."""
    graphs = {name: vae.graph(name) for name in ("encoder", "decoder")}
    results: Callable[[str, Array], Array] | None = changes.pop("results", None)
    for name, graph in graphs.items():
        session = graph.session if results is None else _Session(graph.session, results)
        graphs[name] = dataclasses.replace(graph, session=session, **changes)
    monkeypatch.setattr(vae, "graph", graphs.__getitem__)


class _Session:
    """A session whose outputs are changed."""

    def __init__(self, session: Any, alter: Callable[[str, Array], Array]) -> None:
        self._session, self._alter = session, alter

    def run(self, outputs: list[str], feeds: Mapping[str, Array]) -> list[Array]:
        found = self._session.run(outputs, feeds)
        return [self._alter(name, array.copy()) for name, array in zip(outputs, found, strict=True)]


def failed(found: Verification) -> list[str]:
    return [check.output for check in found.outputs if not check.passed]


def only(found: Verification, output: str) -> OutputCheck:
    (check,) = (check for check in found.outputs if check.output == output)
    return check


@pytest.fixture
def vae(tiny_bundle: Path) -> VAE:
    return load(tiny_bundle, provider="cpu")


def test_the_cpu_computes_what_pytorch_computed(vae: VAE) -> None:
    found = vae.verify()
    assert found.passed
    assert [(check.graph, check.output) for check in found.outputs] == NAMES
    assert all(check.passed and check.finite for check in found.outputs)
    assert found.provider == "cpu"
    assert found.placement == {"encoder": {CPU: 7}, "decoder": {CPU: 6}}
    assert (found.fell_back, found.causes) == ((), ())
    for check in found.outputs:
        assert 0 <= check.max_abs < 1e-5
        assert check.psnr is None or check.psnr > 100
        assert check.tolerance == vae.manifest.tolerances["fp32"]["cpu"]
    assert [check.differing_pixels for check in found.outputs] == [None, None, 0]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_holds_whatever_the_batch_size(tiny_bundle: Path, batch_size: int) -> None:
    assert load(tiny_bundle, provider="cpu", batch_size=batch_size).verify().passed


def test_a_zipped_bundle_is_verified_too(tiny_bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for file in tiny_bundle.iterdir():
            archive.write(file, file.name)
    assert load(tmp_path / "b.zip", provider="cpu").verify().passed


@pytest.mark.parametrize(("array", "output"), [("mu", "mu"), ("logvar", "logvar"), ("decoded", "image")])
@pytest.mark.parametrize("row", [0, 7])
def test_a_result_that_differs_is_found(copied_bundle: Path, array: str, output: str, row: int) -> None:
    def shift(golden: Golden) -> None:
        value = golden[array][row].flat[-1]
        golden[array][row].flat[-1] = value + 0.25 if value < 0.5 else value - 0.25

    alter_golden(copied_bundle, shift)
    found = load(copied_bundle, provider="cpu").verify()
    assert not found.passed
    assert failed(found) == [output]
    check = only(found, output)
    assert check.finite
    assert check.max_abs == pytest.approx(0.25, abs=1e-4)
    assert check.differing_pixels == (1 if output == "image" else None)
    assert found.causes == ()


@pytest.mark.parametrize("array", ["image", "z"])
def test_other_inputs_give_other_results(copied_bundle: Path, array: str) -> None:
    alter_golden(copied_bundle, lambda golden: golden.update({array: golden[array][::-1]}))
    assert failed(load(copied_bundle, provider="cpu").verify()) == (["image"] if array == "z" else ["mu", "logvar"])


@pytest.mark.parametrize("off", [0.5, 2.0])
def test_the_manifests_tolerance_decides(copied_bundle: Path, off: float) -> None:
    allowed = load(copied_bundle).manifest.tolerances["fp32"]["cpu"]

    def shift(golden: Golden) -> None:
        golden["logvar"] += np.float32(off) * (allowed.atol + allowed.rtol * np.abs(golden["logvar"]))

    alter_golden(copied_bundle, shift)
    assert load(copied_bundle, provider="cpu").verify().passed == (off < 1)


@pytest.mark.parametrize("wrong", ["alone", "together"])
@pytest.mark.parametrize("output", ["mu", "logvar", "image"])
def test_batches_of_one_and_of_many_are_both_tried(
    vae: VAE, monkeypatch: pytest.MonkeyPatch, wrong: str, output: str
) -> None:
    def alter(name: str, array: Array) -> Array:
        if name == output and (len(array) == 1) == (wrong == "alone"):
            array[-1] = 0.5
        return array

    pretend(vae, monkeypatch, results=alter)
    assert failed(vae.verify()) == [output]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("output", ["mu", "logvar", "image"])
def test_results_that_are_not_finite_never_pass(
    vae: VAE, monkeypatch: pytest.MonkeyPatch, output: str, value: float
) -> None:
    def alter(name: str, array: Array) -> Array:
        if name == output:
            array[-1].flat[0] = value
        return array

    pretend(vae, monkeypatch, results=alter)
    found = vae.verify()
    assert not found.passed
    assert failed(found) == [output]
    check = only(found, output)
    assert (check.finite, check.max_abs, check.psnr) == (False, math.inf, -math.inf)


@pytest.mark.parametrize(
    ("placement", "kind"),
    [
        ({CPU: 6}, "cpu"),
        ({XNNPACK: 2, CPU: 4}, "cpu"),
        ({CUDA: 6}, "accelerator"),
        ({CPU: 5, CUDA: 1}, "accelerator"),
        ({"AbacusExecutionProvider": 6}, "accelerator"),
        ({COREML: 1, CPU: 5}, "reduced"),
        ({COREML: 1, CUDA: 5}, "reduced"),
    ],
)
def test_the_tolerance_is_the_loosest_of_the_providers_that_hold_nodes(
    vae: VAE, monkeypatch: pytest.MonkeyPatch, placement: dict[str, int], kind: ProviderClass
) -> None:
    pretend(vae, monkeypatch, placement=placement)
    found = vae.verify()
    assert {check.tolerance for check in found.outputs} == {vae.manifest.tolerances["fp32"][kind]}
    assert found.placement == {"encoder": placement, "decoder": placement}
    assert found.passed


def test_each_graph_has_the_tolerance_of_its_precision(copied_bundle: Path) -> None:
    declare(copied_bundle, "int8", "decoder")
    alter_golden(copied_bundle, lambda golden: golden["decoded"].__imul__(np.float32(0.95)))
    vae = load(copied_bundle, provider="cpu")
    found = vae.verify()
    assert only(found, "image").tolerance == Tolerance(0.1, 0.0)
    assert only(found, "mu").tolerance == vae.manifest.tolerances["fp32"]["cpu"]
    assert found.passed


def test_what_fell_back_is_told(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = {
        "encoder": dataclasses.replace(vae.graph("encoder"), provider="cuda", fell_back=("encoder: one", "both")),
        "decoder": dataclasses.replace(vae.graph("decoder"), fell_back=("decoder: two", "both")),
    }
    monkeypatch.setattr(vae, "graph", graphs.__getitem__)
    found = vae.verify()
    assert found.fell_back == ("encoder: one", "both", "decoder: two")
    assert found.provider == "cuda and cpu"
    assert found.passed


def test_a_provider_that_does_not_run_is_no_result(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, array: Array) -> Array:
        raise RuntimeError("out of memory")

    pretend(vae, monkeypatch, results=fail)
    with pytest.raises(ProviderError, match="out of memory"):
        vae.verify()


# Likely causes


def blame(bundle: Path, monkeypatch: pytest.MonkeyPatch, off: float = 0.7, **changes: Any) -> str:
    """Return the reported causes if mu is off by this much."""
    alter_golden(bundle, lambda golden: golden["mu"].__iadd__(np.float32(off)))
    vae = load(bundle, provider="cpu")
    pretend(vae, monkeypatch, **changes)
    found = vae.verify()
    assert failed(found) == ["mu"]
    return "; ".join(found.causes)


@pytest.mark.parametrize(
    ("flags", "placement", "blamed"),
    [
        pytest.param({"sse4_2", "avx2", "fma"}, {CPU: 7}, True, id="avx2"),
        pytest.param({"avx2", "avx512f", "avx512bw"}, {CUDA: 3, CPU: 4}, True, id="avx512 for a part"),
        pytest.param({"avx2", "avx512f", "avx512_vnni"}, {CPU: 7}, False, id="vnni"),
        pytest.param({"avx2", "avx_vnni"}, {CPU: 7}, False, id="vnni of 256 bits"),
        pytest.param({"asimd", "asimddp"}, {CPU: 7}, False, id="arm"),
        pytest.param(set(), {CPU: 7}, False, id="a system that does not say"),
        pytest.param({"avx2"}, {CUDA: 7}, False, id="no node on the processor"),
    ],
)
def test_saturating_int8_is_blamed_on_processors_that_saturate(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], placement: dict[str, int], blamed: bool
) -> None:
    declare(copied_bundle, "int8", "encoder")
    monkeypatch.setattr(verification, "processor_flags", lambda: frozenset(flags))
    assert ("VNNI" in blame(copied_bundle, monkeypatch, placement=placement)) == blamed


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_processor_is_not_blamed_for_what_it_has_no_part_in(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    declare(copied_bundle, precision, "decoder")
    monkeypatch.setattr(verification, "processor_flags", lambda: frozenset({"avx2"}))
    assert blame(copied_bundle, monkeypatch) == ""  # the error is in the encoder


def test_nothing_is_blamed_where_all_is_well(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(copied_bundle, "int8", "encoder", "decoder")
    monkeypatch.setattr(verification, "processor_flags", lambda: frozenset({"avx2"}))
    vae = load(copied_bundle, provider="cpu")
    pretend(vae, monkeypatch, options={"use_tf32": "1"}, placement={COREML: 6})
    found = vae.verify()
    assert found.passed
    assert found.causes == ()


@pytest.mark.parametrize(
    ("precision", "off", "blamed"), [("fp16", 6e4, True), ("fp16", 1, False), ("fp32", 6e4, False)]
)
def test_numbers_that_float16_does_not_hold_are_blamed_on_it(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str, off: float, blamed: bool
) -> None:
    declare(copied_bundle, precision, "encoder")
    assert ("float16" in blame(copied_bundle, monkeypatch, off)) == blamed


def test_infinities_of_float16_are_blamed_on_it(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(copied_bundle, "fp16", "decoder")
    vae = load(copied_bundle, provider="cpu")
    pretend(vae, monkeypatch, results=lambda name, array: array * np.float32(math.inf) if name == "image" else array)
    found = vae.verify()
    assert failed(found) == ["image"]
    assert "overflow in float16" in found.causes[0]


def test_a_provider_of_fewer_bits_is_blamed(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = blame(copied_bundle, monkeypatch, placement={COREML: 5, CUDA: 2})
    assert text == "CoreML computes at lower precision than float32"


@pytest.mark.parametrize(("option", "blamed"), [("1", True), ("0", False)])
def test_tf32_is_blamed_where_it_was_asked_for(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch, option: str, blamed: bool
) -> None:
    text = blame(copied_bundle, monkeypatch, placement={CUDA: 7}, options={"use_tf32": option})
    assert ("use_tf32=1" in text) == blamed


def test_each_cause_is_told_once_and_in_one_line(copied_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(copied_bundle, "fp16", "encoder", "decoder")
    vae = load(copied_bundle, provider="cpu")
    pretend(vae, monkeypatch, results=lambda name, array: np.full_like(array, np.nan), placement={COREML: 6})
    found = vae.verify()
    assert failed(found) == ["mu", "logvar", "image"]
    assert len(found.causes) == len(set(found.causes)) == 2
    assert all("\n" not in cause for cause in found.causes)


# Damaged golden vectors


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    return buffer.getvalue()


def broken_stream(whole: bytes) -> bytes:
    """Return an archive whose first member cannot be decompressed."""
    data = bytearray(whole)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        start = 30 + len(archive.infolist()[0].filename) + int.from_bytes(data[28:30], "little")
    data[start : start + 8] = b"\xff" * 8
    return bytes(data)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda whole: b"",
    "no archive": lambda whole: b"no archive of arrays",
    "half of it": lambda whole: whole[: len(whole) // 2],
    "an array alone": lambda whole: npy(),
    "a stream that does not decompress": broken_stream,
    "pickled objects": lambda whole: npz(image=np.array([{}], dtype=object)),
    "an array too few": lambda whole: npz(image=np.zeros((1, 1, 8, 8), np.float32)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_golden_vectors_that_cannot_be_read_are_damage(copied_bundle: Path, what: str) -> None:
    put_golden(copied_bundle, DAMAGED[what]((copied_bundle / "golden.npz").read_bytes()))
    vae = load(copied_bundle, provider="cpu")
    with pytest.raises(BundleError, match=r"golden\.npz") as caught:
        vae.verify()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


UNFIT: dict[str, Callable[[Golden], object]] = {
    "images of another size": lambda golden: golden.update(image=golden["image"][..., :7]),
    "images beyond 1": lambda golden: golden["image"].__iadd__(np.float32(2)),
    "latents of another width": lambda golden: golden.update(z=golden["z"][:, :3]),
    "latents that are NaN": lambda golden: golden["z"].fill(np.nan),
    "results of another width": lambda golden: golden.update(mu=golden["mu"][:, :3]),
    "results of fewer rows": lambda golden: golden.update(decoded=golden["decoded"][:3]),
    "results of one row, which would be stretched": lambda golden: golden.update(logvar=golden["logvar"][:1]),
    "results that are NaN": lambda golden: golden["mu"].fill(np.nan),
    "integers": lambda golden: golden.update(image=golden["image"].astype(np.int64)),
    "no rows": lambda golden: golden.update({name: array[:0] for name, array in golden.items()}),
}


@pytest.mark.parametrize("what", UNFIT)
def test_golden_vectors_that_do_not_fit_the_bundle_are_damage(copied_bundle: Path, what: str) -> None:
    alter_golden(copied_bundle, UNFIT[what])
    vae = load(copied_bundle, provider="cpu")
    with pytest.raises(BundleError, match=r"golden\.npz") as caught:
        vae.verify()
    assert "\n" not in str(caught.value)


# Comparing


def arrays(values: st.SearchStrategy[float]) -> st.SearchStrategy[Array]:
    return hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3)), elements=values)


numbers = st.floats(-1e6, 1e6, width=32)
small = st.floats(0, 0.125, width=32)


@quick
@given(st.data(), small, small)
def test_outputs_agree_where_every_element_does(data: st.DataObject, atol: float, rtol: float) -> None:
    expected = data.draw(arrays(st.one_of(numbers, st.just(0.0))))
    noise = data.draw(hnp.arrays(np.float32, expected.shape, elements=st.floats(-0.25, 0.25, width=32)))
    actual = (expected + 8 * noise * (atol + rtol * np.abs(expected))).astype(np.float32)
    check = compare("encoder", "mu", actual, expected, Tolerance(atol, rtol))
    pairs = [(float(a), float(b)) for a, b in zip(actual.flat, expected.flat, strict=True)]
    assert check.passed == all(abs(a - b) <= atol + rtol * abs(b) for a, b in pairs)
    assert check.max_abs == max(abs(a - b) for a, b in pairs)
    assert check.max_rel == max((abs(a - b) / abs(b) for a, b in pairs if b), default=0.0)
    assert check.finite
    assert (check.psnr is None) == (actual == expected).all()
    assert (check.graph, check.output, check.differing_pixels) == ("encoder", "mu", None)


@quick
@given(arrays(numbers))
def test_an_output_equals_itself(values: Array) -> None:
    check = compare("encoder", "mu", values, values.copy(), Tolerance(0.0, 0.0))
    assert check.passed
    assert (check.max_abs, check.max_rel, check.psnr) == (0.0, 0.0, None)


@quick
@given(arrays(numbers), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_one_element_that_is_not_finite_is_enough(values: Array, value: float, data: st.DataObject) -> None:
    actual = values.copy()
    actual.flat[data.draw(st.integers(0, values.size - 1))] = value
    check = compare("encoder", "mu", actual, values, Tolerance(1e30, 1e30))
    assert not check.passed
    assert (check.finite, check.max_abs, check.psnr) == (False, math.inf, -math.inf)


def test_a_check_in_json_has_null_for_what_json_cannot_say() -> None:
    image = np.zeros((1, 1, 2, 2), np.float32)
    document = compare("decoder", "image", np.full_like(image, np.nan), image, TOLERANCE).to_json()
    assert document == {
        "graph": "decoder",
        "output": "image",
        "passed": False,
        "finite": False,
        "max_abs": None,
        "max_rel": 0.0,
        "psnr": None,
        "differing_pixels": 4,
        "atol": TOLERANCE.atol,
        "rtol": TOLERANCE.rtol,
    }


def test_the_psnr_of_images_is_against_a_peak_of_one() -> None:
    black = np.zeros((2, 1, 4, 4), np.float32)
    assert compare("decoder", "image", black + np.float32(0.1), black, TOLERANCE).psnr == pytest.approx(20, abs=1e-5)
    assert compare("decoder", "image", black + 1, black, TOLERANCE).psnr == pytest.approx(0)


def test_the_psnr_of_others_is_against_their_range() -> None:
    expected = np.array([[-3, 2]], np.float32)
    assert compare("encoder", "mu", expected + np.float32(0.5), expected, TOLERANCE).psnr == pytest.approx(20)
    same = np.full((1, 2), 7, np.float32)
    assert compare("encoder", "mu", same + 1, same, TOLERANCE).psnr == pytest.approx(0)


def test_pixels_differ_where_their_bytes_do() -> None:
    expected = np.full((2, 1, 2, 3), 100 / 255, np.float32)
    actual = expected.copy()
    actual[0, 0, 0, 0] += np.float32(1 / 255)
    actual[1, 0, 1, 2] -= np.float32(40 / 255)
    actual[0, 0, 1, 1] += np.float32(0.4 / 255)  # rounds to the same byte
    assert compare("decoder", "image", actual, expected, TOLERANCE).differing_pixels == 2
    actual[0, 0, 1, 0] = np.nan
    assert compare("decoder", "image", actual, expected, TOLERANCE).differing_pixels == 3


def test_a_pixel_that_is_not_finite_differs_from_any() -> None:
    white = np.ones((1, 1, 1, 4), np.float32)
    actual = np.array([math.inf, -math.inf, math.nan, 1], np.float32).reshape(white.shape)
    for expected in (white, np.zeros_like(white)):
        actual[..., 3] = expected[..., 3]
        assert compare("decoder", "image", actual, expected, TOLERANCE).differing_pixels == 3


def test_a_pixel_of_three_channels_is_one_pixel() -> None:
    expected = np.zeros((1, 3, 2, 2), np.float32)
    actual = expected.copy()
    actual[0, :, 0, 0] = 1
    actual[0, 1, 1, 1] = 1
    assert compare("decoder", "image", actual, expected, TOLERANCE).differing_pixels == 2
