"""Make the bundle flow: a learned prior that carries N(0, I) to a ring, beside untrained networks for 8 x 8 pixels.

Needs the extra `train`. Run `python tests/bundles/make_flow.py` when the format of learned priors changes.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vaekit.images.shapes import draw_shapes
from vaekit.maths.elbo import Likelihood
from vaekit.training.flow import Codes, FlowTraining, VectorVelocity
from vaekit_export.model import Model
from vaekit_export.parity import Tolerances
from vaekit_export.publish import publish

HERE = Path(__file__).parent
STEPS, RADIUS = 3000, 2.0


class Encoder(nn.Module):
    """image (B, 1, 8, 8) → mu and logvar (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.layer(image.flatten(1)).chunk(2, dim=1)
        return mu, logvar - 2


def main() -> None:
    """Learn the ring and export the bundle beside this file."""
    torch.manual_seed(0)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 4000)
    mu = (RADIUS * np.stack((np.cos(angles), np.sin(angles)), 1)).astype(np.float32)
    codes = Codes(mu, np.full_like(mu, 2 * np.log(0.1)))
    training = FlowTraining(codes, 0, VectorVelocity(2, width=32, blocks=2))
    for step in range(STEPS):
        training.advance(step / STEPS)
    model = Model(
        encoder=Encoder(),
        decoder=nn.Sequential(nn.Linear(2, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))),
        image_shape=(1, 8, 8),
        latent_shape=(2,),
        multiple_of=None,
        posterior="diagonal",
        likelihood=Likelihood("gaussian", 0.2),
        scaling=None,
        mixture=None,
        images=draw_shapes(64, (8, 8)).images[:, :1].astype(np.float32) / np.float32(255),
        provenance={"model": "flow"},
        flow=training.flow(),
    )
    publish(model, HERE / "flow", 17, Tolerances(), "images", 1.5, explained=False, say=print)


if __name__ == "__main__":
    main()
