"""The training loop: one for a single run and for several runs that are trained as one batched model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import datasets
from datasets import resident
from datasets.views import Int64
from launch.console import errors
from launch.console.config import RunConfig
from launch.machine import execution
from launch.training import evaluation
from launch.training.run import Run
from launch.training.step import StepReport


class Together:
    """The images of several runs' batches, one run after the other; random views are those of each run's own data."""

    def __init__(self, data: Sequence[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data[0])

    def images(self, indices: Int64, draw: int = 0, *, mirror: bool = True) -> Tensor:
        """Images uint8 [N * B, C, H, W] of indices [N * B]."""
        return torch.cat([data.images(part, draw, mirror=mirror) for data, part in self._parts(indices)])

    def mirrored(self, indices: Int64, draw: int = 0) -> Tensor | None:
        """Mask of the mirrored images, bool [N * B]; None if their mirroring cannot be left to the caller."""
        flags = [data.mirrored(part, draw) for data, part in self._parts(indices)]
        return None if any(flag is None for flag in flags) else torch.cat(flags)

    def _parts(self, indices: Int64) -> Iterator[tuple[Any, Int64]]:
        return zip(self.data, np.split(indices, len(self.data)), strict=True)


TakeStep = Callable[[Tensor, bool], Sequence[StepReport]]
"""Takes one optimiser step of every run on uint8 images [N * B, C, H, W]; the flag asks all ranks to stop."""


class Orders:
    """Image indices of several runs' batches, one run after the other."""

    def __init__(self, orders: Sequence[datasets.Batches]) -> None:
        self.orders, self.num_images = orders, orders[0].num_images

    def indices(self, step: int) -> tuple[int, Int64]:
        """Epoch and image indices int64 [N * B] of an optimiser step."""
        parts = [order.indices(step) for order in self.orders]
        return parts[0][0], np.concatenate([indices for _, indices in parts])


