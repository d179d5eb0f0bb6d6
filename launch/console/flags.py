"""Command-line flags: a configuration class becomes flags (tyro), and a slip becomes one line that says what to type."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from typing import Any, TypeVar

import tyro

C = TypeVar("C")


def nearest(name: str, known: list[str]) -> str:
    """' (did you mean X?)' for a slip of the pen, else ''."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def typed_value(flag: str, arguments: list[str]) -> str | None:
    """The last value typed for ``--flag``, before anything else is parsed."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == f"--{flag}" and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"--{flag}="):
            value = argument.partition("=")[2]
    return value


def typed_preset(arguments: list[str]) -> tuple[str | None, str | None]:
    """(preset, data set) as typed: they choose the defaults that the other flags then change."""
    return typed_value("preset", arguments), typed_value("dataset", arguments)


def parse(kind: type[C], default: C | None, arguments: list[str], *, prog: str, description: str) -> C:
    """The configuration that ``arguments`` make of ``default``; ``--help`` ends the program.

    Raises:
        ValueError: an unknown flag (the nearest is offered) or a value that makes no sense, in one line.
    """
    known: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config: C = tyro.cli(
                kind, args=arguments, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,), **known
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_slip(said.getvalue(), prog)) from None
    return config


def _slip(box: str, prog: str) -> str:
    """What tyro says in a box of many lines, drawn in ASCII or not, as our "what is wrong; what to do"."""
    lines = [line.strip(" │|╭╮╰╯├┤") for line in box.strip().splitlines()]
    is_rule = [re.search(r"[-─]{4}$", line) is not None for line in lines]
    if lines and not is_rule[0]:  # in ASCII the title is a line of its own
        lines, is_rule = lines[1:], is_rule[1:]
    parts = (
        "\n".join("\0" if rule else line for line, rule in zip(lines, is_rule, strict=True)).strip("\0\n").split("\0")
    )
    wrong = " ".join(parts[0].split())
    wrong = re.sub(r"^Error parsing \w+: (?=.*; )", "", wrong)  # our own, which names its flag and its remedy
    wrong = re.sub(r"^Missing from [\w.]+: (--[\w-]+).*", r"\1 is missing", wrong)
    near = re.search(r"Perhaps you meant:\s*(--[\w-]+)", "\n".join(parts[1:]))
    if "; " in wrong:
        return wrong
    return (
        f"{wrong.rstrip('.')}; {f'did you mean {near[1]}? ' if near else ''}for all flags: python launch/{prog} --help"
    )
