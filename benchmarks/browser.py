"""How fast does a bundle decode in Chromium and in Node.js, compared with Python?

    python benchmarks/browser.py [--model vae-onnx] [--rounds 7] [--seconds 0.5] [--json FILE]

It needs Node.js, Chromium, and `npm install --prefix tests/web --ignore-scripts`. Backends take turns, each in a
process or a page of its own. A time is the median of a call of `decode`, after as long a warm-up. A ratio is the
backend's time divided by that of Python with as many threads, so lower is better. Aims: at most 3 with one thread; in
the page of `vaekit web`, a slider's picture within 16 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from timing import ratio, show, write_json

import vaekit
from vaekit.bundle.reading import read_bundle
from vaekit.system.machine import usable_cpus
from vaekit.web.server import open_server, serving
from vaekit.web.site import find_runtime, write_site

ROOT = Path(__file__).parents[1]
MODULES = ROOT / "tests" / "web" / "node_modules"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BATCHES = (1, 64)
SLIDES = 60

# Moves a slider, and waits until the image has been drawn: milliseconds of each.
_SLIDE = """async count => {
    const put = CanvasRenderingContext2D.prototype.putImageData;
    const slider = document.querySelector("#sliders input");
    const [low, high] = [Number(slider.min), Number(slider.max)];
    const times = [];
    for (let k = 0; k < count; k++) {
        const start = performance.now();
        await new Promise(resolve => {
            CanvasRenderingContext2D.prototype.putImageData = function (...pixels) {
                put.apply(this, pixels);
                resolve();
            };
            slider.valueAsNumber = low + (high - low) * (k + 1) / (count + 1);
            slider.dispatchEvent(new Event("input"));
        });
        times.push(performance.now() - start);
        await new Promise(resolve => setTimeout(resolve, 20));
    }
    return times;
}"""

Measure = Callable[[int, int], float]
"""Takes the number of threads and the batch size, and returns seconds."""


def in_python(model: Path, seconds: float) -> Measure:
    """Return a measure of this process."""

    def measure(threads: int, batch: int) -> float:
        vae = vaekit.load(model, provider="cpu", threads=threads)
        z = vae.sample_latents(batch, prior="normal")
        times: list[float] = []
        begin = time.perf_counter() + seconds
        while time.perf_counter() < begin + seconds or len(times) < 10:
            start = time.perf_counter()
            vae.decode(z)
            if start > begin:
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    return measure


def in_node(model: Path, seconds: float) -> Measure:
    """Return a measure of Node.js processes."""

    def measure(threads: int, batch: int) -> float:
        command = ["node", str(ROOT / "benchmarks" / "browser.js"), str(model), str(threads), str(batch), str(seconds)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return measure


def in_chromium(browser: Browser, address: str, seconds: float) -> Measure:
    """Return a measure of pages, of a server that has the repository and the bundle."""

    def measure(threads: int, batch: int) -> float:
        page = browser.new_page()
        page.goto(address + "tests/web/library.html")
        arguments = [
            address + "bundle/",
            address + "tests/web/node_modules/onnxruntime-web/dist/",
            threads,
            batch,
            seconds,
        ]
        found = page.evaluate("async given => (await import('/benchmarks/browser.js')).inPage(...given)", arguments)
        page.close()
        return float(found)

    return measure


def slides(browser: Browser, model: Path, folder: Path) -> list[float]:
    """Return the times from a slider's move to its picture in the page of `vaekit web`, in milliseconds."""
    write_site(folder / "site", read_bundle(model), find_runtime(MODULES, ROOT))
    with serving(open_server(folder / "site", 0)) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready=yes]")
        page.wait_for_timeout(500)
        times: list[float] = page.evaluate(_SLIDE, SLIDES)
    return times


def main() -> None:
    """Time all backends in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("vae-onnx"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = sorted({1, usable_cpus()})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("vaekit", "tests", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "bundle").mkdir()
        for name, data in read_bundle(options.model).files.items():
            (folder / "bundle" / name).write_bytes(data)
        address = stack.enter_context(serving(open_server(folder, 0)))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        backends = {
            "Python": in_python(folder / "bundle", options.seconds),
            "Node.js": in_node(folder / "bundle", options.seconds),
            "Chromium": in_chromium(browser, address, options.seconds),
        }
        cases = [(threads, batch) for threads in counts for batch in BATCHES]
        times: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for threads, batch in cases:
                for name, measure in backends.items():
                    times.setdefault(f"{name}, {threads} threads, batch {batch}", []).append(measure(threads, batch))
        moves = slides(browser, options.model, folder)
        browser.close()
    ratios = {}
    for threads, batch in cases:
        case = f"{threads} threads, batch {batch}"
        print(f"Python, {case}: {1000 * statistics.median(times[f'Python, {case}']):.2f} ms")
        for name in ("Node.js", "Chromium"):
            ratios[f"{name}, {case}"] = ratio(times[f"{name}, {case}"], times[f"Python, {case}"])
            aim = "<= 3" if threads == 1 and name == "Chromium" else "none"
            show(f"{name} / Python, {case}", ratios[f"{name}, {case}"], aim)
    print(f"slider to picture: {statistics.median(moves):.1f} ms (longest {max(moves):.1f}); aim <= 16")
    write_json(options.json, {"seconds": times, "ratios": ratios, "slider_milliseconds": moves})


if __name__ == "__main__":
    main()
