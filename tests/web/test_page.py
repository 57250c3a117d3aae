"""The page that `vaekit web` writes, in Chromium."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import vaekit as package
from vaekit.bundle.reading import read_bundle
from vaekit.images.picture import read_image
from vaekit.web.server import open_server, serving
from vaekit.web.site import find_runtime, write_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

GREY = 1.01 / 255
Open = Callable[..., "Page"]
Run = Callable[..., Any]


@pytest.fixture
def site_of(node_modules: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that writes the site of a bundle."""
    runtime = find_runtime(node_modules, tmp_path)

    def write(bundle: Path) -> Path:
        write_site(tmp_path / "site", read_bundle(bundle), runtime)
        return tmp_path / "site"

    return write


@pytest.fixture
def open_page(browser: Browser, site_of: Callable[[Path], Path]) -> Iterator[Open]:
    """Return a function that opens the site of a bundle, or one that is there, and checks what it asks for and says."""
    opened: list[tuple[Page, str, list[str], list[str]]] = []
    stack: list[Any] = []

    def open_it(
        bundle: Path | None = None,
        *,
        site: Path | None = None,
        isolated: bool = True,
        ready: str = "yes",
        query: str = "",
        **context: Any,
    ) -> Page:
        folder = site_of(bundle) if bundle is not None else site
        assert folder is not None
        plain = functools.partial(QuietHandler, directory=str(folder))
        server = open_server(folder, 0) if isolated else ThreadingHTTPServer(("127.0.0.1", 0), plain)
        manager = serving(server)
        address = manager.__enter__()
        stack.append(manager)
        page = browser.new_context(accept_downloads=True, permissions=["camera"], **context).new_page()
        requests: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + query)
        page.wait_for_selector("body[data-ready]")
        opened.append((page, address, requests, errors))
        assert page.get_attribute("body", "data-ready") == ready, page.inner_text("#error")
        return page

    yield open_it
    for page, address, requests, errors in opened:
        outside = [url for url in requests if not url.startswith((address, "blob:" + address))]
        page.context.close()
        assert not outside, outside
        assert not errors, errors
    for manager in stack:
        manager.__exit__(None, None, None)


class QuietHandler(SimpleHTTPRequestHandler):
    """A server of static files as Python has it, without isolation."""

    def log_message(self, *args: object) -> None:
        pass


def shown(page: Page, canvas: str) -> Any:
    """Return a canvas's pixels, (C, H, W) with three channels."""
    script = """id => {
        const canvas = document.getElementById(id);
        const { data, height, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [height, width, [...data]];
    }"""
    height, width, data = page.evaluate(script, canvas)
    return np.array(data, np.uint8).reshape(height, width, 4)[..., :3].transpose(2, 0, 1)


def downloaded(page: Page, button: str) -> bytes:
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path()).read_bytes()


