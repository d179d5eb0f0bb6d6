"""Command-line flags: a configuration class becomes flags (tyro), a typing error becomes one line with a remedy."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import tyro

C = TypeVar("C")


def nearest(name: str, known: list[str]) -> str:
    """' (did you mean X?)' for a likely typing error, else ''."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def take_switch(name: str, arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """True if ``--name``, which takes no value, is typed before any ``--``; and the arguments without it."""
    own, shared = _before_dashes(arguments)
    parser = _Early(allow_abbrev=False, add_help=False)
    parser.add_argument(f"--{name}", action="store_true", dest="typed")
    found, rest = parser.parse_known_args(own)
    return found.typed, rest + shared


def typed_value(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value typed for ``--flag`` before any ``--``, found before the full parse; None if there is none."""
    parser = _Early(allow_abbrev=False, add_help=False)
    parser.add_argument(f"--{flag}", f"--{flag.replace('-', '_')}", dest="typed")
    try:
        value: str | None = parser.parse_known_args(_before_dashes(arguments)[0])[0].typed
    except ValueError:
        return None  # the full parse comes next and reports the error
    return value


class _Early(argparse.ArgumentParser):
    """An argparse parser for one of many flags; it raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _before_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments before ``--``, and the rest including it."""
    typed = list(arguments)
    end = typed.index("--") if "--" in typed else len(typed)
    return typed[:end], typed[end:]


@dataclass(frozen=True)
class Typed:
    """Flags of a training script that are read before the others, because they choose the defaults of the others."""

    preset: str | None
    dataset: str | None
    dry_run: bool
    others: list[str]
    """All arguments except --dry-run, for :func:`parse`."""


def typed(arguments: Sequence[str]) -> Typed:
    """Read the flags that choose the defaults."""
    dry_run, others = take_switch("dry-run", arguments)
    return Typed(typed_value("preset", others), typed_value("dataset", others), dry_run, others)


def describe_presets(description: str, presets: Mapping[str, Any]) -> str:
    """A training script's ``--help`` text with a line for each preset."""
    width = max(map(len, presets)) + 2
    listed = "\n".join(f"  {name:{width}}{preset.summary}" for name, preset in presets.items())
    return (
        f"{description}\nPresets:\n{listed}\n\nAlso --dry-run (print what would happen) and --debug (show tracebacks)."
    )


def parse(kind: type[C], default: C | None, arguments: list[str], *, prog: str, description: str) -> C:
    """The configuration ``default`` with ``arguments`` applied; ``--help`` ends the program.

    Raises:
        ValueError: an unknown flag (the message offers the nearest) or an invalid value, in one line.
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
    """Convert tyro's boxed error message, in ASCII or Unicode, to our "what is wrong; what to do"."""
    lines = [line.strip(" │|╭╮╰╯├┤") for line in box.strip().splitlines()]
    is_rule = [re.search(r"[-─]{4}$", line) is not None for line in lines]
    if lines and not is_rule[0]:  # in ASCII the title is a line of its own
        lines, is_rule = lines[1:], is_rule[1:]
    parts = (
        "\n".join("\0" if rule else line for line, rule in zip(lines, is_rule, strict=True)).strip("\0\n").split("\0")
    )
    wrong = " ".join(parts[0].split())
    wrong = re.sub(r"^Error parsing \w+: (?=.*; )", "", wrong)  # one of ours, which names its flag and remedy
    wrong = re.sub(r"^Missing from [\w.]+: (--[\w-]+).*", r"\1 is missing", wrong)
    near = re.search(r"Perhaps you meant:\s*(--[\w-]+)", "\n".join(parts[1:]))
    if "; " in wrong:
        return wrong
    return (
        f"{wrong.rstrip('.')}; {f'did you mean {near[1]}? ' if near else ''}for all flags: python launch/{prog} --help"
    )
