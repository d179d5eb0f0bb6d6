"""Records of a training run: TensorBoard, JSON lines, and a progress bar or a line per interval, all from rank 0."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries
from tqdm import tqdm

from launch.console.terminal import one_line, say
from launch.machine import files
from launch.machine.files import plain

CURVES = {
    "rate and distortion": ["val/rate", "val/distortion"],
    "negative ELBO, train and held out": ["train/negative_elbo", "val/negative_elbo"],
    "bits per dim": ["train/bits_per_dim", "val/bits_per_dim"],
}


NAME = "metrics.jsonl"
MOST_BYTES = 4 * files.GIB
# Wall-clock time and CPU time of rank 0 since the first start, without the time between an end and the next start.
CLOCKS: dict[str, Callable[[], float]] = {"seconds": time.monotonic, "cpu_seconds": time.process_time}
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d{1,15})\..+")
MAY_FAIL = (OSError, ValueError, RuntimeError)  # errors of the libraries that write pictures and events


def read(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Read the lines of a ``metrics.jsonl``, each with its record, or None if it holds no record with a step.

    A missing file has no lines.

    Raises:
        ValueError: it is not a regular file, or can't be read.
    """
    if not path.exists():
        return []
    remedy = "move it away and the run continues without its old records"
    return files.read(path, lambda file: [(line, _record(line)) for line in file], remedy=remedy, limit=MOST_BYTES)


def held_out(folder: Path) -> list[str]:
    """Read the lines of a run folder's ``metrics.jsonl`` that hold an evaluation."""
    found = read(folder / NAME)
    return [
        line.decode().rstrip("\n") + "\n"
        for line, record in found
        if record is not None and any(name.startswith("val/") for name in record)
    ]


