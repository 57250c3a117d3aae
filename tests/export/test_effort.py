"""The gate's rows follow what a row costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vaekit
from vaekit.errors import ParityError
from vaekit.images.shapes import draw_shapes
from vaekit_export import publish
from vaekit_export.description import VAEDescription
from vaekit_export.effort import effort_for, measure_effort
from vaekit_export.foreign import export_vae
from vaekit_export.parity import BATCH_SIZES
from vaekit_export.publish import Export


def test_the_dearer_a_row_the_fewer_there_are() -> None:
    cheap, middling, costly = effort_for(0.001), effort_for(0.4), effort_for(30.0)
    assert (cheap.rows, cheap.plan.sizes, cheap.once, cheap.most(1000)) == (None, BATCH_SIZES, False, 1000)
    assert (middling.rows, middling.plan.sizes, middling.most(1000), middling.most(3)) == (8, (1, 2, 7), 8, 3)
    assert (costly.rows, costly.plan.sizes, costly.once) == (6, (1, 2, 3), True)
    rows = [effort_for(seconds / 100).most(1000) for seconds in range(1, 300)]
    assert rows == sorted(rows, reverse=True)


def export_at(
    folder: Path, seconds: float, monkeypatch: pytest.MonkeyPatch, encoder: nn.Module | None = None
) -> Export:
    """Export a small model of which a row is said to take so long."""
    ticks: Iterator[float] = iter(index * seconds for index in range(100))
    monkeypatch.setattr(publish, "measure_effort", lambda model, clock: measure_effort(model, lambda: next(ticks)))
    torch.manual_seed(0)
    encode = nn.Sequential(nn.Flatten(), encoder or nn.Identity(), nn.Linear(144, 4))
    decode = nn.Sequential(nn.Linear(4, 144), nn.Sigmoid(), nn.Unflatten(1, (3, 8, 6)))
    images = draw_shapes(40, (8, 6)).images
    return export_vae(encode, decode, VAEDescription((3, 8, 6), (4,)), images, folder / "b")


def test_of_a_costly_model_six_rows_are_proof_enough_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export_at(tmp_path, 20.0, monkeypatch)
    assert [(result.graph, result.count) for result in done.results] == [("encoder", 6), ("decoder", 6)]
    assert done.manifest.parity["batch_sizes"] == [1, 2, 3]
    assert vaekit.load(done.path, provider="cpu").verify().passed


def test_between_there_are_as_many_rows_as_the_time_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = export_at(tmp_path, 0.25, monkeypatch)
    assert {result.count for result in done.results} == {12}
    assert done.manifest.parity["batch_sizes"] == [1, 2, 7]


def test_a_costly_model_whose_rows_hear_each_other_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Centred(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return rows - rows.mean(0, keepdim=True)

    with pytest.raises(ParityError, match="on the other rows of its batch"):
        export_at(tmp_path, 20.0, monkeypatch, Centred())


def test_a_model_that_takes_no_single_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match=r"does not accept a single row: the encoder fails on .*\(1, 3, 8, 6\)"):
        export_at(tmp_path, 0.001, monkeypatch, nn.BatchNorm1d(144, track_running_stats=False))
