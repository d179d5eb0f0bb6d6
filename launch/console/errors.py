"""What every script shares: errors in one line, exit codes, and a refusal of foreign packages with our names."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType

import torch

import datasets
import metrics
from launch.console import flags, terminal
from launch.console.terminal import one_line
from launch.machine import distributed, process

ROOT = Path(__file__).resolve().parents[2]

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_LOST_RANK = 5
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command may be tried again
EXIT_INTERRUPTED = 130
INSISTENCE_SECONDS = 3.0
PRECEDENCE_SECONDS = 20.0

_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|bad_alloc|Cannot allocate memory", re.I)
DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Preempted(BaseException):
    """The run was asked to stop (SIGTERM), has saved a checkpoint, and may be resumed.

    No Exception, for a signal's handler raises it anywhere, also where a library (tqdm) catches and drops Exceptions.
    """


class StopRequest:
    """Notes SIGTERM and SIGINT; the loop asks at every step and all ranks stop together.

    Until ``deferred`` is set nothing is worth saving, and a signal ends the process at once.

    A worker gets the signal twice, from the group and from torchrun, so only a SIGINT that comes seconds later means
    that a person does not want to wait.
    """

    def __init__(self) -> None:
        self.asked = self.deferred = False
        self._since = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred:
            raise Preempted("stopped on request before the first step; start it again with the same command")
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self._since > INSISTENCE_SECONDS:
            raise KeyboardInterrupt
        self.asked, self._since = True, self._since or now


def stop_with_children() -> None:
    """Answer SIGTERM and SIGINT in a script that starts others: they are asked to stop, and it ends with them.

    Another SIGINT means that a person does not want to wait.
    """

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process.ask_to_stop()
        raise Preempted("stopped on request, and what it had started too; the same command goes on")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)


def refuse_foreign_packages() -> None:
    """Other projects ship packages of the same names (Hugging Face's ``datasets``); ours must be the ones imported."""
    ours: tuple[ModuleType, ...] = (datasets, metrics)
    for module in ours:
        where = Path(str(module.__file__)).resolve()
        if ROOT not in where.parents:
            raise ValueError(
                f"the package {module.__name__!r} was imported from {where}; run the script in its checkout"
            )


def _report(error: BaseException, remedy: str | None = None, *, speaks: bool | None = None) -> None:
    """One line what is wrong, one what to do, from rank 0 or from the rank that ``speaks`` says.

    Messages are written as "what is wrong; what to do".
    """
    if speaks is None:
        _let_rank_0_speak_first()
    elif not speaks:
        return
    wrong, _, advice = one_line(str(error)).partition("; ")
    print(f"error: {wrong}", file=sys.stderr)
    if advice or remedy:
        print(f"  fix: {advice or remedy}", file=sys.stderr)


def _remedy(error: Exception) -> str:
    """What to do where a message does not say it."""
    if isinstance(error, OSError) and error.errno in DISK_REFUSES:
        return "make room there or let it be written, then run this again; training goes on with --resume auto"
    return "run again with --debug to see where it was raised"


def _note_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread that writes hands a full disk's refusal to whoever writes next, who says it in one line."""
    if not type(ended.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(ended)


def _let_rank_0_speak_first() -> None:
    """Wait on the other ranks: torchrun ends all processes when the first one leaves, perhaps before rank 0 has spoken.

    Rank 0 mostly meets the same error, and its end is then the end of this wait. A rank that outlives it met the error
    alone and says so itself.
    """
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PRECEDENCE_SECONDS)


def main(body: Callable[[list[str]], int | None], *, prints_result: bool = False) -> None:
    """Run a script's ``body(arguments)`` and leave with its exit code.

    Exit codes: 0 done, 2 bad input or a disk that refuses, 3 not finite (diverged), 4 out of memory, 5 another rank
    hangs or died, 75 preempted (resume with ``--resume auto``), 130 interrupted. ``--debug`` shows the traceback behind a message.

    Nothing that is printed ends a script: where a reader of the output leaves or a log is on a full disk, the work goes on.

    Args:
        body: the script; None counts as 0.
        prints_result: what the script prints is all that it makes, so it fails where that can't be written.
    """
    terminal.protect()
    threading.excepthook = _note_end_of_thread
    debug = abandon = False
    try:
        debug, arguments = flags.take_switch("debug", sys.argv[1:])
        process.end_with_parent()
        refuse_foreign_packages()
        process.keep_freed()
        code = body(arguments) or 0
    except BaseException as error:
        code, abandon = _end(error, debug=debug)
    try:
        process.stop()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    lost = terminal.finish()
    if lost is not None and not code:
        _report(
            OSError(f"what this printed is lost ({lost.strerror}); send it where there is room"), speaks=prints_result
        )
        code = EXIT_BAD_INPUT if prints_result else code
    distributed.leave(code, abandon=abandon)


def _end(error: BaseException, *, debug: bool) -> tuple[int, bool]:
    """Say what ended the script: its exit code, and whether to leave without a good-bye to the other ranks.

    Raises:
        BaseException: ``error``, where it is no end that a script may have: a fault of ours.
    """
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, False
    if isinstance(error, SystemExit):  # --help, mostly
        return (error.code if isinstance(error.code, int) else 0), False
    if isinstance(error, Preempted):
        _report(error, speaks=os.environ.get("RANK", "0") == "0")
        return EXIT_PREEMPTED, False
    if debug:
        traceback.print_exception(error)
    if isinstance(error, distributed.LostRank):
        _report(error, speaks=error.speaks)
        return EXIT_LOST_RANK, True
    if is_out_of_memory(error):
        said = (str(error).splitlines() or [""])[0].replace("; ", ", ") or "there is no more memory"
        _report(ValueError(said), "a smaller --batch-size with --accumulation, or --checkpointing")
        return EXIT_OUT_OF_MEMORY, False
    if isinstance(error, FloatingPointError):
        _report(error)
        return EXIT_DIVERGED, False
    if isinstance(error, ValueError | OSError | ModuleNotFoundError):
        _report(error, _remedy(error))
        return EXIT_BAD_INPUT, False
    raise error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, torch's allocator on the host, NumPy, Python or the system ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )
