"""Batches for training, read ahead on the host or gathered from images kept on the device."""

from __future__ import annotations

import torch

import datasets
from datasets import resident
from datasets.loader import Order
from launch.console.config import RunConfig

LARGEST_SHARE = 0.1  # of a GPU's memory, for images that --data-on-device auto keeps there


def keeps_on_device(config: RunConfig, data: datasets.Dataset, device: torch.device) -> bool:
    """True if the training images are kept on the device (``--data-on-device``).

    With auto they are, on a GPU, if they take at most a tenth of its memory.

    Raises:
        ValueError: requested for images whose pixels are drawn anew in each epoch.
    """
    size = resident.nbytes(data)
    if config.data_on_device == "yes" and size is None:
        raise ValueError(f"--data-on-device yes: {data.name} draws its pixels anew in each epoch; leave it out")
    if config.data_on_device != "auto" or size is None or device.type != "cuda":
        return config.data_on_device == "yes"
    return size <= LARGEST_SHARE * torch.cuda.get_device_properties(device).total_memory


def keep(config: RunConfig, data: datasets.Dataset, device: torch.device) -> resident.Resident | None:
    """Move the images to ``device`` if :func:`keeps_on_device` says so."""
    return resident.to_device(data, device) if keeps_on_device(config, data, device) else None


def loader(
    data: datasets.Dataset,
    order: Order,
    start: int,
    num_steps: int,
    device: torch.device,
    kept: resident.Resident | None,
) -> datasets.Loader:
    """Load the batches of the steps from ``start`` on, from the images that :func:`keep` moved if there are any."""
    return datasets.Loader(data, order, start, num_steps, pin_memory=device.type == "cuda", resident=kept)
