"""The commands in the documentation, parsed as a shell would."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

STARTERS = ("python", "torchrun", "make", "tensorboard")
HISTORY = ROOT / "docs" / "benchmarks"  # dated notes, whose commands belong to their commit
OWN_TEST = ROOT / "docs" / "extending.md"  # whose commands need its code: test_extending.py


class Command(NamedTuple):
    """One command and the page that shows it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def program(self) -> str:
        """The script, relative to the repository; else what starts the command."""
        return next((word for word in self.words if word.endswith(".py")), self.words[0])

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of the program."""
        return self.words[self.words.index(self.program) + 1 :]


def _commands(text: str) -> Iterator[tuple[str, ...]]:
    """Commands in the lines of a block, or in a span of code."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"; |&& ", line.partition("#")[0]):
            try:
                words = shlex.split(part)
            except ValueError:  # a brace or a quotation mark in prose: no command
                continue
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words and words[0] in STARTERS and len(words) > 1:
                yield tuple(words)


def of_page(path: Path) -> list[Command]:
    """Commands in a page's fenced blocks and spans of code, in its order."""
    text = path.read_text()
    pieces = re.findall(r"^```\w*\n(.*?)^```|(?<!`)`([^`\n]+)`(?!`)", text, flags=re.DOTALL | re.MULTILINE)
    name = str(path.relative_to(ROOT))
    return [Command(name, words) for block, span in pieces for words in _commands(block or span)]


def of_script(path: Path) -> list[Command]:
    """Commands among the examples in a script's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    lines = "\n".join(line.partition("   (")[0] for line in text.splitlines())
    return [Command(str(path.relative_to(ROOT)), words) for words in _commands(lines)]


@functools.cache
def documented() -> list[Command]:
    """Every command of README, the pages under docs/ and the scripts' docstrings, each once."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [c for page in pages if page != OWN_TEST and HISTORY not in page.parents for c in of_page(page)]
    found += [c for script in sorted((ROOT / "launch").rglob("*.py")) for c in of_script(script)]
    return list({command.words: command for command in reversed(found)}.values())[::-1]
