"""Permitted ends of a fuzzed case.

A target damages a genuine input and reads it as the project does. It returns True if the damaged input was read, and
False if it was refused with a ValueError whose message is one printable line. Every other end is a finding. If the right
result is known, a wrong one is a finding too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from launch.console import terminal

Target = Callable[[random.Random], bool]


def refused(read: Callable[[], object]) -> bool:
    """True if ``read`` refuses in one line; every other exception passes."""
    try:
        read()
    except ValueError as error:
        text = terminal.one_line(str(error))
        if not text or not text.isprintable() or len(text) > 20_000:
            raise AssertionError(f"a message of {len(text)} characters, printable: {text.isprintable()}") from error
        if type(error) in (UnicodeDecodeError, UnicodeEncodeError, json.JSONDecodeError):
            raise AssertionError(f"a {type(error).__name__} of Python's own: {text[:80]}") from error
        return True
    return False
