"""Train without batch normalisation, for torchrun: python train_without_statistics.py SOURCE RUN SETTINGS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vaekit.images.dataset import open_source
from vaekit.training.config import Config
from vaekit.training.networks import VAENetwork
from vaekit.training.processes import join_process_group
from vaekit.training.trainer import Trainer


class WithoutStatistics(VAENetwork):
    """A network in which no layer depends on other images of the batch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    setattr(module, name, nn.Identity())


if __name__ == "__main__":
    source, run, settings = sys.argv[1:]
    config = Config(**json.loads(settings))
    torch.manual_seed(config.seed)
    network = WithoutStatistics(config.image_shape, config.latent, config.posterior, config.preset)
    with join_process_group("cpu") as (group, device):
        Trainer(config, open_source(source), Path(run), network=network, group=group, device=device).run()
