"""What do hostile files do? Every input must end in a result or in one of vaekit's own errors.

    python benchmarks/fuzz.py [--seconds 60 | --hours 1 | --runs 1000] [--target NAME …] [--keep FOLDER] [--json FILE]

Each target reads one kind of file. libFuzzer, through atheris, changes real files of that kind, guided by the lines of
vaekit that they reach; for archives and JSON, parts are replaced, so that checksums and syntax hold. Another exception,
20 seconds for one input, 2 GB of memory, and a death of the process count as a crash; `--keep` keeps the inputs. The
length is for each target; as many run at once as there are processors. `--runs` is a number of inputs, which are the
same each time. Needs atheris, and a clone with tests/.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import copy
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from timing import write_json

from vaekit.system.machine import usable_cpus

ROOT = Path(__file__).parents[1]
BUNDLES, RUNS = ROOT / "tests" / "bundles", ROOT / "tests" / "runs"
SIGNATURES = ROOT / "tests" / "edge" / "bundle" / "signatures"
LIMITS = ("-timeout=20", "-rss_limit_mb=2048", "-max_len=100000", "-print_final_stats=1", "-close_fd_mask=1")
MOST_CRASHES = 20  # of one target, after which it stops

Target = Callable[[bytes], None]

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 17, 255, 1 << 31, 1 << 63, 1 << 100, -(1 << 100)),
    *(0.5, -0.0, 1e-300, 1e308, "", "..", "/etc/passwd", "a" * 5000, "\0", "ä", "p50", "fp32", "batch"),
    *([], {}, [None], [[]], [1], [1.0, "a"], [[1, 2], [3]], {"a": 1}, [0] * 3000),
)
"""Values that take the place of others in JSON."""


class Edits:
    """Choices that a fuzzer makes by its bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        """Return a number from 0 to count - 1."""
        part = self._data[self._at : self._at + 2]
        self._at += 2
        return int.from_bytes(part, "little") % max(1, count)

    def rest(self) -> bytes:
        """Return the bytes that no choice has used."""
        return self._data[self._at :]


def edited(document: Any, data: bytes) -> Any:
    """Return a JSON document with up to four parts replaced or removed."""
    edits = Edits(data)
    for _ in range(1 + edits.below(4)):
        place, key = document, None
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            parent, key = place, keys[edits.below(len(keys))]
            place = parent[key]
            if edits.below(4) == 0:
                break
        if key is None:
            return copy.deepcopy(HOSTILE[edits.below(len(HOSTILE))])
        choice = edits.below(len(HOSTILE) + 1)
        if choice < len(HOSTILE):
            parent[key] = copy.deepcopy(HOSTILE[choice])
        else:
            del parent[key]
    return document


def npz_with(source: Path, data: bytes) -> bytes:
    """Return a .npz file with one member replaced by bytes, or with its header changed."""
    edits = Edits(data)
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    name = names[edits.below(len(names))]
    way = edits.below(3)
    rest = edits.rest()
    members[name] = rest if way == 0 else members[name][: edits.below(200)] + rest if way == 1 else header(edits)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return buffer.getvalue()


