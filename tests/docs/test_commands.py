"""The commands in README, the pages under docs/ and the docstrings: each exists; README's and the tutorial's run."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import run as benchmarks
from datasets import registry
from datasets.arrays import ArrayDataset, Factors
from datasets.dsprites import FACTOR_NAMES, render
from tests.conftest import ROOT
from tests.datasets.drawn_data import make_celeba
from tests.docs import commands
from tests.docs.commands import Command
from tests.launch import running
from tests.launch.test_import_official import save_as_published
from tests.nvae.published import ARGS, published_form, randomised

BENCHMARKS = "benchmarks/run.py"


def module_of(program: str) -> str:
    """``launch/studies/frey.py`` is ``studies.frey`` to :func:`running.call`."""
    return ".".join(Path(program).with_suffix("").parts[1:])


@functools.cache
def help_of(program: str, subcommand: str = "") -> str:
    """Output of ``--help-all``."""
    if program != BENCHMARKS:
        result = running.call(module_of(program), "--help-all")
        assert result.code == 0, result.err
        return result.out
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", ["run.py", subcommand, "--help"])
        with pytest.raises(SystemExit) as left:
            benchmarks.main()
    assert not left.value.code
    return said.getvalue()


def flags_of(words: tuple[str, ...]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--\w", word)]


def unknown_flags(command: Command) -> list[str]:
    """Flags that the program, or the training script behind a sweep's ``--``, does not have."""
    own, shared = command.arguments, tuple[str, ...]()
    if "--" in own:
        own, shared = own[: own.index("--")], own[own.index("--") + 1 :]
    subcommand = own[0] if command.program == BENCHMARKS else ""
    known = help_of(command.program, subcommand)
    missing = [flag for flag in flags_of(own) if not re.search(rf"{flag}(?![\w-])", known)]
    if shared:
        known = help_of("launch/train_nvae.py" if "train_nvae" in own else "launch/train_flat_vae.py")
        missing += [flag for flag in flags_of(shared) if not re.search(rf"{flag}(?![\w-])", known)]
    return missing


SCRIPTS = sorted({c.program for c in commands.documented() if c.program.endswith(".py")})


@pytest.mark.parametrize("program", SCRIPTS)
def test_documented_scripts_and_flags_exist(program: str) -> None:
    assert (ROOT / program).is_file()
    for command in commands.documented():
        if command.program == program:
            assert not unknown_flags(command), f"{command.page} shows `{command}`"


def test_documented_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in commands.documented():
        if command.program == "make":
            named = {word for word in command.arguments if "=" not in word}
            assert named <= set(targets), f"{command.page} shows `{command}`"


# --- README and the tutorial, from top to bottom ------------------------------------------------------------------------

README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"

SHORT = ["--max-steps", "2", "--batch-size", "4", "--figure-images", "2", "--iw-samples", "2", "--eval-images", "4"]
SHORT += ["--final-eval-images", "4", "--eval-every", "100", "--device", "cpu"]
SHORT_NVAE = [*running.MODEL, *SHORT]
SHORT_SCORES = ["--images", "24", "--elbo-images", "8", "--shuffles", "1", "--resamples", "2", "--dims", "2"]

# Arguments that shorten a command for a test. They are appended, and the last value of a flag counts.
SHORTENED: dict[str, list[str]] = {
    "torchrun --standalone --nproc-per-node=gpu launch/train_nvae.py": [*SHORT_NVAE, "--run-dir", "runs/recipe"],
    "python launch/train_nvae.py": SHORT_NVAE,
    "python launch/train_flat_vae.py": SHORT,
    "python launch/train_flat_vae.py --preset burgess --dsprites-source rendered --replicas": [
        *SHORT,
        "--replicas",
        "2",
    ],
    "python launch/evaluate.py": ["--iw-samples", "2", "--no-baseline"],
    "python launch/sample.py": ["--num", "2", "--readjust-bn", "2"],
    "python launch/traverse.py": ["--images", "2", "--steps", "3"],
    "python launch/compress.py": ["--images", "2"],
    "python launch/score.py --run": SHORT_SCORES,
    "python launch/score.py --codes": ["--dims", "2", "--shuffles", "1", "--resamples", "2"],
    "python launch/compare.py": ["--pictures", "0", "--no-score-missing"],
    "python launch/import_official.py": [],
    "python launch/prepare_data.py": [],
    "python launch/plan.py": ["--preset", "tiny"],
    "python launch/sweep.py": ["--values", "1", "--seeds", "1", "--images", "24"],
}
# The tutorial's second comparison needs scores of four runs, because it must have intervals over seeds.
SHORTENED_IN_TUTORIAL = {"python launch/compare.py": ["--pictures", "0", "--no-untrained"]}
# Commands that these tests do not run, and what tests them instead.
NOT_RUN = {
    "make quickstart": "tests/launch/test_quickstart.py",
    "make install": "the environment of this very test",
    "make test": "this very suite",
    "make VENV=path test": "the same",
    "make frey-study": "tests/launch/test_studies.py",
    "make study": "tests/launch/test_family_studies.py",
    "make scaling-study": "tests/launch/test_family_studies.py",
    "python launch/explore.py": "tests/launch/test_explorer.py: it serves a page until it is stopped",
    "tensorboard --logdir": "its events are read in tests/launch/test_monitor.py",
    "python benchmarks/run.py": "tests/nvae/test_speed_counts.py imports what it times; it takes minutes",
}