def with_number(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    """Read the records of a run folder that hold a finite number ``name``, by step; the last of a step counts."""
    found = [record for _, record in read(folder / NAME) if record is not None and number(record, name) is not None]
    return {record["step"]: record for record in sorted(found, key=lambda record: record["step"])}


def number(record: Mapping[str, Any], name: str) -> float | None:
    """A record's finite number ``name``; None if it has no such number."""
    value = record.get(name)
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # damaged, or truncated by a kill
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


class Monitor:
    """The writer of a run's records; on ranks other than 0 every method does nothing.

    No failure here ends a run: a record that can't be written is reported once, and the run continues.

    Args:
        folder: the run folder, which gets ``metrics.jsonl`` and TensorBoard's event files.
        active: True on rank 0.
        resume_step: step to continue from; records of later steps are dropped.
        name: name of the run, put before its messages if the process trains several.
        shows_progress: show the progress bar; several runs share one.
        shows: True for the names of the values that TensorBoard gets; the JSON lines hold all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        resume_step: int = 0,
        total_steps: int = 0,
        name: str = "",
        shows_progress: bool = True,
        shows: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.active = active
        self._began: dict[str, float] = {}
        self._recorded: set[str] = set()  # names of the values that were recorded at ``resume_step``
        if not active:
            return
        _silence_threads_of_tensorboard()
        self._path = folder / NAME
        self._first_step, self._total_steps = resume_step, total_steps
        self._prefix, self._shows_progress, self._shows = name and f"{name}: ", shows_progress, shows
        self._refused: set[str] = set()  # records whose latest write failed
        self._writer: SummaryWriter | None = None
        self._start = time.monotonic()
        self._began = {name: clock() for name, clock in CLOCKS.items()}
        hidden = not (shows_progress and sys.stderr.isatty())
        self._bar = tqdm(total=total_steps, initial=resume_step, unit="step", disable=hidden, dynamic_ncols=True)
        # TensorBoard drops older events from this step on when it reads this process's first event file
        self._purge_step: int | None = resume_step + 1
        kept_at_step: list[dict[str, Any]] = []
        with self.best_effort(NAME):
            kept_at_step = self._drop_lost_future()
        with self.best_effort("TensorBoard's events"):
            _sort_before_now(folder)
        for record in kept_at_step:  # the final evaluation is repeated, so its events are dropped
            self._purge_step = resume_step
            values = {tag: value for tag, value in record.items() if isinstance(value, float) and tag not in CLOCKS}
            self._add_scalars(values, resume_step)
        if not resume_step:
            self._write_events(lambda writer: writer.add_custom_scalars({"Nats per image": self._curves()}))

    def _drop_lost_future(self) -> list[dict[str, Any]]:
        """Drop the records after the first step, and those of the final evaluation, which is repeated.

        Unreadable lines stay, except a last line that a kill truncated.

        Returns:
            The remaining records of the first step, if its final evaluation was dropped.
        """
        kept, of_first_step, dropped_final, spent = [], [], False, dict.fromkeys(CLOCKS, 0.0)
        lines = read(self._path)
        for line, record in lines:
            if record is None:
                kept += [line] if line.endswith(b"\n") else []
                continue
            is_first = record["step"] == self._first_step
            is_final = is_first and "val/elbo" in record and self._first_step == self._total_steps
            dropped_final = dropped_final or is_final
            if record["step"] > self._first_step or is_final:
                continue
            self._recorded |= record.keys() if is_first else set()
            spent = {name: number(record, name) or before for name, before in spent.items()}
            kept.append(line.rstrip(b"\n") + b"\n")
            of_first_step += [record] if is_first else []
        self._began = {name: began - spent[name] for name, began in self._began.items()}
        whole, left = b"".join(line for line, _ in lines), b"".join(kept)
        if whole.startswith(left) and whole != left:
            os.truncate(self._path, len(left))  # in place, because the disk may have no space for another file
        elif whole != left:
            files.write_bytes(self._path, left)
        return of_first_step if dropped_final else []

    def has_recorded(self, prefix: str) -> bool:
        """True if values whose names begin with ``prefix`` were recorded at the step that training resumes from."""
        return any(name.startswith(prefix) for name in self._recorded)

    @contextlib.contextmanager
    def best_effort(self, what: str) -> Iterator[None]:
        """Write a record; an error does not end the run, and is reported once until the record is next written."""
        try:
            yield
        except MAY_FAIL as error:
            if what not in self._refused:
                self.say(
                    f"warning: {what} could not be written ({files.reason(error)}); training continues without it; "
                    f"make room in {self._path.parent}"
                )
            self._refused.add(what)
        else:
            self._refused.discard(what)

    def _write_events(self, write: Callable[[SummaryWriter], None]) -> None:
        """Let ``write`` use TensorBoard's writer, and replace the writer after an error."""
        with self.best_effort("TensorBoard's events"):
            if self._writer is None:
                self._writer = SummaryWriter(str(self._path.parent), purge_step=self._purge_step)
                self._purge_step = None
            try:
                write(self._writer)
            except BaseException:
                self._writer = None
                raise

    def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
        def write(writer: SummaryWriter) -> None:
            for tag in filter(self._shows, values):
                writer.add_scalar(tag, values[tag], step)

        self._write_events(write)

    def _curves(self) -> dict[str, list[Any]]:
        """Layout of TensorBoard's first page, without charts of values that are not shown."""
        shown = {title: [tag for tag in tags if self._shows(tag)] for title, tags in CURVES.items()}
        return {title: ["Multiline", tags] for title, tags in shown.items() if tags}

    def spent(self) -> dict[str, float]:
        """Time spent on the run since its first start, in seconds of each clock; {} on a rank that writes nothing."""
        return {name: round(CLOCKS[name]() - began, 3) for name, began in self._began.items()}

    def _append(self, record: Mapping[str, Any]) -> None:
        """Append a line, all of it or nothing."""
        line = json.dumps(plain(record)).encode() + b"\n"
        with open(self._path, "ab", buffering=0) as file:  # opened each time, because the folder may have been moved
            size = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.truncate(self._path, size)
                raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one JSON line, and one TensorBoard scalar per value that is shown."""
        if not self.active:
            return
        with self.best_effort(NAME):
            self._append({"step": step, **self.spent(), **values})
        self._add_scalars(values, step)

    def image(self, step: int, tag: str, image: np.ndarray[Any, Any]) -> None:
        """Write an image, uint8 [H, W, 3]."""
        if self.active:
            self._write_events(lambda writer: writer.add_image(tag, image, step, dataformats="HWC"))

    def hparams(self, values: Mapping[str, Any], scores: Sequence[str]) -> None:
        """Write settings for TensorBoard's HPARAMS tab into this run, unlike ``add_hparams``, which makes another run.

        Args:
            values: settings in the order of the tab's columns.
            scores: names of scalars whose last value the tab shows beside them. They get no charts of their own, which
                TensorBoard would show first.
        """
        if not self.active:
            return
        simple = {k: v if isinstance(v, bool | int | float) else one_line(v) for k, v in values.items()}

        def write(writer: SummaryWriter) -> None:
            for summary in hparams_summaries(simple, dict.fromkeys(scores, 0.0)):
                writer._get_file_writer().add_summary(summary)

        self._write_events(write)

    def progress(self, step: int, text: Mapping[str, float]) -> None:
        """Move the bar to ``step``; if stderr is not a terminal, print a line instead."""
        if not self.active or not self._shows_progress:
            return
        shown = "  ".join(f"{k} {v:.4g}" for k, v in text.items())
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(shown)
            return
        done = max(step - self._first_step, 1)
        left = (time.monotonic() - self._start) / done * max(self._total_steps - step, 0)
        say(f"step {step}/{self._total_steps}  {shown}  {duration(left)} left", file=sys.stderr)

    def say(self, text: str, *, file: IO[str] | None = None) -> None:
        """Print a line above the bar, on standard error or on ``file``."""
        if self.active:
            tqdm.write(self._prefix + one_line(text), file=file or sys.stderr)

    def flush(self) -> None:
        """Flush TensorBoard's events to disk; the JSON lines are already there."""
        if self.active and self._writer is not None:
            self._write_events(lambda writer: writer.flush())

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._bar.close()
            if self._writer is not None:
                self._write_events(lambda writer: writer.close())


def _silence_threads_of_tensorboard() -> None:
    """Print no traceback of TensorBoard's writer thread: the writer raises the same error at its next use."""
    before = threading.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook


def _sort_before_now(folder: Path) -> None:
    """Rename event files whose clock was ahead to an earlier time.

    TensorBoard reads event files in the order of their names, which begin with a time. An older file that sorts last
    would hide all events that its run wrote after resuming.
    """
    now = int(time.time())
    dated = {path: _EVENTS.fullmatch(path.name) for path in folder.glob("events.out.tfevents.*")}
    ahead = sorted(
        ((int(found[1]), path.name, path) for path, found in dated.items() if found and int(found[1]) >= now)
    )
    for i, (_, name, path) in enumerate(ahead):
        rest = name.split(".", 4)[4]
        path.rename(path.with_name(f"events.out.tfevents.{now - len(ahead) + i:010d}.{rest}"))


def duration(seconds: float) -> str:
    """Format a duration with its two largest units, such as 3 h 5 min."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
