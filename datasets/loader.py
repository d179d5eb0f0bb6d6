"""Batches of images read ahead of the training loop by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from datasets.arrays import Indices
from datasets.resident import Resident
from datasets.views import Int64


class Source(Protocol):
    """Images by index; every data set is one."""

    def __len__(self) -> int:
        """Number of images."""

    def images(self, indices: Int64, draw: int = 0) -> Tensor:
        """Images uint8 [B, C, H, W]."""


class Order(Protocol):
    """Order in which steps take images; `Batches` is one."""

    @property
    def num_images(self) -> int:
        """Number of images to choose from."""

    def indices(self, step: int) -> tuple[int, Int64]:
        """Epoch and image indices [B] of a step."""


@runtime_checkable
class Mirroring(Protocol):
    """A data set that can leave the mirroring of its images to the caller."""

    def mirrored(self, indices: Indices, draw: int = 0) -> Tensor | None:
        """Mask of the mirrored images, bool [B]; None if the data set never mirrors."""

    def images(self, indices: Indices, draw: int = 0, *, mirror: bool = True) -> Tensor:
        """Images uint8 [B, C, H, W], mirrored or not."""


class Batch(NamedTuple):
    """One rank's stored images of one optimiser step, and the mask of those to mirror."""

    step: int
    epoch: int
    indices: Int64  # [B]
    stored: Tensor  # uint8 [B, C, H, W]; of resident images their indices, int64 [B]
    mirrored: Tensor | None = None  # bool [B]
    resident: Resident | None = None

    def on(self, device: torch.device | str) -> Tensor:
        """The images on `device`, gathered and mirrored there: uint8 [B, C, H, W]."""
        stored = self.stored if self.resident is None else self.resident.images(self.stored)
        if torch.device(device).type == "cpu":
            return _mirror_some(stored.cpu(), self.mirrored)
        images = stored.to(device, non_blocking=True)
        if self.mirrored is None:
            return images
        chosen = self.mirrored.to(device, non_blocking=True).view(-1, 1, 1, 1)
        return torch.where(chosen, images.flip(-1), images)  # all of them, because selecting would wait for the device

    @property
    def images(self) -> Tensor:
        """The images on the host: uint8 [B, C, H, W]."""
        return self.on("cpu")


def _mirror_some(images: Tensor, mirrored: Tensor | None) -> Tensor:
    """Mirror the masked images; on a CPU only those are touched."""
    if mirrored is None:
        return images
    pixels, chosen = images.numpy().copy(), mirrored.numpy()
    pixels[chosen] = pixels[chosen, ..., ::-1]
    return torch.from_numpy(pixels)


class Loader:
    """Iterate over `Batch`es from `start_step` on, read ahead by a background thread.

    The epoch is the `draw` of random views. With `num_steps` None the iteration never ends. `resident` are the data
    set's images on a device: batches then hold only indices. An exception in the thread is raised by the next `next()`.
    Use as a context manager, or call `close()`; iterate once.
    """

    def __init__(
        self,
        dataset: Source,
        batches: Order,
        start_step: int = 0,
        num_steps: int | None = None,
        *,
        prefetch: int = 2,
        pin_memory: bool = False,
        resident: Resident | None = None,
    ) -> None:
        if len(dataset) != batches.num_images:
            raise ValueError(f"batches of {batches.num_images} images do not fit a data set of {len(dataset)}")
        self._dataset, self._batches, self._pin, self._resident = dataset, batches, pin_memory, resident
        self._start, self._stop = start_step, None if num_steps is None else start_step + num_steps
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=max(1, prefetch))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="strata-loader", daemon=True)
        self._thread.start()

    def _read(self, step: int) -> Batch:
        epoch, indices = self._batches.indices(step)
        dataset = self._dataset
        mirrored = dataset.mirrored(indices, epoch) if isinstance(dataset, Mirroring) else None
        if self._resident is not None:
            stored = torch.from_numpy(indices)
        elif isinstance(dataset, Mirroring) and mirrored is not None:
            stored = dataset.images(indices, draw=epoch, mirror=False)
        else:
            stored = dataset.images(indices, draw=epoch)
        if self._pin:
            stored, mirrored = stored.pin_memory(), None if mirrored is None else mirrored.pin_memory()
        return Batch(step, epoch, indices, stored, mirrored, self._resident)

    def _put(self, item: Batch | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _run(self) -> None:
        step = self._start
        try:
            while not self._closed.is_set() and (self._stop is None or step < self._stop):
                self._put(self._read(step))
                step += 1
            self._put(None)
        except BaseException as error:  # passed to the loop, which raises it
            self._put(error)

    def __iter__(self) -> Iterator[Batch]:
        while not self._closed.is_set():
            item = self._queue.get()
            if isinstance(item, BaseException):
                self.close()
                raise item
            if item is None:
                return self.close()
            yield item

    def close(self) -> None:
        """Stop the thread; may be called repeatedly."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
