"""One model in several threads and processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import vaekit as package

FORKED = """
import gc, os, sys, time, warnings
warnings.simplefilter("ignore")  # Python warns of forks of processes with threads, which these are on purpose
import numpy as np
import vaekit

vae = vaekit.load(sys.argv[1], provider="cpu", threads=2)
expected = vae.sample(64, seed=3)
vae.reconstruct(expected)
statuses = []
for use in (True, False):
    time.sleep(0.5)  # by now ONNX Runtime's threads wait, which makes what they leave behind harder to free
    child = os.fork()
    if child == 0:
        same = not use or np.array_equal(vae.reconstruct(vae.sample(64, seed=3)), vae.reconstruct(expected))
        del vae
        gc.collect()
        os._exit(0 if same else 1)  # as multiprocessing does; ONNX Runtime hangs in other ends of a forked process
    statuses.append(os.waitpid(child, 0)[1])
assert np.array_equal(vae.sample(64, seed=3), expected)
sys.exit(max(map(os.waitstatus_to_exitcode, statuses)))
"""


SPAWNED = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import vaekit

def sampled(seed):
    return vaekit.load(sys.argv[1], provider="cpu", threads=1).sample(8, seed=seed).tobytes()

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(sampled, range(4)))
    assert found == list(map(sampled, range(4)))
"""


def test_eight_threads_share_a_model(tiny_bundle: Path) -> None:
    vae = package.load(tiny_bundle, provider="cpu", threads=1)
    alone = package.load(tiny_bundle, provider="cpu", threads=1)
    expected = [alone.sample(7, seed=seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: vae.sample(7, seed=seed), range(64)))
        sessions = set(pool.map(lambda _: id(vae.graph("decoder")), range(64)))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(sessions) == 1


def test_an_asyncio_executor_runs_a_model(tiny_bundle: Path) -> None:
    vae = package.load(tiny_bundle, provider="cpu", threads=1)

    def draw(seed: int) -> bytes:
        return vae.sample(8, seed=seed).tobytes()

    async def several() -> list[bytes]:
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(None, draw, seed) for seed in range(8)]
        return await asyncio.gather(*jobs)

    with ThreadPoolExecutor(1) as own:  # a thread of its own, because other tests may leave a loop running in this one
        found = own.submit(asyncio.run, several()).result()
    assert found == list(map(draw, range(8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_opens_its_own_sessions(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tiny_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 0, result.stderr


def test_spawned_processes_agree(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "spawned.py").write_text(SPAWNED)  # a file, because the new processes import it
    command = [sys.executable, str(tmp_path / "spawned.py"), str(tiny_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