class Loop:
    """The training loop: it trains one run, or several in lockstep, until they end, diverge, or are asked to stop.

    Args:
        runs: one run, or several with the same data, batch size and intervals.
        take_step: takes one step of all runs.
    """

    def __init__(self, runs: Sequence[Run], take_step: TakeStep) -> None:
        self.runs, self.take_step = runs, take_step
        self.first = runs[0]
        self._unsettled: deque[tuple[datasets.Batch, Sequence[StepReport]]] = deque()

    def train(self) -> None:
        """Train to the end, and finish the runs that reach it.

        Raises:
            Preempted: asked to stop; a checkpoint of every run is saved.
            FloatingPointError: naming the runs that diverged.
        """
        try:
            self._steps()
            for run in self.runs:
                if run.is_lost:
                    continue
                if run.state.step >= run.total_steps:
                    run.finish()
                else:
                    run.require_saved()
        except evaluation.Stopped:
            raise self._preempted() from None
        self._raise_if_lost()

    def _steps(self) -> None:
        first, device = self.first, self.first.ranks.device
        step, end = first.state.step, first.end
        self._make_up(step)
        if step >= end:
            return
        order = Orders([run.order for run in self.runs])
        kept = keep_on_device(first.config.run, first.train_data, device)
        share_views = all(run.train_data is first.train_data for run in self.runs)
        data = first.train_data if share_views else Together([run.train_data for run in self.runs])
        pin = device.type == "cuda"
        with datasets.Loader(data, order, step, end - step, pin_memory=pin, resident=kept) as batches:
            since, last_logged = time.monotonic(), step
            for batch in batches:
                reports = self._take(batch)
                step = first.state.step
                if self._is_due(step):
                    for run in self.runs:
                        run.trainer.settle()
                stop = self._note_settled() or (first.ranks.world_size == 1 and first.stop.asked)
                if first.logs_at(step):
                    for run, report in zip(self.runs, reports, strict=True):
                        run.log_step(report, time.monotonic() - since, step - last_logged)
                    since, last_logged = time.monotonic(), step
                if first.saves_at(step):
                    self._save()
                if all(run.is_lost for run in self.runs):
                    return
                if stop and step < end:
                    raise self._preempted()
                if self._measure(step):
                    since, last_logged = time.monotonic(), step

    def _is_due(self, step: int) -> bool:
        first = self.first
        return first.logs_at(step) or first.saves_at(step) or first.evaluates_at(step) or first.scores_at(step)

    def _save(self) -> None:
        """Save every run, except one whose latest steps were not finite, so that its last good checkpoint is kept."""
        for run in self.runs:
            if run.state.num_bad_in_a_row == 0 or (run.state.step == run.end and not run.is_lost):
                run.save()

    def _measure(self, step: int) -> bool:
        """Evaluate and score if ``step`` asks for it."""
        evaluates, scores = self.first.evaluates_at(step), self.first.scores_at(step)
        for run in self.runs:
            if evaluates:
                run.evaluate()
            if scores:
                run.record_scores()
        return evaluates or scores

    def _make_up(self, step: int) -> None:
        """Do the evaluation and scores that were due at ``step``, if the run was stopped just before them."""
        for run in self.runs:
            if run.evaluates_at(step) and not run.ranks.from_main(run.monitor.has_recorded("val/")):
                run.evaluate()
            if run.scores_at(step) and not run.ranks.from_main(run.monitor.has_recorded("score/")):
                run.record_scores()

    def _take(self, batch: datasets.Batch) -> Sequence[StepReport]:
        """Take a step on a batch.

        Raises:
            Preempted: a stop signal ended the compiler as well; that step is lost.
            ValueError: the compiler failed.
        """
        first = self.first
        try:
            reports = self.take_step(batch.on(first.ranks.device), first.stop.asked)
        except RuntimeError as error:
            if not execution.failed(error):
                raise
            if first.stop.asked:
                for run in self.runs:
                    run.mark_preempted()
                raise errors.Preempted(first.says_stopped()) from error
            raise ValueError(execution.compiler_fault(error)) from error
        self._unsettled.append((batch, reports))
        return reports

    def _note_settled(self) -> bool:
        """Process the settled steps; True if the ranks agreed in one of them to stop."""
        stop = False
        while self._unsettled and all(report.settled for report in self._unsettled[0][1]):
            batch, reports = self._unsettled.popleft()
            size = len(batch.indices) // len(reports)
            for i, (run, report) in enumerate(zip(self.runs, reports, strict=True)):
                was_lost = run.is_lost
                run.note(batch._replace(indices=batch.indices[i * size : (i + 1) * size]), report)
                stop = stop or report.stop
                if run.is_lost and not was_lost and len(self.runs) > 1:
                    run.monitor.say(f"warning: {run.says_diverged()}; the other replicas continue")
        return stop

    def _preempted(self) -> errors.Preempted:
        for run in self.runs:
            run.save_for_later()
        return errors.Preempted(self.first.says_stopped())

    def _raise_if_lost(self) -> None:
        lost = [run.name for run in self.runs if run.is_lost]
        if not lost:
            return
        if len(self.runs) == 1:
            raise FloatingPointError(self.first.says_diverged())
        raise FloatingPointError(
            f"{len(lost)} of {len(self.runs)} replicas diverged ({', '.join(lost)}, see diverged.json there) and the others "
            "are complete; train these again with a lower --lr, or --grad-clip, or --precision fp32"
        )


# --- Images kept on the device -----------------------------------------------------------------------------------------

LARGEST_SHARE = 0.1  # of a GPU's memory, for images that --data-on-device auto keeps there


def keeps_on_device(config: RunConfig, data: datasets.Dataset, device: torch.device) -> bool:
    """True if the training images are kept on the device (``--data-on-device``).

    With auto, they are kept on a GPU if they take at most a tenth of its memory.

    Raises:
        ValueError: the pixels are drawn anew in each epoch, and --data-on-device is yes.
    """
    size = resident.nbytes(data)
    if config.data_on_device == "yes" and size is None:
        raise ValueError(f"--data-on-device yes: {data.name} draws its pixels anew in each epoch; leave it out")
    if config.data_on_device != "auto" or size is None or device.type != "cuda":
        return config.data_on_device == "yes"
    return size <= LARGEST_SHARE * torch.cuda.get_device_properties(device).total_memory


def keep_on_device(config: RunConfig, data: datasets.Dataset, device: torch.device) -> resident.Resident | None:
    """Move the images to ``device`` if :func:`keeps_on_device` is true."""
    return resident.to_device(data, device) if keeps_on_device(config, data, device) else None
