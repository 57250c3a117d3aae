"""A training without batch normalisation, for torchrun: python train_without_statistics.py SOURCE RUN SETTINGS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from vaekit.images.dataset import open_source
from vaekit.training import trainer
from vaekit.training.networks import VAENetwork
from vaekit.training.processes import join_team
from vaekit.training.run import Config


class WithoutStatistics(VAENetwork):
    """The network, with nothing in it that looks at other images of the batch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    setattr(module, name, nn.Identity())


if __name__ == "__main__":
    source, run, settings = sys.argv[1:]
    setattr(trainer, "VAENetwork", WithoutStatistics)  # noqa: B010 — the type checker is not to know
    with join_team("cpu") as (team, device):
        trainer.Trainer(Config(**json.loads(settings)), open_source(source), Path(run), team=team, device=device).run()