def settled(page: Page) -> None:
    """Wait until the page has nothing to do."""
    page.wait_for_selector("body:not([data-busy])")


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition; the page's policy forbids Playwright's own wait for one."""
    for _ in range(100):
        if holds():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


def put_png(page: Page, pixels: Any, name: str = "photo.png", **options: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.wait_for_selector("#result:visible")
    settled(page)


@pytest.fixture(scope="session")
def photograph() -> Any:
    """Return a photograph, uint8 (427, 640, 3)."""
    datasets = pytest.importorskip("sklearn.datasets")
    return datasets.load_sample_image("china.jpg")


@pytest.mark.parametrize("name", ["tiny", "labels", "map"])
def test_a_sample_is_the_command_lines(open_page: Open, vaekit: Run, bundles: Path, tmp_path: Path, name: str) -> None:
    page = open_page(bundles / name)
    page.fill("#seed", "7")
    page.click("text=Draw")
    settled(page)
    vaekit("sample", "-m", bundles / name, "-n", "1", "--seed", "7", "-o", "samples").check_returncode()
    (expected,) = (tmp_path / "samples").glob("*.png")
    with Image.open(expected) as picture:
        pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(shown(page, "image").astype(int) - pixels).max() <= 1


def test_a_slider_moves_the_image(open_page: Open, vaekit: Run, bundles: Path, tmp_path: Path) -> None:
    page = open_page(bundles / "tiny")
    before = shown(page, "image")
    page.locator("#sliders input").first.fill("2")
    settled(page)
    assert not np.array_equal(shown(page, "image"), before)
    (tmp_path / "latent.npz").write_bytes(downloaded(page, "#save-npz"))
    with np.load(tmp_path / "latent.npz") as arrays:
        first = package.load(bundles / "tiny", provider="cpu").dimensions[0]
        assert arrays["mu"][0, first] == pytest.approx(2, abs=0.05)
    vaekit("decode", "latent.npz", "-m", bundles / "tiny", "-o", "decoded").check_returncode()
    (decoded,) = (tmp_path / "decoded").glob("*.png")
    with Image.open(decoded) as picture, Image.open(io.BytesIO(downloaded(page, "#save-png"))) as saved:
        difference = np.asarray(picture.convert("RGB")).astype(int) - np.asarray(saved.convert("RGB"))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("name", ["tiny", "map"])
def test_a_photograph_is_encoded_as_on_the_command_line(
    open_page: Open, vaekit: Run, bundles: Path, tmp_path: Path, photograph: Any, name: str
) -> None:
    page = open_page(bundles / name)
    put_png(page, photograph)
    vae = package.load(bundles / name, provider="cpu")
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    pixels = read_image(tmp_path / "photo.png", vae.image_shape[0], vae.image_shape[1:])
    assert np.abs(shown(page, "original").astype(int) - pixels).max() <= 1
    page.click("text=Move from here")
    settled(page)
    (tmp_path / "latent.npz").write_bytes(downloaded(page, "#save-npz"))
    vaekit("encode", "photo.png", "-m", bundles / name, "-o", "encoded.npz").check_returncode()
    with np.load(tmp_path / "latent.npz") as found, np.load(tmp_path / "encoded.npz") as expected:
        assert found["mu"] == pytest.approx(expected["mu"], rel=1e-4, abs=1e-4)
    score = float(
        vaekit("score", "photo.png", "-m", bundles / name, "--json")
        .stdout.split('"score": ')[1]
        .split(",")[0]
        .rstrip("}\n")
    )
    assert f"{score:.1f} nats" in page.inner_text("#score")


def test_orientation_and_transparency(open_page: Open, bundles: Path, tmp_path: Path, photograph: Any) -> None:
    page = open_page(bundles / "map")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    page.set_input_files("#file", tmp_path / "turned.jpg")
    page.wait_for_selector("#result:visible")
    settled(page)
    expected = read_image(tmp_path / "turned.jpg", 3, (16, 12))
    assert np.abs(shown(page, "original").astype(int) - expected).max() <= 3  # decoders of JPEG differ
    clear = np.dstack((photograph, np.full(photograph.shape[:2], 0, np.uint8)))
    put_png(page, clear)
    assert (shown(page, "original") == 255).all()
    half = np.dstack((photograph, np.full(photograph.shape[:2], 128, np.uint8)))
    put_png(page, half)
    Image.fromarray(half).save(tmp_path / "half.png")
    assert np.abs(shown(page, "original").astype(int) - read_image(tmp_path / "half.png", 3, (16, 12))).max() <= 2


def test_files_that_are_no_picture_for_a_browser(open_page: Open, bundles: Path, tmp_path: Path) -> None:
    page = open_page(bundles / "tiny")
    Image.new("RGB", (8, 8)).save(tmp_path / "scan.tif")
    page.set_input_files("#file", tmp_path / "scan.tif")
    page.wait_for_selector("#error:visible")
    assert (
        page.inner_text("#error") == "error: scan.tif is a TIFF file, which browsers cannot decode: convert it to PNG"
    )
    (tmp_path / "notes.png").write_text("not a picture")
    page.set_input_files("#file", tmp_path / "notes.png")
    until(lambda: "notes.png" in page.inner_text("#error"))
    assert "not a picture that this browser can decode" in page.inner_text("#error")
    put_png(page, np.zeros((9, 9), np.uint8))
    assert page.is_hidden("#error")


def test_a_dropped_file_and_the_camera(open_page: Open, bundles: Path) -> None:
    page = open_page(bundles / "tiny")
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(20, 10);
            canvas.getContext("2d").fillRect(0, 0, 20, 10);
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([await canvas.convertToBlob()], "dropped.png"));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }"""
    )
    page.wait_for_selector("#result:visible")
    assert (shown(page, "original") == 0).all()
    page.click("#camera")
    page.wait_for_selector("#shoot:visible")
    page.click("#shoot")
    page.wait_for_selector("#video", state="hidden")
    settled(page)
    assert shown(page, "original").any()


def test_the_keyboard_is_enough(open_page: Open, bundles: Path) -> None:
    page = open_page(bundles / "tiny")
    before = shown(page, "image")
    page.focus("#pad")
    text = page.get_attribute("#pad", "aria-valuetext")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    settled(page)
    assert page.get_attribute("#pad", "aria-valuetext") != text
    assert not np.array_equal(shown(page, "image"), before)
    page.locator("#sliders input").first.focus()
    page.keyboard.press("End")
    settled(page)
    moved = shown(page, "image")
    page.locator("#samples button").nth(3).focus()
    page.keyboard.press("Enter")
    settled(page)
    assert not np.array_equal(shown(page, "image"), moved)


