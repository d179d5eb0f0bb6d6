"""What every script shares: errors in one line, exit codes, and a refusal of foreign packages with our names."""

from __future__ import annotations

import errno
import os
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
from launch.machine import distributed, host_memory

ROOT = Path(__file__).resolve().parents[2]

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_LOST_RANK = 5
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command may be tried again
EXIT_INTERRUPTED = 130
INSISTENCE_SECONDS = 3.0
PRECEDENCE_SECONDS = 20.0

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


def one_line(text: str) -> str:
    """``text`` with line ends, control characters and whatever else no terminal shows as Python writes them in a string.

    Messages quote names out of files that others made.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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


def main(body: Callable[[list[str]], int | None]) -> None:
    """Run a script's ``body(arguments)`` and leave with its exit code.

    Exit codes: 0 done, 2 bad input or a disk that refuses, 3 not finite (diverged), 4 out of memory, 5 another rank
    hangs or died, 75 preempted (resume with ``--resume auto``), 130 interrupted. ``--debug`` shows the traceback behind a message.
    """
    abandon = False
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    threading.excepthook = _note_end_of_thread
    try:
        refuse_foreign_packages()
        host_memory.keep_freed()
        code = body(arguments) or 0
    except Preempted as stop:
        _report(stop, speaks=os.environ.get("RANK", "0") == "0")
        code = EXIT_PREEMPTED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except torch.OutOfMemoryError as error:
        code = EXIT_OUT_OF_MEMORY
        _report_debug(debug)
        _report(
            ValueError(str(error).splitlines()[0].replace("; ", ", ")),
            "a smaller --batch-size with --accumulation, or --checkpointing",
        )
    except distributed.LostRank as error:
        _report_debug(debug)
        _report(error, speaks=error.speaks)
        code, abandon = EXIT_LOST_RANK, True
    except FloatingPointError as error:
        code = EXIT_DIVERGED
        _report_debug(debug)
        _report(error)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        code = EXIT_BAD_INPUT
        _report_debug(debug)
        _report(error, _remedy(error))
    distributed.leave(code, abandon=abandon)


def _report_debug(debug: bool) -> None:
    if debug:
        traceback.print_exc()
