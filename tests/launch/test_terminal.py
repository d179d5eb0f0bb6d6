"""Output can neither end a program nor control the terminal."""

from __future__ import annotations

import ast
import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest

from launch.console.terminal import Stream, one_line, say
from tests.conftest import ROOT
from tests.launch.running import environment

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from launch.console import errors
def main(arguments):
    for i in range(20_000):
        print("a line that nobody may see", i)
        print("a warning that nobody may see", i, file=sys.stderr)
    open({done!r}, "w").close()
    {ends}
errors.main(main, prints_result={prints_result})
"""


def run(shell: str, tmp_path: Path, ends: str = "", *, prints_result: bool = False) -> tuple[int, bool, str]:
    """Exit code of the program in a shell command, whether it came to its end, and what was said on standard error."""
    done = tmp_path / "done"
    (tmp_path / "program.py").write_text(
        PROGRAM.format(root=str(ROOT), done=str(done), ends=ends or "pass", prints_result=prints_result)
    )
    command = shell.replace("PROGRAM", f"{sys.executable} {tmp_path / 'program.py'}")
    ended = subprocess.run(
        ["bash", "-c", command],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return ended.returncode, done.exists(), ended.stderr


@pytest.mark.parametrize(
    "shell",
    [
        "PROGRAM 2>/dev/null | head -3; exit ${PIPESTATUS[0]}",
        "PROGRAM 2>&1 | true; exit ${PIPESTATUS[0]}",
        "PROGRAM > /dev/full 2> /dev/full",
        "PROGRAM >&- 2>&-",
        "PROGRAM <&- >&- 2>&-",
    ],
)
def test_work_continues_when_nobody_reads_the_output(shell: str, tmp_path: Path) -> None:
    assert run(shell, tmp_path) == (0, True, "")


def test_an_exit_code_outlives_a_closed_pipe(tmp_path: Path) -> None:
    assert run("PROGRAM 2>&1 | true; exit ${PIPESTATUS[0]}", tmp_path, "raise ValueError('a; b')")[0] == 2


def test_a_result_that_is_only_printed_must_be_printed(tmp_path: Path) -> None:
    code, _, said = run("PROGRAM > /dev/full", tmp_path, prints_result=True)
    assert code == 2
    assert os.strerror(errno.ENOSPC) in said
    assert "Traceback" not in said


class Target(io.StringIO):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self.given = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.given


@pytest.mark.parametrize(
    ("encoding", "text", "seen"),
    [
        ("utf-8", "a\x1b[2Jb\n\tc", "a\\x1b[2Jb\n\tc"),
        ("utf-8", "a\x9bb\x00\x7f", "a\\x9bb\\x00\\x7f"),
        ("utf-8", "\u202eevil", "\\u202eevil"),
        ("ascii", "é β \udcff", "\\xe9 \\u03b2 \\udcff"),
        ("utf-8", os.fsdecode(b"\xff"), "\\udcff"),
        ("utf-8", "\n\n\x1b[A\x1b[A", "\n\n\x1b[A\x1b[A"),  # tqdm moves between its bars
        ("utf-8", "name\x1b[A", "name\\x1b[A"),
    ],
)
def test_nothing_controls_the_terminal(encoding: str, text: str, seen: str) -> None:
    target = Target(encoding)
    assert Stream(cast(IO[str], target)).write(text) == len(text)
    assert target.getvalue() == seen


def test_a_name_is_one_line() -> None:
    assert one_line(Path("a\nerror: forged\r\x1b[2J\u2028b é")) == "a\\nerror: forged\\r\\x1b[2J\\u2028b é"


LAYS_OUT = {"text", "describe", "describe_folders", "evaluation", "write"}
"""Functions that lay out tables, whose cells are one line each."""

PRINT_NO_NAMES = {  # but those of the script, of scores, and of runs that it started
    *("launch/__init__.py", "launch/machine/distributed.py", "launch/training/jobs.py"),
    *("launch/results/score_run.py", "launch/results/pictures.py"),
    "launch/console/flags.py",  # the text of --help
}


def _is_safe(argument: ast.expr) -> bool:
    if isinstance(argument, ast.Call):
        return getattr(argument.func, "attr", getattr(argument.func, "id", "")) in LAYS_OUT
    return isinstance(argument, ast.Constant)


def test_every_name_that_is_printed_is_one_line() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(argument)}"
        for file in sorted((ROOT / "launch").rglob("*.py"))
        if str(file.relative_to(ROOT)) not in PRINT_NO_NAMES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        for argument in node.args
        if not _is_safe(argument) and "one_line" not in ast.unparse(argument)
    ]
    assert found == [], "terminal.say prints one line, whatever names are in it; print is for tables and fixed words"


def test_a_printed_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("samples of a\nerror: forged\r\x1b[2J")
    assert capsys.readouterr().out == "samples of a\\nerror: forged\\r\\x1b[2J\n"
