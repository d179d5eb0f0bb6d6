"""Another project's trainer (pythae from PyPI) on Burgess' network, timed on request: runs in its own environment.

It reads a line for each requested epoch and answers with a JSON line of its seconds and its mean loss. It imports
nothing of ours: the images come as a file.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn


class Encoder(BaseEncoder):  # type: ignore[misc]
    """Four convolutions, two dense layers of 256."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (1, 32, 32, 32):
            layers += [nn.Conv2d(before, 32, 4, 2, 1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.mean, self.log_variance = nn.Linear(256, latent_dim), nn.Linear(256, latent_dim)

    def forward(self, x: Tensor) -> ModelOutput:
        """Mean and log-variance."""
        h = self.layers(x)
        return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))


class Decoder(BaseDecoder):  # type: ignore[misc]
    """The encoder mirrored."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((latent_dim, 256), (256, 256), (256, 512)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        layers.append(nn.Unflatten(1, (32, 4, 4)))
        for _ in range(3):
            layers += [nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid())

    def forward(self, z: Tensor) -> ModelOutput:
        """Probability of white."""
        return ModelOutput(reconstruction=self.layers(z))


class Images(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Data set in pythae's form: a dict for each image."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"data": self.images[index]}


def main(path: str, batch_size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    images = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    model = VAE(
        VAEConfig(input_dim=(1, 64, 64), latent_dim=10, reconstruction_loss="bce"),
        encoder=Encoder(10),
        decoder=Decoder(10),
    )
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            per_device_train_batch_size=batch_size,
            learning_rate=5e-4,
            no_cuda=not torch.cuda.is_available(),
        )
        trainer = BaseTrainer(model, Images(images), training_config=config)
        trainer.prepare_training()
        print(json.dumps({"ready": True}), flush=True)
        for epoch, _ in enumerate(sys.stdin, start=1):
            start = time.perf_counter()
            loss = float(trainer.train_step(epoch))
            print(json.dumps({"seconds": time.perf_counter() - start, "loss": loss}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
