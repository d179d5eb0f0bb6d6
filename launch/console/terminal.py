"""The terminal: output that never ends a program, and text that never controls the terminal."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import IO, Any

_CURSOR_UP = re.compile(r"\n*(\x1b\[A)+")  # tqdm writes it between bars


def one_line(text: object) -> str:
    """``text`` with line ends, control characters and all else that is not printable escaped as in a Python string.

    Names from files of unknown origin are printed through this, because a line end in one could forge a message.
    """
    return "".join(map(_shown, str(text)))


def say(text: object, *, file: IO[str] | None = None) -> None:
    """Print a line on standard output or on ``file`` and flush; line ends in ``text`` are escaped."""
    print(one_line(text), file=file, flush=True)


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class Stream(io.TextIOBase):
    """Standard output or error that drops what it can't write and lets the program continue.

    A closed pipe (``| head``), a full disk and a closed descriptor raise nothing. Characters that the encoding lacks
    and characters that control a terminal are escaped, so callers need not escape anything.

    Args:
        target: the stream as Python opened it; None if the descriptor was closed.
    """

    def __init__(self, target: IO[str] | None) -> None:
        self._target = target
        self.failure: OSError | None = None
        """The last error that lost text; a closed pipe does not count."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the target."""
        return getattr(self._target, "encoding", None) or "utf-8"

    def write(self, text: str, /) -> int:
        """Write as much of ``text`` as possible; return its length."""
        if self._target is not None:
            safe = text
            if not (text.isprintable() or _CURSOR_UP.fullmatch(text)):
                safe = "".join(c if c in "\n\r\t" else _shown(c) for c in text)
            safe = safe.encode(self.encoding, "backslashreplace").decode(self.encoding, "replace")
            self._try(self._target.write, safe)
        return len(text)

    def flush(self) -> None:
        """Flush the target."""
        if self._target is not None:
            self._try(self._target.flush)

    def isatty(self) -> bool:
        """True if the target is a terminal."""
        return self._target is not None and self._target.isatty()

    def fileno(self) -> int:
        """File descriptor of the target."""
        if self._target is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._target.fileno()

    def writable(self) -> bool:
        """True: every text is accepted, even if it is lost."""
        return True

    def abandon(self) -> None:
        """Discard what is still unwritten, so that the interpreter's own last flush succeeds."""
        self.flush()
        if self.failure is not None and self._target is not None:
            _point_at_nothing(self._target)

    def _try(self, call: Any, *arguments: str) -> None:
        try:
            call(*arguments)
        except (OSError, ValueError) as error:  # ValueError: the target is closed
            if isinstance(error, OSError) and error.errno != errno.EPIPE:
                self.failure = error
                return
            assert self._target is not None
            _point_at_nothing(self._target)


def _point_at_nothing(target: IO[str]) -> None:
    """Replace the descriptor, so that its buffer can be emptied."""
    try:
        descriptor = target.fileno()
    except (OSError, ValueError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def protect() -> None:
    """Make the standard streams safe; point closed descriptors at the null device, before a file takes their number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Stream):
            setattr(sys, name, Stream(getattr(sys, name)))


def finish() -> OSError | None:
    """Flush the standard streams for the last time; return the error that made standard output lose text, or None."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Stream):
            stream.abandon()
    return sys.stdout.failure if isinstance(sys.stdout, Stream) else None
