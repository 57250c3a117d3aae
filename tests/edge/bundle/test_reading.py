from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaekit
from vaekit.bundle import reading
from vaekit.bundle.manifest import DECODER, ENCODER, FORMAT_VERSION, GOLDEN, MANIFEST, Manifest, dump_json
from vaekit.bundle.reading import Bundle, read_bundle, read_golden
from vaekit.errors import BundleError

Document = dict[str, Any]


def edit(bundle: Path, change: Callable[[Document], None]) -> None:
    """Change a bundle's manifest."""
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    change(document)
    manifest.write_text(json.dumps(document))


def replace_graph(bundle: Path, name: str, data: bytes) -> None:
    """Replace a graph's bytes, and update the hash in the manifest."""
    (bundle / f"{name}.onnx").write_bytes(data)
    edit(bundle, lambda document: document["graphs"][name].update(sha256=hashlib.sha256(data).hexdigest()))


def pack(bundle: Path, target: Path, folder: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in bundle.iterdir():
            archive.write(file, folder + file.name)
    return target


def message(at: int, *parts: bytes | str) -> bytes:
    """Return a protocol buffer's field of fewer than 128 bytes."""
    body = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    assert len(body) < 128
    return bytes((at << 3 | 2, len(body))) + body


def assert_refused(bundle: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    text = str(caught.value)
    assert all(word in text for word in (str(bundle), *words)), text


def assert_whole(bundle: Bundle, original: Path) -> None:
    assert bundle.files == {name: (original / name).read_bytes() for name in (MANIFEST, ENCODER, DECODER, GOLDEN)}
    assert bundle.document == json.loads((original / "manifest.json").read_text())


def test_a_folder_is_read(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    assert_whole(bundle, tiny_bundle)
    manifest = bundle.manifest
    assert (manifest.image.shape, manifest.latent.shape) == ((1, 8, 8), (4,))
    assert manifest.likelihood.name == "gaussian"
    assert manifest.posterior == "diagonal"
    assert set(manifest.graphs) == {"encoder", "decoder"}
    assert manifest.mixture is not None
    assert manifest.mixture.means.shape[1] == 4


def test_a_folder_named_by_a_string_is_read(tiny_bundle: Path) -> None:
    assert read_bundle(str(tiny_bundle)).path == tiny_bundle


@pytest.mark.parametrize("folder", ["", "vae-onnx/", "a/b/"])
def test_a_zip_is_read(tiny_bundle: Path, tmp_path: Path, folder: str) -> None:
    assert_whole(read_bundle(pack(tiny_bundle, tmp_path / "b.zip", folder)), tiny_bundle)


def test_a_zip_of_what_a_shell_makes_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", tiny_bundle.parent, tiny_bundle.name)
    assert_whole(read_bundle(archive), tiny_bundle)


def test_keys_and_files_of_later_versions_are_let_be(copied_bundle: Path) -> None:
    edit(copied_bundle, lambda document: document.update(minimum_onnxruntime="1.24"))
    (copied_bundle / "README.txt").write_text("mine")
    assert read_bundle(copied_bundle).document["minimum_onnxruntime"] == "1.24"


def test_a_bundle_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none", "there is no bundle", "vaekit export")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "not a bundle", "manifest.json")


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "golden.npz"])
def test_a_missing_file_is_named(copied_bundle: Path, tmp_path: Path, name: str) -> None:
    (copied_bundle / name).unlink()
    assert_refused(copied_bundle, name, "missing")
    assert_refused(pack(copied_bundle, tmp_path / "b.zip"), name)


def test_a_zip_with_nameless_entries_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = pack(tiny_bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(zipfile.ZipInfo(""), b"")
        opened.writestr(zipfile.ZipInfo("/"), b"")
    assert_whole(read_bundle(archive), tiny_bundle)


def test_what_else_a_zip_holds_is_let_be(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = pack(tiny_bundle, tmp_path / "b.zip", "vae/")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("vae/old/decoder.onnx", b"another")
        opened.writestr("__MACOSX/vae/decoder.onnx", b"another")
    assert_whole(read_bundle(archive), tiny_bundle)


def test_a_zip_of_several_bundles_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = pack(tiny_bundle, tmp_path / "b.zip", "a/")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("b/manifest.json", b"{}")
    assert_refused(archive, "contains 2 bundles")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_whose_stream_is_damaged_is_refused(tiny_bundle: Path, tmp_path: Path, compression: int) -> None:
    archive = tmp_path / "b.zip"
    with zipfile.ZipFile(archive, "w", compression) as opened:
        for file in tiny_bundle.iterdir():
            opened.write(file, file.name)
    assert_whole(read_bundle(archive), tiny_bundle)
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        entries = opened.infolist()
    for entry in entries:
        middle = entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2
        data[middle : middle + 8] = b"\xff" * 8
    archive.write_bytes(data)
    assert_refused(archive)


def test_a_zip_without_a_manifest_is_refused(copied_bundle: Path, tmp_path: Path) -> None:
    (copied_bundle / "manifest.json").unlink()
    assert_refused(pack(copied_bundle, tmp_path / "b.zip"), "manifest.json")


def test_a_folder_where_a_file_should_be_is_refused(copied_bundle: Path) -> None:
    (copied_bundle / "decoder.onnx").unlink()
    (copied_bundle / "decoder.onnx").mkdir()
    assert_refused(copied_bundle, "decoder.onnx", "cannot read")


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "golden.npz"])
def test_an_altered_byte_is_found(copied_bundle: Path, name: str) -> None:
    data = bytearray((copied_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied_bundle / name).write_bytes(data)
    assert_refused(copied_bundle, name, "sha256")


def test_a_newer_format_is_refused_with_the_way_out(copied_bundle: Path) -> None:
    edit(copied_bundle, lambda document: document.update(format_version=FORMAT_VERSION + 1, image=None))
    assert_refused(copied_bundle, str(FORMAT_VERSION + 1), "pip install -U vaekit")


def test_another_tools_manifest_is_refused(copied_bundle: Path) -> None:
    edit(copied_bundle, lambda document: document.update(format="web-extension"))
    assert_refused(copied_bundle, "web-extension")


@pytest.mark.parametrize(
    "text",
    [
        *("", "not JSON", "[]", "null", "3", '"text"', "{}", '{"format": "vaekit-bundle"}', "\xff"),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_manifest_that_is_none_is_refused(copied_bundle: Path, text: str) -> None:
    (copied_bundle / "manifest.json").write_bytes(text.encode("latin-1"))
    assert_refused(copied_bundle, "manifest.json")


@pytest.mark.parametrize(
    "path",
    [
        *("image", "latent", "posterior", "likelihood", "prior", "graphs", "golden", "parity", "provenance"),
        *("image.height", "image.preprocessing", "latent.kl", "likelihood.sigma", "golden.sha256"),
        *("graphs.decoder", "graphs.encoder.sha256", "graphs.encoder.outputs", "prior.mixture.means"),
    ],
)
def test_a_missing_key_is_named(copied_bundle: Path, path: str) -> None:
    def remove(document: Document) -> None:
        *above, key = path.split(".")
        for name in above:
            document = document[name]
        del document[key]

    edit(copied_bundle, remove)
    assert_refused(copied_bundle, "manifest.json", repr(path.rpartition(".")[2]), "missing")


DAMAGE: dict[str, Callable[[Document], None]] = {
    "image is a list": lambda document: document.update(image=[1, 8, 8]),
    "height is a word": lambda document: document["image"].update(height="tall"),
    "height is infinite": lambda document: document["image"].update(height=float("inf")),
    "a mean beyond floats": lambda document: document["latent"].update(mean=[10**400] * 4),
    "shape is a number": lambda document: document["latent"].update(shape=4),
    "graphs is null": lambda document: document.update(graphs=None),
    "prior is a word": lambda document: document.update(prior="normal"),
    "weights of sum 2": lambda document: document["prior"]["mixture"].update(weights=[2.0]),
    "means of unequal lengths": lambda document: document["prior"]["mixture"]["means"][0].pop(),
    "an input without a name": lambda document: document["graphs"]["encoder"]["inputs"][0].pop("name"),
    "parity is a list": lambda document: document.update(parity=[1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_manifest_of_wrong_values_is_refused(copied_bundle: Path, damage: str) -> None:
    edit(copied_bundle, DAMAGE[damage])
    assert_refused(copied_bundle, "manifest.json", "damaged")


CONTRADICTIONS: dict[str, Callable[[Document], None]] = {
    "image": lambda document: document["image"].update(height=16),
    "latent": lambda document: document["latent"].update(shape=[5]),
    "mixture": lambda document: document["prior"].update(
        mixture={"weights": [1.0], "means": [[0.0, 0.0]], "cholesky": [[[1.0, 0.0], [0.0, 1.0]]]}
    ),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_manifest_that_contradicts_its_graphs_is_refused(copied_bundle: Path, what: str) -> None:
    edit(copied_bundle, CONTRADICTIONS[what])
    assert_refused(copied_bundle)


@pytest.mark.parametrize("part", ["decoder", "golden"])
@pytest.mark.parametrize(
    "file",
    ["../../etc/passwd", "a/b.onnx", "a\\b.onnx", "/b.onnx", "C:b.onnx", ".", "..", ".hidden", "", "b\n", "b\0", 3],
)
def test_a_file_of_no_plain_name_is_refused(copied_bundle: Path, part: str, file: object) -> None:
    edit(copied_bundle, lambda document: (document | document["graphs"])[part].update(file=file))
    assert_refused(copied_bundle, repr(file), "plain file name")


def test_a_file_that_the_manifest_names_and_the_bundle_has_not_is_refused(copied_bundle: Path, tmp_path: Path) -> None:
    edit(copied_bundle, lambda document: document["graphs"]["decoder"].update(file="other.onnx"))
    assert_refused(copied_bundle, "other.onnx", "missing")
    assert_refused(pack(copied_bundle, tmp_path / "b.zip"), "other.onnx")


def test_files_are_those_that_the_manifest_names(copied_bundle: Path, tmp_path: Path) -> None:
    for old, new in (("decoder.onnx", "d-2_b.onnx"), ("golden.npz", "vectors.npz")):
        (copied_bundle / old).rename(copied_bundle / new)

    def rename(document: Document) -> None:
        document["graphs"]["decoder"].update(file="d-2_b.onnx")
        document["golden"].update(file="vectors.npz")

    edit(copied_bundle, rename)
    for path in (copied_bundle, pack(copied_bundle, tmp_path / "b.zip")):
        bundle = read_bundle(path)
        assert set(bundle.files) == {"manifest.json", "encoder.onnx", "d-2_b.onnx", "vectors.npz"}
        assert set(read_golden(bundle)) == {"image", "mu", "logvar", "z", "decoded"}


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("inputs", {"name": "latent", "dtype": "float32", "shape": ["batch", 4]}),
        ("inputs", {"name": "z", "dtype": "float16", "shape": ["batch", 4]}),
        ("inputs", {"name": "z", "dtype": "float32", "shape": [1, 4]}),
        ("outputs", {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 9]}),
    ],
)
def test_a_graph_with_other_tensors_than_declared_is_refused(copied_bundle: Path, kind: str, tensor: Document) -> None:
    edit(copied_bundle, lambda document: document["graphs"]["decoder"].update({kind: [tensor]}))
    assert_refused(copied_bundle, "decoder.onnx", kind, tensor["name"])


@pytest.mark.parametrize("key", ["opset", "ir_version"])
def test_a_graph_of_another_version_than_declared_is_refused(copied_bundle: Path, key: str) -> None:
    edit(copied_bundle, lambda document: document["graphs"]["encoder"].update({key: 3}))
    assert_refused(copied_bundle, "encoder.onnx", "declares", "3")


def test_a_graph_that_is_none_is_refused_though_its_hash_agrees(copied_bundle: Path) -> None:
    replace_graph(copied_bundle, "decoder", b"not ONNX")
    assert_refused(copied_bundle, "decoder.onnx", "not a complete ONNX file")


def test_data_outside_the_file_is_refused(copied_bundle: Path) -> None:
    tensor = message(5, message(8, "w"), message(13, message(1, "location"), message(2, "../../secret")))
    graph = message(7, tensor)  # a second graph message: protocol buffers merge the two
    replace_graph(copied_bundle, "decoder", (copied_bundle / "decoder.onnx").read_bytes() + graph)
    assert_refused(copied_bundle, "decoder.onnx", "stores tensors in other files")


def test_operators_of_an_unknown_domain_are_refused_by_name(copied_bundle: Path) -> None:
    graph = message(7, message(1, message(4, "Evil"), message(7, "com.evil")))
    replace_graph(copied_bundle, "encoder", (copied_bundle / "encoder.onnx").read_bytes() + graph)
    assert_refused(copied_bundle, "encoder.onnx", "com.evil")


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08 not a bundle")
    assert_refused(tmp_path / "model.onnx", "neither")


def test_a_damaged_zip_is_refused_or_read_whole(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = pack(tiny_bundle, tmp_path / "b.zip").read_bytes()
    damaged = tmp_path / "damaged.zip"
    chance = random.Random(0)
    for attempt in range(200):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        damaged.write_bytes(data if attempt % 2 else whole[: chance.randrange(len(whole))])
        with contextlib.suppress(BundleError):
            assert_whole(read_bundle(damaged), tiny_bundle)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(8, 1, id="encrypted"),  # the general purpose flags in the central directory's entry
        pytest.param(10, 77, id="unheard-of compression"),
        pytest.param(6, 199, id="version needed"),
    ],
)
def test_a_zip_that_python_cannot_unpack_is_refused(tiny_bundle: Path, tmp_path: Path, offset: int, value: int) -> None:
    archive = pack(tiny_bundle, tmp_path / "b.zip")
    data = bytearray(archive.read_bytes())
    entry = data.find(b"PK\x01\x02")
    while entry >= 0:
        struct.pack_into("<H", data, entry + offset, value)
        entry = data.find(b"PK\x01\x02", entry + 4)
    archive.write_bytes(data)
    assert_refused(archive)


def test_a_zip_whose_stream_does_not_decompress_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = pack(tiny_bundle, tmp_path / "b.zip")
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        start = 30 + len(opened.infolist()[0].filename)  # the stream follows the first entry's header
    data[start : start + 8] = b"\xff" * 8
    with pytest.raises(zlib.error):
        zlib.decompress(data[start:], -15)
    archive.write_bytes(data)
    assert_refused(archive)


def test_a_manifest_survives_the_way_to_json_and_back(tiny_bundle: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    again = Manifest.from_json(json.loads(dump_json(manifest.to_json())))
    assert again.to_json() == manifest.to_json()
    for part in ("image", "latent", "likelihood", "graphs", "golden"):
        assert getattr(again, part) == getattr(manifest, part)
    assert manifest.mixture is not None
    assert again.mixture is not None
    assert np.array_equal(again.mixture.cholesky, manifest.mixture.cholesky)


def test_what_is_written_of_a_manifest_is_what_was_read_in_the_newest_format(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    newest = bundle.document | {"format_version": 3, "requires": []}
    assert json.loads(dump_json(bundle.manifest.to_json())) == newest


# Formats


@pytest.mark.parametrize(
    ("name", "version"), [("tiny", 1), ("map", 2), ("deterministic", 2), ("free", 2), ("tiny-v3", 3)]
)
def test_bundles_of_every_format_are_read_and_hold(bundles: Path, name: str, version: int) -> None:
    bundle = read_bundle(bundles / name)
    assert bundle.document["format_version"] == version
    assert bundle.manifest.to_json()["format_version"] == FORMAT_VERSION == 3
    assert vaekit.load(bundles / name, provider="cpu").verify().passed


def test_the_newest_format_is_read_as_the_oldest_was(bundles: Path) -> None:
    old, new = (read_bundle(bundles / name).manifest for name in ("tiny", "tiny-v3"))
    assert new.to_json() == old.to_json()
    assert (bundles / "tiny-v3" / "manifest.json").read_text() == dump_json(new.to_json())
    a, b = (vaekit.load(bundles / name, provider="cpu").sample(3) for name in ("tiny", "tiny-v3"))
    assert np.array_equal(a, b)


def test_sections_of_later_versions_are_ignored(newest_bundle: Path) -> None:
    def add(document: Document) -> None:
        document["sounds"] = {"quantiles": [[1.0]]}
        document["colours"] = ["red", "blue"]
        document["image"]["padding"] = "reflect"
        document["graphs"]["encoder"]["weights"] = 3

    edit(newest_bundle, add)
    bundle = read_bundle(newest_bundle)
    assert bundle.document["colours"] == ["red", "blue"]
    assert "colours" not in bundle.manifest.to_json()


def test_a_bundle_that_requires_what_is_unknown_is_refused_before_the_rest_is_read(newest_bundle: Path) -> None:
    def require(document: Document) -> None:
        document.update(requires=["labels", "prior"], image=None, graphs=None)

    edit(newest_bundle, require)
    assert_refused(newest_bundle, "requires unknown features: labels, prior.", "pip install -U vaekit")


def test_a_bundle_that_requires_what_is_known_is_read(newest_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FEATURES", frozenset({"labels"}))
    edit(newest_bundle, lambda document: document.update(requires=["labels"]))
    manifest = read_bundle(newest_bundle).manifest
    assert manifest.requires == ("labels",)
    assert manifest.to_json()["requires"] == ["labels"]


@pytest.mark.parametrize("requires", ["labels", {"labels": 1}, 3, None, [3], [["labels"]]])
def test_requirements_that_are_no_names_are_refused(newest_bundle: Path, requires: object) -> None:
    edit(newest_bundle, lambda document: document.update(requires=requires))
    assert_refused(newest_bundle, "manifest.json", "damaged", "requires")


def add_graph(bundle: Path, name: str = "prior", **changes: object) -> None:
    """Add another graph: a copy of the decoder with other names."""
    (bundle / f"{name}.onnx").write_bytes((bundle / "decoder.onnx").read_bytes())

    def add(document: Document) -> None:
        document["graphs"][name] = document["graphs"]["decoder"] | {"file": f"{name}.onnx"} | changes

    edit(bundle, add)


def test_other_graphs_are_kept_by_name_and_used_for_nothing(newest_bundle: Path, tmp_path: Path) -> None:
    add_graph(newest_bundle, precision="fp16")  # the bundle has no tolerances for it, because nothing replays it
    for path in (newest_bundle, pack(newest_bundle, tmp_path / "b.zip")):
        bundle = read_bundle(path)
        assert list(bundle.manifest.graphs) == ["encoder", "decoder", "prior"]
        assert bundle.files["prior.onnx"] == bundle.files["decoder.onnx"]
        assert Manifest.from_json(bundle.manifest.to_json()).graphs == bundle.manifest.graphs
    assert vaekit.load(newest_bundle, provider="cpu").verify().passed


OTHER_GRAPHS: dict[str, tuple[Document, tuple[str, ...]]] = {
    "another file": ({"sha256": "0" * 64}, ("prior.onnx", "sha256")),
    "no file": ({"file": "none.onnx"}, ("none.onnx", "missing")),
    "a file elsewhere": ({"file": "../prior.onnx"}, ("'../prior.onnx'", "plain file name")),
    "other tensors": ({"inputs": []}, ("prior.onnx", "inputs")),
    "another opset": ({"opset": 3}, ("prior.onnx", "declares 3")),
    "an unknown precision": ({"precision": "int4"}, ("'int4'", "fp16")),
}


@pytest.mark.parametrize("what", OTHER_GRAPHS)
def test_other_graphs_are_checked_like_the_two(newest_bundle: Path, what: str) -> None:
    changes, words = OTHER_GRAPHS[what]
    add_graph(newest_bundle, **changes)
    assert_refused(newest_bundle, *words)


WORDS: dict[str, Callable[[Document], None]] = {
    "posterior": lambda document: document.update(posterior="cauchy"),
    "likelihood": lambda document: document["likelihood"].update(name="cauchy"),
    "precision": lambda document: document["graphs"]["encoder"].update(precision="cauchy"),
    "precision of tolerances": lambda document: document["verify"].update(cauchy=document["verify"]["fp32"]),
}


@pytest.mark.parametrize("what", WORDS)
def test_an_unknown_word_is_refused_with_the_known_ones(copied_bundle: Path, what: str) -> None:
    edit(copied_bundle, WORDS[what])
    assert_refused(copied_bundle, f"unknown {what.partition(' ')[0]} 'cauchy', expected one of ")


@pytest.mark.parametrize("name", ["50", "pfifty", "p101", "p-1", "pnan"])
def test_quantiles_that_are_no_percentiles_are_refused(copied_bundle: Path, name: str) -> None:
    edit(copied_bundle, lambda document: document["scores"]["quantiles"].update({name: 0.0}))
    assert_refused(copied_bundle, "manifest.json", "damaged")


def test_a_manifest_may_have_no_mixture_and_no_sigma(tiny_bundle: Path) -> None:
    document = json.loads((tiny_bundle / "manifest.json").read_text())
    document["prior"] = {"default": "normal"}
    document["likelihood"] = {"name": "bernoulli", "sigma": None}
    manifest = Manifest.from_json(document)
    assert manifest.mixture is None
    assert manifest.likelihood.sigma is None
    assert json.loads(dump_json(manifest.to_json()))["prior"] == {"default": "normal"}


def test_numbers_of_a_list_stand_on_one_line() -> None:
    document = {"a": [1, -2.5, 1e-20], "b": {"c": [[1, 2], [3, 4]]}, "d": ["x", 1], "e": [], "f": "g"}
    text = dump_json(document)
    assert json.loads(text) == document
    lines = [line.strip() for line in text.splitlines()]
    assert '"a": [1, -2.5, 1e-20],' in lines
    assert "[1, 2]," in lines
    assert "[3, 4]" in lines
    assert text.endswith("}\n")


@pytest.mark.parametrize("text", ["a [ 1, 2 ] b", "[ 3 ]", "[\n4\n]", "é [  e  ]"])
def test_text_that_looks_like_a_list_is_let_be(text: str) -> None:
    assert json.loads(dump_json({"dataset": text, text: [1, 2]})) == {"dataset": text, text: [1, 2]}


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"elbo": float("nan")})