def rule_for(command: Command, table: dict[str, Any]) -> str | None:
    """The longest key of ``table`` that the command begins with."""
    return max((key for key in table if str(command).startswith(key)), key=len, default=None)


def open_few_dsprites(root: Path, split: str = "train", *, source: str = "rendered") -> ArrayDataset:
    """192 images of dSprites with all of its factors, drawn by its rule."""
    assert source == "rendered"
    sizes = (3, 2, 2, 4, 4)
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*map(np.arange, sizes), indexing="ij")], axis=1)
    rows = np.flatnonzero(np.arange(len(grid)) % 4 == {"train": 0, "valid": 1, "test": 2}.get(split, 0))
    return ArrayDataset(
        name="dSprites (a few, rendered)",
        array=render(grid * [1, 5, 20, 10, 10])[:, None] * np.uint8(255),
        rows=rows,
        num_bits=1,
        recipe={"name": "dsprites", "split": split, "count": len(rows), "num_bits": 1},
        factor_source=Factors(names=FACTOR_NAMES, sizes=sizes, load=lambda: grid[rows]),
    )


@pytest.fixture
def _few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory, and a dSprites of 192 images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry._OPENERS, "dsprites", open_few_dsprites)


@pytest.fixture
def _place(_few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with the files that README mentions."""
    monkeypatch.setattr(registry, "default_root", lambda name: tmp_path / "data" / name)
    running.draw(tmp_path / "photos", height=64, width=64)
    images = sorted((tmp_path / "photos").rglob("*.png"))
    table = [f"{image.relative_to(tmp_path / 'photos')},{number % 3}" for number, image in enumerate(images)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,kind", *table]))
    make_celeba(tmp_path / "data" / "celeba", num=40)
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo")
    source = np.random.default_rng(0)
    codes = np.hstack([source.normal(size=(40, 3)), source.integers(0, 3, (40, 2))])
    np.savetxt("mine.csv", codes, delimiter=",", header="z0,z1,z2,shape,size", comments="")
    save_as_published(tmp_path / "checkpoint.pt", published_form(randomised(ARGS)), dict(ARGS))
    dsprites = ["--dataset", "dsprites", "--dsprites-source", "rendered"]
    first = running.call("train_nvae", *dsprites, *SHORT_NVAE)  # a run that README reads
    assert first.code == 0, first.err
    swept = ["--objective", "beta", "--beta", "1", "--run-dir", "runs/sweep/beta-1-seed0"]  # which sweep.py then finds
    second = running.call("train_flat_vae", *dsprites, "--preset", "burgess", *SHORT, *swept)
    assert second.code == 0, second.err


def shell(words: tuple[str, ...]) -> list[str]:
    """The words with their wildcards replaced by the paths that match."""
    return [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


def run_page(page: Path, shortened: dict[str, list[str]]) -> None:
    """Run the commands of a page in their order, each made short by the rule for it."""
    for command in commands.of_page(page):
        if rule_for(command, NOT_RUN):
            continue
        rule = rule_for(command, shortened)
        assert rule is not None, f"{page.name} shows `{command}`: say in SHORTENED or NOT_RUN how a test runs it"
        added, arguments = shortened[rule], shell(command.arguments)
        end = arguments.index("--") if "--" in arguments else len(arguments)
        more = [*arguments[end:], *SHORT] if "--" in arguments else []
        result = running.call(module_of(command.program), *arguments[:end], *added, *more, draws=True)
        assert result.code == 0, f"{command}: {result.err}"


@pytest.mark.usefixtures("_place")
def test_the_commands_of_readme_run_one_after_another() -> None:
    run_page(README, SHORTENED)
    for made in ("celeba.strata", "reports/dsprites/report.html", "runs/published", "runs/sweep/table.md"):
        assert Path(made).exists(), made


@pytest.mark.usefixtures("_few_images")
def test_the_commands_of_the_tutorial_run_one_after_another() -> None:
    """Its first comparison has intervals over images, and its second over seeds."""
    run_page(TUTORIAL, SHORTENED | SHORTENED_IN_TUTORIAL)
    for name, over in (("first", "images"), ("second", "seeds")):
        compared = json.loads(Path("reports", name, "comparison.json").read_text())
        assert compared["differences"][0]["difference"]["over"] == over
    assert Path("reports/first/report.html").is_file()


def test_every_rule_is_used() -> None:
    """A rule whose command is no longer on these pages must be deleted."""
    shown = [*commands.of_page(README), *commands.of_page(TUTORIAL)]
    for table in (SHORTENED, NOT_RUN):
        assert {rule_for(command, table) for command in shown} - {None} == set(table)


def test_links_lead_somewhere() -> None:
    """Relative links of README and of every page under docs/."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            assert "://" in target or (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