def test_labels_choose_a_class(open_page: Open, bundles: Path) -> None:
    page = open_page(bundles / "labels")
    page.select_option("#prior", "mixture")
    page.select_option("#label", label="left")
    page.fill("#seed", "3")
    page.click("text=Draw")
    settled(page)
    with np.load(io.BytesIO(downloaded(page, "#save-npz"))) as arrays:
        expected = package.load(bundles / "labels", provider="cpu").sample_latents(
            1, seed=3, label="left", prior="mixture"
        )
        assert np.array_equal(arrays["mu"], expected)
    page.select_option("#prior", "normal")
    assert page.is_hidden("#label")


def test_the_path_plays(open_page: Open, bundles: Path) -> None:
    page = open_page(bundles / "tiny")
    page.click("#set-start")
    settled(page)
    assert np.array_equal(shown(page, "start"), shown(page, "image"))
    page.locator("#place").fill("0")
    settled(page)
    assert np.array_equal(shown(page, "between"), shown(page, "start"))
    page.click("#play")
    until(lambda: float(page.input_value("#place")) > 0.1)
    page.click("#play")
    settled(page)
    assert not np.array_equal(shown(page, "between"), shown(page, "start"))


def test_a_seed_that_is_none_is_said(open_page: Open, bundles: Path) -> None:
    page = open_page(bundles / "tiny")
    page.eval_on_selector("#seed", "input => input.removeAttribute('pattern')")
    for wrong in ("-1", "many", str(2**64)):
        page.fill("#seed", wrong)
        page.click("text=Draw")
        page.wait_for_selector("#error:visible")
        assert "seed" in page.inner_text("#error")
    page.fill("#seed", str(2**64 - 1))
    page.click("text=Draw")
    page.wait_for_selector("#error", state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_for_axe_to_find(
    open_page: Open, node_modules: Path, bundles: Path, photograph: Any, scheme: str, width: int
) -> None:
    page = open_page(bundles / "labels", color_scheme=scheme, viewport={"width": width, "height": 800})
    put_png(page, photograph)
    page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text())
    found = page.evaluate("axe.run()")
    problems = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
    assert not problems
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_threads_need_isolation(open_page: Open, bundles: Path) -> None:
    page = open_page(bundles / "tiny", isolated=False)
    assert page.inner_text("#backend").endswith("with 1 thread")
    assert page.evaluate("crossOriginIsolated") is False


def test_a_backend_that_is_not_here(open_page: Open, bundles: Path) -> None:
    page = open_page(bundles / "tiny", ready="failed", query="?backend=webgpu")
    assert "this browser has no backend 'webgpu'" in page.inner_text("#error")
    assert page.is_hidden("#panels")


def test_a_tampered_bundle_is_refused(open_page: Open, site_of: Callable[[Path], Path], bundles: Path) -> None:
    site = site_of(bundles / "tiny")
    data = bytearray((site / "bundle" / "decoder.onnx").read_bytes())
    data[-1] ^= 1
    (site / "bundle" / "decoder.onnx").write_bytes(data)
    page = open_page(site=site, ready="failed")
    assert "decoder.onnx was changed after export" in page.inner_text("#error")
    assert page.is_hidden("#panels")


def test_a_browser_that_computes_something_else_is_refused(
    open_page: Open, site_of: Callable[[Path], Path], bundles: Path
) -> None:
    site = site_of(bundles / "tiny")
    with np.load(site / "bundle" / "golden.npz") as arrays:
        golden = dict(arrays)
    golden["decoded"] = golden["decoded"] * np.float32(0.99)
    np.savez(site / "bundle" / "golden.npz", **golden)
    change_manifest(site / "bundle", lambda document: document["golden"].update(sha256=sha256(site)))
    page = open_page(site=site, ready="failed")
    assert "this browser does not compute what PyTorch did: decoder image by" in page.inner_text("#error")
    assert page.is_hidden("#panels")


def test_names_in_a_bundle_are_never_html(open_page: Open, bundles: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles / "labels", tmp_path / "copy"))
    evil = "<img src=x onerror=\"document.body.dataset.hacked='yes'\">"

    def change(document: dict[str, Any]) -> None:
        document["provenance"].update(dataset=evil, model=evil)
        document["labels"][0] = evil

    change_manifest(copy, change)
    page = open_page(copy)
    assert page.inner_text("#title") == evil
    assert page.get_attribute("body", "data-hacked") is None
    assert page.locator("img").count() == 0


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


def sha256(site: Path) -> str:
    return hashlib.sha256((site / "bundle" / "golden.npz").read_bytes()).hexdigest()