def header(edits: Edits) -> bytes:
    """Return a .npy file whose header is well formed and says what its data do not hold."""
    types = ("<f4", ">f8", "|u1", "|O", "<U9", "|V8", "<c16", "|b1", "<i8", "<M8[ns]")
    sizes = (0, 1, 2, 4, 8, 64, 1 << 20, 1 << 40, 1 << 62, -1)
    shape = tuple(sizes[edits.below(len(sizes))] for _ in range(edits.below(6)))
    fortran = bool(edits.below(2))
    text = str({"descr": types[edits.below(len(types))], "fortran_order": fortran, "shape": shape})
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + edits.rest()


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """Yield a new folder, on a file system in memory if there is one."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def bundle_targets(folder: Path) -> dict[str, Target]:
    """Return the targets that read bundles."""
    from vaekit.bundle.onnx_file import read_onnx
    from vaekit.bundle.reading import read_bundle, read_golden, read_residuals
    from vaekit.bundle.signature import parse_signature
    from vaekit.bundle.signing import read_secret_key
    from vaekit.vae import VAE

    source = BUNDLES / "labels"
    bundle = read_bundle(source)
    document = json.dumps(bundle.document)
    place = folder / "bundle"
    place.mkdir()
    for name, content in bundle.files.items():
        (place / name).write_bytes(content)

    def use(found: Any) -> None:
        """Do what commands do with a manifest before any graph runs."""
        vae = VAE(found)
        _ = vae.priors, vae.dimensions, vae.image_shape, vae.latent_shape
        if vae.manifest.latent.size < 1 << 16 and vae.priors[0] != "flow":
            vae.sample_latents(2)
        if vae.manifest.scores is not None:
            vae.manifest.scores.percentile(99)
        vae.manifest.to_json()

    def manifest(data: bytes) -> None:
        (place / "manifest.json").write_bytes(data)
        use(read_bundle(place))

    def manifest_parts(data: bytes) -> None:
        manifest(json.dumps(edited(json.loads(document), data)).encode())

    def onnx(data: bytes) -> None:
        with contextlib.suppress(ValueError):  # as its docstring says
            read_onnx(data)

    def golden(data: bytes) -> None:
        files = bundle.files | {"golden.npz": npz_with(source / "golden.npz", data)}
        read_golden(dataclasses.replace(bundle, files=files))

    def residuals(data: bytes) -> None:
        files = bundle.files | {"residuals.npz": npz_with(source / "residuals.npz", data)}
        read_residuals(dataclasses.replace(bundle, files=files))

    def archive(data: bytes) -> None:
        (folder / "bundle.zip").write_bytes(data)
        use(read_bundle(folder / "bundle.zip"))

    def signature(data: bytes) -> None:
        with contextlib.suppress(ValueError):  # as its docstring says
            parse_signature(data)

    def secret_key(data: bytes) -> None:
        (folder / "secret.key").write_bytes(data)
        read_secret_key(folder / "secret.key", lambda: "")

    return {
        "manifest": manifest,
        "manifest-parts": manifest_parts,
        "onnx": onnx,
        "golden": golden,
        "residuals": residuals,
        "zip": archive,
        "signature": signature,
        "secret-key": secret_key,
    }


def image_targets(folder: Path) -> dict[str, Target]:
    """Return the targets that read images and latents."""
    from vaekit.images.picture import probe_image, read_image
    from vaekit.images.stream import ImageStream
    from vaekit.output.latents import open_latents
    from vaekit_cli.image_input import open_stream

    def picture(data: bytes) -> None:
        probe_image(io.BytesIO(data))
        read_image(io.BytesIO(data), 3, (8, 8))

    def stream(name: str) -> Target:
        def read(data: bytes) -> None:
            (folder / name).write_bytes(data)
            with contextlib.closing(ImageStream([str(folder / name)], (1, 8, 8))) as images:
                for _ in images.chunks():
                    pass

        return read

    def npz(data: bytes) -> None:
        stream("images.npz")(npz_with(folder / "seed.npz", data))

    def latents(name: str) -> Target:
        def read(data: bytes) -> None:
            (folder / name).write_bytes(data)
            for _ in open_latents(folder / name, (4,)).chunks(100):
                pass

        return read

    def latents_npz(data: bytes) -> None:
        latents("latents.npz")(npz_with(folder / "latents-seed.npz", data))

    def paths(data: bytes) -> None:
        """Read what a list names. Its paths stay below an empty folder, so that they name nothing of this machine."""
        mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        lines = data.removeprefix(mark).replace(b"..", b"__").split(b"\n")
        (folder / "list.txt").write_bytes(mark + b"\n".join(f"{folder}/none/".encode() + line for line in lines))
        with contextlib.closing(open_stream([], str(folder / "list.txt"), (1, 8, 8), print, no_resize=False)) as images:
            for _ in images.chunks():
                pass

    import numpy as np

    (folder / "none").mkdir()
    np.savez(folder / "seed.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(3, np.int64))
    np.savez(folder / "latents-seed.npz", mu=np.zeros((3, 4), np.float32), paths=np.array(["a", "b", "c"]))
    return {
        "picture": picture,
        "idx": stream("images-idx3-ubyte"),
        "npy": stream("images.npy"),
        "npz": npz,
        "latents-npy": latents("latents.npy"),
        "latents-npz": latents_npz,
        "parquet": latents("latents.parquet"),
        "parquet-pictures": stream("pictures.parquet"),
        "paths": paths,
        "tar": stream("pictures.tar"),
    }


def run_targets(folder: Path) -> dict[str, Target]:
    """Return the targets that read runs."""
    import shutil

    from vaekit.training.checkpoint import load_checkpoint
    from vaekit.training.config import read_settings
    from vaekit.training.run import load_holdout, load_holdout_labels, load_run, load_whole_pictures

    run = folder / "run"
    shutil.copytree(RUNS / "finished", run)
    loaded = load_run(run)
    settings = (run / "config.json").read_text()

    def config(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        read_settings(folder / "config.json")

    def config_parts(data: bytes) -> None:
        config(json.dumps(edited(json.loads(settings), data)).encode())

    def model(data: bytes) -> None:
        (run / "model.safetensors").write_bytes(data)
        load_run(run)

    def checkpoint(data: bytes) -> None:
        (run / "checkpoint.safetensors").write_bytes(data)
        load_checkpoint(run)

    def holdout(data: bytes) -> None:
        (run / "holdout.npz").write_bytes(npz_with(RUNS / "finished" / "holdout.npz", data))
        load_holdout(loaded)
        load_holdout_labels(loaded)
        load_whole_pictures(loaded)

    return {
        "config": config,
        "config-parts": config_parts,
        "model": model,
        "checkpoint": checkpoint,
        "holdout": holdout,
    }


GROUPS: dict[str, tuple[Callable[[Path], dict[str, Target]], tuple[str, ...]]] = {
    "bundles": (
        bundle_targets,
        ("manifest", "manifest-parts", "onnx", "golden", "residuals", "zip", "signature", "secret-key"),
    ),
    "images": (
        image_targets,
        ("picture", "idx", "npy", "npz", "latents-npy", "latents-npz", "parquet", "parquet-pictures", "paths", "tar"),
    ),
    "runs": (run_targets, ("config", "config-parts", "model", "checkpoint", "holdout")),
}
TARGETS = tuple(name for _, names in GROUPS.values() for name in names)


def files_of(folder: Path, pattern: str) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields the contents of files."""
    return lambda: (path.read_bytes() for path in sorted(folder.glob(pattern)))


