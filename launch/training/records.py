"""What a person watches: TensorBoard, JSON lines, and one progress bar or a line per interval, all from rank 0."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries
from tqdm import tqdm

from launch.machine.files import plain, write_text

CURVES = {
    "ELBO (nats per image)": {
        "rate and distortion": ["Multiline", ["val/rate", "val/distortion"]],
        "negative ELBO, train and held out": ["Multiline", ["train/negative_elbo", "val/negative_elbo"]],
        "bits per dim": ["Multiline", ["train/bits_per_dim", "val/bits_per_dim"]],
    }
}


class Monitor:
    """Writes a run's records; on ranks other than 0 every method does nothing.

    Args:
        folder: the run folder, which gets ``metrics.jsonl`` and TensorBoard's event files.
        active: whether this is rank 0.
        resume_step: records past this step belong to a future that was lost, and are dropped.
        name: of a run among several in this process, put before what it says.
        shows_progress: several runs share one progress bar.
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
    ) -> None:
        self.active = active
        self._recorded: set[str] = set()  # names of the values recorded at ``resume_step``
        if not active:
            return
        self._path = folder / "metrics.jsonl"
        self._first_step, self._total_steps = resume_step, total_steps
        self._prefix, self._shows_progress = name and f"{name}: ", shows_progress
        self._refused: set[str] = set()  # what could not be written the last time it was tried
        self._drop_lost_future()
        self._lines = self._path.open("a", encoding="utf-8")
        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=resume_step + 1)
        if not resume_step:
            self._writer.add_custom_scalars(CURVES)
        self._start = time.monotonic()
        hidden = not (shows_progress and sys.stderr.isatty())
        self._bar = tqdm(total=total_steps, initial=resume_step, unit="step", disable=hidden, dynamic_ncols=True)

    def _drop_lost_future(self) -> None:
        """Drop records past the first step, and the final evaluation, which is made again."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                past = record["step"] > self._first_step
            except (ValueError, KeyError, TypeError):
                continue  # the line that a kill cut short
            evaluated = record["step"] == self._first_step and "val/elbo" in record
            if past or (evaluated and self._first_step == self._total_steps):
                continue
            if record["step"] == self._first_step:
                self._recorded |= record.keys()
            kept.append(line + "\n")
        write_text(self._path, "".join(kept))

    def has_recorded(self, prefix: str) -> bool:
        """Whether values whose names begin with ``prefix`` were recorded at the step that training resumes from."""
        return any(name.startswith(prefix) for name in self._recorded)

    @contextlib.contextmanager
    def best_effort(self, what: str) -> Iterator[None]:
        """Write a record: a disk that refuses it does not end a run that goes on well; it is said once until it works again."""
        try:
            yield
        except OSError as error:
            if what not in self._refused:
                self.say(
                    f"warning: {what} could not be written ({error.strerror or error}); training goes on without it; "
                    f"make room in {self._path.parent}"
                )
            self._refused.add(what)
        else:
            self._refused.discard(what)

    @contextlib.contextmanager
    def _events(self) -> Iterator[SummaryWriter]:
        """TensorBoard's writer; one whose thread a full disk has ended is replaced the next time."""
        with self.best_effort("TensorBoard's events"):
            writer = self._writer = self._writer or SummaryWriter(str(self._path.parent))
            try:
                yield writer
            except OSError:
                self._writer = None
                raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One JSON line and one TensorBoard scalar per value."""
        if not self.active:
            return
        record = {"step": step, "seconds": round(time.monotonic() - self._start, 3), **values}
        with self.best_effort(self._path.name):
            self._lines.write(json.dumps(plain(record)) + "\n")
            self._lines.flush()
        with self._events() as writer:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

    def image(self, step: int, tag: str, image: np.ndarray[Any, Any]) -> None:
        """An image [H, W, 3] uint8."""
        if self.active:
            with self._events() as writer:
                writer.add_image(tag, image, step, dataformats="HWC")

    def hparams(self, step: int, values: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """The run's settings and final scores for TensorBoard's HPARAMS tab, in the same run (``add_hparams`` makes another)."""
        if not self.active:
            return
        simple = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        with self._events() as writer:
            for summary in hparams_summaries(simple, dict(scores)):
                writer._get_file_writer().add_summary(summary)
            for tag, value in scores.items():
                writer.add_scalar(tag, value, step)

    def progress(self, step: int, text: Mapping[str, float]) -> None:
        """Move the bar to ``step``; where stderr is no terminal print a line."""
        if not self.active or not self._shows_progress:
            return
        shown = "  ".join(f"{k} {v:.4g}" for k, v in text.items())
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(shown)
            return
        done = max(step - self._first_step, 1)
        left = (time.monotonic() - self._start) / done * max(self._total_steps - step, 0)
        print(f"step {step}/{self._total_steps}  {shown}  {_duration(left)} left", file=sys.stderr)

    def say(self, text: str) -> None:
        """A line for the person, above the bar."""
        if self.active:
            tqdm.write(self._prefix + text, file=sys.stderr)

    def flush(self) -> None:
        """Bring everything written so far onto the disk."""
        if self.active:
            with self.best_effort(self._path.name):
                self._lines.flush()
            with self._events() as writer:
                writer.flush()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._bar.close()
            with self.best_effort(self._path.name):
                self._lines.close()
            with self._events() as writer:
                writer.close()


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
