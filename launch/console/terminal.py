"""The terminal: streams that never end a program, and text that never controls a terminal."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import IO, Any

_CURSOR_UP = re.compile(r"\n*(\x1b\[A)+")  # tqdm's, between bars, written on its own


def one_line(text: object) -> str:
    """``text`` with line ends, control characters and whatever else no terminal shows as Python writes them in a string.

    Names out of files that others made are printed through this: a line end in one could forge a line of ours.
    """
    return "".join(map(_shown, str(text)))


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class Stream(io.TextIOBase):
    """Standard output or error: what it can't write is lost, and the program goes on.

    A reader that has gone (``| head``), a full disk and a closed descriptor raise nothing. Characters that the encoding
    lacks, and all that control a terminal, are written escaped; so no message and no name needs care of its own.

    Args:
        target: the stream as Python opened it; None where the descriptor was closed.
    """

    def __init__(self, target: IO[str] | None) -> None:
        self._target = target
        self.failure: OSError | None = None
        """Why the newest text that was lost was lost, other than by a reader that left."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the target."""
        return getattr(self._target, "encoding", None) or "utf-8"

    def write(self, text: str, /) -> int:
        """Write ``text`` as far as it can be; its length."""
        if self._target is not None:
            safe = text
            if not (text.isprintable() or _CURSOR_UP.fullmatch(text)):
                safe = "".join(c if c in "\n\r\t" else _shown(c) for c in text)
            safe = safe.encode(self.encoding, "backslashreplace").decode(self.encoding, "replace")
            self._try(self._target.write, safe)
        return len(text)

    def flush(self) -> None:
        """Bring what was written to where it goes."""
        if self._target is not None:
            self._try(self._target.flush)

    def isatty(self) -> bool:
        """Whether a person sees it at once."""
        return self._target is not None and self._target.isatty()

    def fileno(self) -> int:
        """Of the target."""
        if self._target is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._target.fileno()

    def writable(self) -> bool:
        """It takes text, if only to lose it."""
        return True

    def abandon(self) -> None:
        """Let the interpreter's own last flush succeed: what is still unwritten goes to nowhere."""
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
    """Make the standard streams safe; descriptors that were closed lead to nowhere, before a file of ours gets their number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Stream):
            setattr(sys, name, Stream(getattr(sys, name)))


def finish() -> OSError | None:
    """Write out the standard streams for the last time; why something that was said on standard output is lost, if it is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Stream):
            stream.abandon()
    return sys.stdout.failure if isinstance(sys.stdout, Stream) else None