def archives() -> Iterator[bytes]:
    """Yield a bundle as a .zip file, in two ways."""
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for path in (BUNDLES / "tiny-v3").iterdir():
                archive.write(path, path.name)
        yield buffer.getvalue()


def pictures() -> Iterator[bytes]:
    """Yield a picture in every format and colour that Pillow writes."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"):
        for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):
                Image.fromarray(pixels).convert(mode).save(buffer, kind)
                yield buffer.getvalue()


def tars() -> Iterator[bytes]:
    """Yield an archive of pictures and a class, in every format that Python writes."""
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for name, data in (("a/1.png", next(pictures())), ("a/1.cls", b"7"), ("b" * 150 + "/ä.gif", b"GIF89a")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        yield buffer.getvalue()


def arrays_of(shape: tuple[int, ...]) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields .npy files of several types."""

    def files() -> Iterator[bytes]:
        import numpy as np

        for dtype in (np.uint8, np.float32, np.float64, np.bool_):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros(shape, dtype))
            yield buffer.getvalue()

    return files


def tables() -> Iterator[bytes]:
    """Yield a Parquet file of latents."""
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array([0.0] * 12, pyarrow.float32()), 4)
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"z": column}), buffer)
    yield buffer.getvalue()


def picture_tables() -> Iterator[bytes]:
    """Yield Parquet files of pictures and classes, in both forms."""
    import pyarrow
    from pyarrow import parquet

    images = [next(pictures()), b"GIF89a", None]
    for column in (images, [{"bytes": image, "path": "a.png"} for image in images]):
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.table({"image": column, "label": [1, 0, None]}), buffer, row_group_size=2)
        yield buffer.getvalue()


