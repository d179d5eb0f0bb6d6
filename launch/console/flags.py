"""Command-line flags: a configuration class becomes flags (tyro), a typo becomes one line with a remedy."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, TypeVar

import tyro

C = TypeVar("C")
# Names of our flags in other programs; of several candidates, the first that the script has is suggested.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "--learning-rate": ("--lr",),
    "--amp": ("--precision",),
    "--fp16": ("--precision fp16",),
    "--bf16": ("--precision bf16",),
    "--mixed-precision": ("--precision",),
    "--runs": ("--run",),
    "--run": ("--runs", "--run-dir"),
    "--checkpoint": ("--run",),
    "--model": ("--preset", "--run"),
    "--steps": ("--max-steps",),
    "--iterations": ("--max-steps",),
    "--num-epochs": ("--epochs",),
    "--bs": ("--batch-size",),
    "--data": ("--dataset", "--data-root"),
    "--data-dir": ("--data-root",),
    "--root": ("--data-root",),
    "--size": ("--image-size",),
    "--resolution": ("--image-size",),
    "--output": ("--run-dir", "--out"),
    "--output-dir": ("--run-dir", "--out"),
    "--out": ("--run-dir",),
    "--gpu": ("--device cuda",),
    "--cuda": ("--device cuda",),
    "--cpu": ("--device cpu",),
    "--z-dim": ("--latent-dim",),
    "--latents": ("--latent-dim",),
    "--kl-weight": ("--beta",),
    "--num-samples": ("--num", "--images"),
    "--num-images": ("--images", "--num"),
}


def nearest(name: str, known: list[str]) -> str:
    """' (did you mean X?)' for a likely typo, else ''."""
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
    """The last value typed for ``--flag`` before any ``--``, read ahead of the full parse; None if there is none."""
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


def parse(
    kind: type[C],
    default: C | None,
    arguments: list[str],
    *,
    prog: str,
    description: str,
    common: Collection[str] = (),
) -> C:
    """The configuration ``default`` with ``arguments`` applied; ``--help`` and ``--help-all`` end the program.

    Args:
        kind: class of the configuration.
        default: values of the flags that are not typed.
        arguments: the command line.
        prog: name of the script.
        description: text above the flags in ``--help``.
        common: fields that ``--help`` shows; ``--help-all`` shows the others too. Empty: both show all.

    Raises:
        ValueError: an unknown flag (the message offers the nearest) or an invalid value, in one line.
    """
    typed = _before_dashes(arguments)[0]
    is_short = bool(common) and "--help-all" not in typed and not {"-h", "--help"}.isdisjoint(typed)
    known: dict[str, Any] = {} if default is None else {"default": default}
    names = _flags_of(kind, default)
    shown, said = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown if is_short else sys.stdout):
            config: C = tyro.cli(
                kind,
                args=["--help"] if "--help-all" in typed else arguments,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                **known,
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_unknown(typed, prog, names) or _slip(said.getvalue(), prog)) from None
        if is_short:
            print(_shorten(shown.getvalue(), common, prog))
        raise
    return config


def _flags_of(kind: type[Any], default: Any, part: str = "") -> dict[str, str]:
    """Every flag of a configuration, and the field that it sets.

    Raises:
        ValueError: two parts have a field of the same name; one flag cannot set both.
    """
    found: dict[str, str] = {}
    for f in fields(kind):
        value = getattr(default, f.name, None) if default is not None else None
        inner = type(value) if is_dataclass(value) else f.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            more = _flags_of(inner, value, f"{part}{f.name}.")
        else:
            more = {f"--{f.name.replace('_', '-')}": f"{part}{f.name}"}
        for flag in found.keys() & more.keys():
            raise ValueError(
                f"{flag} would set both {found[flag]} and {more[flag]} of {kind.__name__}; rename one of the two fields"
            )
        found |= more
    return found


def _boxed(line: str) -> str:
    """A line of tyro's output without the box around it, in ASCII or Unicode."""
    return line.strip(" │|╭╮╰╯├┤+")


def _shorten(text: str, common: Collection[str], prog: str) -> str:
    """The head of a help text, and its entries for the ``common`` fields."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if re.match(r"[─ -]*options\b", _boxed(line))), len(lines))
    wanted, entries, is_wanted = {f"--{name.replace('_', '-')}" for name in common}, list[str](), False
    for line in (line.strip("│|").rstrip() for line in lines[first:]):
        flag = re.match(r" {0,3}(--?\w[\w-]*)", line)
        if flag or not line.startswith("   "):
            is_wanted = flag is not None and flag[1] in wanted
        if is_wanted:
            entries.append(line)
    rest = f"The most used flags; for all of them: python launch/{prog} --help-all"
    return "\n".join([*lines[: first - 1], "", rest, "", *entries])


def _unknown(typed: Sequence[str], prog: str, known: Collection[str]) -> str:
    """Name the first unknown flag and the flag that is probably meant; '' if all are known."""
    for word in typed:
        flag = word.partition("=")[0].replace("_", "-")
        if re.match(r"--[A-Za-z]", flag) and flag not in known and flag.replace("--no-", "--", 1) not in known:
            meant = _meant(flag.lower(), known)
            return (
                f"there is no flag {word.partition('=')[0]}; {f'did you mean {meant}? ' if meant else ''}"
                f"all flags: python launch/{prog} --help-all"
            )
    return ""


def _slip(box: str, prog: str) -> str:
    """Convert tyro's boxed error message, in ASCII or Unicode, to our "what is wrong; what to do"."""
    lines = [_boxed(line) for line in box.strip().splitlines()]
    is_rule = [re.search(r"[-─]{4}$", line) is not None for line in lines]
    if lines and not is_rule[0]:  # in ASCII the title is a line of its own
        lines, is_rule = lines[1:], is_rule[1:]
    parts = (
        "\n".join("\0" if rule else line for line, rule in zip(lines, is_rule, strict=True)).strip("\0\n").split("\0")
    )
    wrong = " ".join(parts[0].split())
    wrong = re.sub(r"^Error parsing \w+: (?=.*; )", "", wrong)  # one of ours, which names its flag and remedy
    wrong = re.sub(r"^Missing from [\w.]+: (--[\w-]+).*", r"\1 is missing", wrong)
    return wrong if "; " in wrong else f"{wrong.rstrip('.')}; all flags: python launch/{prog} --help-all"


def _meant(flag: str, known: Collection[str]) -> str:
    """The flag that other programs call ``flag``, or the nearest name; '' if there is none."""
    for name in ELSEWHERE.get(flag, ()):
        if name.split()[0] in known:
            return name
    return next(iter(difflib.get_close_matches(flag, known, n=1, cutoff=0.6)), "")
