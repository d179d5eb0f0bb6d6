"""docs/extending.md: its code, put into a copy of the repository, trains, and its ladder is that of tests/contract."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs import commands
from tests.launch import running

PAGE = ROOT / "docs" / "extending.md"
PACKAGES = ["datasets", "metrics", "nvae", "flat_vae", "launch"]
SHORT = ["--max-steps", "2", "--batch-size", "8", "--figure-images", "2", "--iw-samples", "2", "--eval-every", "100"]
LADDER = {
    "ladder/__init__.py": "ladder.py",
    "launch/families/ladder.py": "ladder_family.py",
    "launch/train_ladder.py": "train_ladder.py",
}


def blocks() -> list[tuple[str, str, str]]:
    """(file, language, text) of every block; a block without a file of its own continues that before it."""
    found, name = [], ""
    for line, language, text in re.findall(
        r"^`([\w/.]+)`:$|^```(python|diff)\n(.*?)^```$", PAGE.read_text(), re.M | re.S
    ):
        name = line or name
        if language:
            found.append((name, language, text))
    return found


def apply(diff: str, path: Path) -> None:
    """Replace the lines that a diff takes or keeps by those that it keeps or adds; they must be there once."""
    lines = diff.splitlines()
    before, after = ("\n".join(line[1:] for line in lines if line[:1] != sign) for sign in "+-")
    text = path.read_text()
    assert text.count(before) == 1, f"the page's diff does not fit {path.name}: {before}"
    path.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with everything that the page adds."""
    root = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "studies"))
    shutil.copytree(ROOT / "launch" / "studies", root / "launch" / "studies")
    for name, language, text in blocks():
        path = root / name
        if language == "diff":
            apply(text, path)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return root


SCRIPTS = ["train_flat_vae", "train_ladder"]
TRAIN_EACH = """
import json, os, runpy, sys
import torch._dynamo, launch.families
for command in map(json.loads, sys.argv[1:]):
    pid = os.fork()
    if pid == 0:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
    assert os.waitpid(pid, 0)[1] == 0, command
"""


def test_the_commands_of_the_page_train(extended: Path) -> None:
    """Every command runs in a fork of one process that has imported torch. Scripts that read runs are tested in tests/contract."""
    shown, typed = commands.of_page(PAGE), []
    for script in SCRIPTS:
        (command,) = (c for c in shown if c.program == f"launch/{script}.py" and "stripes" in c.words)
        typed.append(json.dumps([command.program, *command.arguments, *SHORT]))
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_EACH, *typed],
        cwd=extended,
        env=running.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", LADDER)
def test_the_ladder_of_the_page_is_that_of_the_contract(name: str) -> None:
    source = (ROOT / "tests" / "contract" / LADDER[name]).read_text()
    source = source.replace("from tests.contract import ladder_family", "from launch.families import ladder")
    source = source.replace("tests.contract.ladder", "ladder").replace("ladder_family", "ladder")
    assert [text for file, _, text in blocks() if file == name] == [source]
