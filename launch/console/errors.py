"""Entry point of every script: one-line errors and exit codes."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from launch.console import flags, terminal
from launch.console.terminal import one_line, say
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

_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|Cannot allocate memory|STATUS_ALLOC_FAILED", re.I
)  # the last one is that of cuDNN and cuBLAS
DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Preempted(BaseException):
    """The run was asked to stop (SIGTERM), has saved a checkpoint, and may be resumed.

    Not an Exception: a signal handler may raise it inside a library (tqdm) that catches and drops Exceptions.
    """


class StopRequest:
    """Recorder of SIGTERM and SIGINT; the loop checks it at every step, and all ranks stop together.

    Until ``deferred`` is set there is nothing to save, and a signal ends the process at once.

    A worker gets each signal twice, from its process group and from torchrun. Therefore only a SIGINT that comes
    seconds later is taken as the user's wish to stop without saving.
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
    """On SIGTERM or SIGINT, ask the child processes to stop and end with them.

    A second SIGINT ends them without waiting. A second SIGTERM changes nothing: `timeout` and some schedulers send it
    to the process and again to its group.
    """

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process.ask_to_stop()
        raise Preempted(
            "stopped on request, together with the processes that it had started; repeat the command to continue"
        )

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)


def _report(error: BaseException, remedy: str | None = None, *, speaks: bool | None = None) -> None:
    """Print a line with the error and a line with the remedy, on rank 0 or if ``speaks`` is true.

    Messages are written as "what is wrong; what to do".
    """
    if speaks is None:
        _let_rank_0_speak_first()
    elif not speaks:
        return
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        said = f"{os.fsdecode(error.filename)}: {error.strerror}"
    wrong, _, advice = one_line(said).partition("; ")
    say(f"error: {wrong}", file=sys.stderr)
    if advice or remedy:
        say(f"  fix: {advice or remedy}", file=sys.stderr)


def _remedy(error: Exception) -> str:
    """Remedy for a message that names none."""
    if isinstance(error, OSError) and error.errno in DISK_REFUSES:
        return "make room there or make it writable, then repeat the command; training continues with --resume auto"
    return "run again with --debug to see where it was raised"


def _let_rank_0_speak_first() -> None:
    """Delay the exit of other ranks: torchrun ends all processes when the first one exits, even before rank 0 prints.

    Rank 0 usually meets the same error, and its exit ends this wait. A rank that outlasts the wait met the error alone
    and prints it itself.
    """
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PRECEDENCE_SECONDS)


def main(body: Callable[[list[str]], int | None], *, prints_result: bool = False) -> None:
    """Run a script's ``body(arguments)`` and exit with its exit code.

    Exit codes: 0 done, 2 bad input or a failed disk operation, 3 not finite (diverged), 4 out of memory, 5 another rank
    hangs or died, 75 preempted (resume with ``--resume auto``), 130 interrupted. ``--debug`` shows the traceback behind
    a message.

    Printing never ends a script: if the reader of the output has gone or the log's disk is full, the work continues.

    Args:
        body: the script; None counts as 0.
        prints_result: the output is the script's only result, so the script fails if it can't be written.
    """
    terminal.protect()
    debug = abandon = False
    try:
        debug, arguments = flags.take_switch("debug", sys.argv[1:])
        process.end_with_parent()
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
            OSError(f"the output was lost ({lost.strerror}); send it to a disk with free space"), speaks=prints_result
        )
        code = EXIT_BAD_INPUT if prints_result else code
    distributed.leave(code, abandon=abandon)


def _end(error: BaseException, *, debug: bool) -> tuple[int, bool]:
    """Report the error that ended the script; return its exit code, and whether to abandon the other ranks.

    Raises:
        BaseException: ``error`` itself, if it is a bug of ours.
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
        said = (str(error).splitlines() or [""])[0].replace("; ", ", ") or "out of memory"
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
    """True if a GPU, torch's allocator on the host, NumPy, Python or the system ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )
