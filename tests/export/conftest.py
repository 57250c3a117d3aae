"""A tiny run, trained once, and its two graphs, exported once per opset."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

# PyTorch reads this when it loads. Waiting threads must not spin, because tests share the processors with other work.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest
import torch

from vaekit.images.dataset import open_source
from vaekit.images.shapes import draw_shapes
from vaekit.training.config import Config
from vaekit.training.run import Run, load_run
from vaekit.training.trainer import Trainer
from vaekit.types import GraphName
from vaekit_export.onnx_export import ExportedGraph, export_onnx
from vaekit_export.publish import Export, export_run

MakeGraph = Callable[..., ExportedGraph]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run on 200 coloured shapes of 16 x 13 pixels with two latent dimensions."""
    folder = tmp_path_factory.mktemp("tiny")
    source, path = folder / "secret-shapes.npy", folder / "run"
    np.save(source, draw_shapes(200, (16, 13)).images)
    config = Config(
        source=str(source),
        channels=3,
        height=16,
        width=13,
        latent=2,
        likelihood="gaussian",
        sigma=None,
        beta=1.0,
        steps=40,
        batch_size=32,
        lr=4e-3,
        seed=0,
    )
    Trainer(config, open_source(str(source)), path).run()
    return load_run(path)


@pytest.fixture(scope="session")
def make_graph(tiny_run: Run) -> MakeGraph:
    """Return ``make_graph("encoder", 17)``: a module of the tiny run and its ONNX file."""

    @functools.cache
    def make(name: GraphName, opset: int = 17) -> ExportedGraph:
        module = getattr(tiny_run.network, name)
        input_name, outputs = {"encoder": ("image", ("mu", "logvar")), "decoder": ("z", ("image",))}[name]
        torch.manual_seed(0)
        example = torch.rand(2, 3, 16, 13) if name == "encoder" else torch.randn(2, 2)
        data = export_onnx(module, example, input_name=input_name, output_names=outputs, opset=opset)
        return ExportedGraph(name, module, data, input_name, outputs)

    return make


@pytest.fixture(scope="session")
def published(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return the tiny run's bundle. Tests must not change it."""
    return export_run(tiny_run.path, tmp_path_factory.mktemp("published") / "bundle")
