"""Batches of images read ahead of the training loop by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from torch import Tensor

from datasets.arrays import Dataset
from datasets.batches import Batches
from datasets.views import Int64


class Batch(NamedTuple):
    """One rank's images of one optimiser step."""

    step: int
    epoch: int
    indices: Int64  # [B]
    images: Tensor  # uint8 [B, C, H, W]


class Loader:
    """Iterate over `Batch(step, epoch, indices, images)` from `start_step` on, read ahead by a background thread.

    The epoch is the `draw` of random views. `num_steps` None never ends. An exception in the thread is raised by the
    next `next()`. Use as a context manager, or call `close()`; iterate once.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Batches,
        start_step: int = 0,
        num_steps: int | None = None,
        *,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        if len(dataset) != batches.num_images:
            raise ValueError(f"batches of {batches.num_images} images do not fit a data set of {len(dataset)}")
        self._dataset, self._batches, self._pin = dataset, batches, pin_memory
        self._start, self._stop = start_step, None if num_steps is None else start_step + num_steps
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=max(1, prefetch))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="strata-loader", daemon=True)
        self._thread.start()

    def _read(self, step: int) -> Batch:
        epoch, indices = self._batches.indices(step)
        images = self._dataset.images(indices, draw=epoch)
        return Batch(step, epoch, indices, images.pin_memory() if self._pin else images)

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
        except BaseException as error:  # handed to the loop, which raises it
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
        """Stop the thread; harmless when repeated."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
