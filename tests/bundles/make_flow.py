"""Make the bundles flow and labels: learned priors, beside untrained networks for 8 x 8 pixels.

The prior of flow carries N(0, I) to a ring. That of labels carries a mixture to three arcs of the ring, a label each:
top, left and right. Needs the extra `train`. Run `python tests/bundles/make_flow.py` when the format of learned priors
changes; `python tests/bundles/make_flow.py labels` makes that one only.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaekit.images.shapes import SHAPE_NAMES, draw_shapes, known_factors
from vaekit.maths.elbo import Likelihood
from vaekit.training.flow import Codes, Flow, FlowTraining, VectorVelocity
from vaekit.training.mixture import fit_mixture
from vaekit_export.model import Model
from vaekit_export.parity import Tolerances
from vaekit_export.publish import publish

HERE = Path(__file__).parent
STEPS, RADIUS, COUNT = 3000, 2.0, 4000
NAMES, CENTRES, HALF_ARC = ("top", "left", "right"), np.deg2rad([90.0, 210.0, 330.0]), np.deg2rad(45.0)


class Encoder(nn.Module):
    """image (B, 1, 8, 8) → mu and logvar (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.layer(image.flatten(1)).chunk(2, dim=1)
        return mu, logvar - 2


def main() -> None:
    """Learn the priors and export the bundles beside this file."""
    flows = {"flow": ring, "labels": arcs}
    for name in sys.argv[1:] or flows:
        torch.manual_seed(0)
        export(name, flows[name]())


def ring() -> Flow:
    """Learn a ring from N(0, I)."""
    codes = around(np.random.default_rng(0).uniform(0, 2 * np.pi, COUNT))
    return learnt(FlowTraining(codes, 0, network=VectorVelocity(2, width=32, blocks=2)))


def arcs() -> Flow:
    """Learn three arcs from a mixture. The top has half of the codes, and one in ten of them has no label."""
    random = np.random.default_rng(0)
    labels = random.choice(3, COUNT, p=[0.5, 0.25, 0.25])
    codes = around(CENTRES[labels] + random.uniform(-HALF_ARC, HALF_ARC, COUNT))
    shown = np.where((labels == 0) & (random.random(COUNT) < 0.1), -1, labels)
    codes = Codes(codes.mu, codes.logvar, shown, NAMES)
    z = codes.mu + 0.1 * random.standard_normal(codes.mu.shape, np.float32)
    mixture = fit_mixture(z, shown, components=6)
    return learnt(FlowTraining(codes, 0, mixture, network=VectorVelocity(2, len(NAMES), width=32, blocks=2)))


def around(angles: NDArray[np.float64]) -> Codes:
    """Return codes at angles of the ring."""
    mu = (RADIUS * np.stack((np.cos(angles), np.sin(angles)), 1)).astype(np.float32)
    return Codes(mu, np.full_like(mu, 2 * np.log(0.1)))


def learnt(training: FlowTraining) -> Flow:
    """Train for STEPS steps."""
    for step in range(STEPS):
        training.advance(step / STEPS)
    return training.flow()


def export(name: str, flow: Flow) -> None:
    """Export the bundle of a flow. If it knows labels, the held-out images have classes: the shapes' names."""
    shapes = draw_shapes(64, (8, 8))
    model = Model(
        encoder=Encoder(),
        decoder=nn.Sequential(nn.Linear(2, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))),
        image_shape=(1, 8, 8),
        latent_shape=(2,),
        multiple_of=None,
        posterior="diagonal",
        likelihood=Likelihood("gaussian", 0.2),
        scaling=None,
        mixture=flow.mixture,
        labels=flow.labels,
        classes=(SHAPE_NAMES, shapes.factors[:, 0].astype(np.int64)) if flow.labels else None,
        factors=known_factors(shapes.factors) if flow.labels else None,
        images=shapes.images[:, :1].astype(np.float32) / np.float32(255),
        provenance={"model": name},
        flow=flow,
    )
    publish(model, HERE / name, 17, Tolerances(), "images", 1.5, explained=False, say=print)


if __name__ == "__main__":
    main()