def choices() -> Iterator[bytes]:
    """Yield bytes that choose parts to replace."""
    return (bytes(range(start, start + 40)) for start in (0, 60, 120))


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "manifest": files_of(BUNDLES, "*/manifest.json"),
    "onnx": files_of(BUNDLES, "*/*.onnx"),
    "zip": archives,
    "signature": files_of(SIGNATURES, "*.minisig"),
    "secret-key": files_of(SIGNATURES, "unprotected.key"),
    "paths": lambda: iter((b"a.png\nb/c.png\r\n\n./d.jpg\n*.png\n", b"\xef\xbb\xbfe.png\n")),
    "picture": pictures,
    "tar": tars,
    "idx": lambda: iter((bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 8)) + bytes(128),)),
    "npy": arrays_of((3, 8, 8)),
    "latents-npy": arrays_of((3, 4)),
    "parquet": tables,
    "parquet-pictures": picture_tables,
    "config": files_of(RUNS, "*/config.json"),
    "model": files_of(RUNS, "finished/model.safetensors"),
    "checkpoint": files_of(RUNS, "*/checkpoint.safetensors"),
}
"""Real files of each target's kind; those that are not named begin with `choices`."""


def work(target: str, folder: Path, arguments: list[str]) -> None:
    """Fuzz one target, which writes to the folder, in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["vaekit"]):
        from vaekit.errors import VaekitError

        group = next(make for make, names in GROUPS.values() if target in names)
        run = group(folder)[target]

    def once(data: bytes) -> None:
        try:
            run(data)
        except VaekitError:
            pass
        except BaseException:
            traceback.print_exc()  # libFuzzer only says that the target exited
            raise

    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


@dataclasses.dataclass
class Found:
    """What came of a target."""

    inputs: int = 0
    crashes: int = 0
    causes: dict[str, int] = dataclasses.field(default_factory=dict)
    """How often each cause was met, by its last line."""


def fuzz(target: str, seconds: float, runs: int | None, keep: Path) -> Found:
    """Fuzz one target for some seconds or runs, from the start again after each crash."""
    found, end = Found(), time.monotonic() + seconds
    place = keep / target
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS.get(target, choices)()):
        (corpus / f"seed-{number}").write_bytes(seed)
    while (left := end - time.monotonic()) > 0 and found.crashes < MOST_CRASHES:
        length = f"-max_total_time={max(1, round(left))}" if runs is None else f"-runs={runs}"
        fixed = [] if runs is None else ["-seed=1"]
        arguments = [*LIMITS, length, *fixed, f"-artifact_prefix={place}/", str(corpus)]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        with in_memory() as folder:  # libFuzzer ends the worker without a chance to clean up
            command = [sys.executable, __file__, "--worker", target, str(folder), *arguments]
            result = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, env=environment
            )
        counts = re.findall(r"stat::number_of_executed_units:\s*(\d+)", result.stderr)
        counts = counts or re.findall(r"^#(\d+)\t", result.stderr, re.MULTILINE)
        found.inputs += int(counts[-1]) if counts else 0
        if result.returncode == 0:
            break
        found.crashes += 1
        cause = cause_of(result.stderr)
        found.causes[cause] = found.causes.get(cause, 0) + 1
        (place / f"crash-{found.crashes}.txt").write_text(result.stderr[-5000:])
    return found


def cause_of(log: str) -> str:
    """Return where and why a process died, in one line."""
    lines = [line.strip() for line in log.splitlines()]
    places = [line for line in lines if line.startswith("File ") and "/vaekit/" in line]
    reasons = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Warning|Exit|Interrupt)\b", line)]
    other = next((line for line in lines if "ERROR: libFuzzer" in line), lines[-1] if lines else "no output")
    where = re.sub(r".*/(vaekit/[^\"]+)\", line (\d+).*", r"\1:\2", places[-1]) if places else ""
    why = reasons[0] if reasons else other.partition("== ")[2]
    return f"{where} {why}".strip()[:200]


def main() -> None:
    """Fuzz all targets and print a table; exit with 1 if there was a crash."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=60.0)
    length.add_argument("--hours", type=float)
    length.add_argument("--runs", type=int)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds = options.seconds if options.hours is None else 3600 * options.hours
    targets = options.target or TARGETS
    with contextlib.ExitStack() as stack:
        keep = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with ThreadPoolExecutor(usable_cpus()) as pool:
            results = dict(
                zip(targets, pool.map(lambda name: fuzz(name, seconds, options.runs, keep), targets), strict=True)
            )
    for name, found in results.items():
        print(f"{name:16} {found.inputs:>11,} inputs, {found.crashes} crashes")
        for cause, count in found.causes.items():
            print(f"    {count} x {cause}")
    print(f"{sum(found.inputs for found in results.values()):,} inputs in all")
    write_json(options.json, {name: dataclasses.asdict(found) for name, found in results.items()})
    if any(found.crashes for found in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
