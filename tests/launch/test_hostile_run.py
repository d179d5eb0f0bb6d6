"""Malicious run folders, through every script that reads runs: no code, no hang, no forged line."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.machine import files
from launch.results import container
from launch.training import checkpoint
from tests.launch import running, toy
from tests.launch.test_old_runs import STORED

EVIL = "x\x1b[2J\r\nerror: forged\n  fix: forged\x9b31m\u202e\x07"
DEEP = "[" * 200_000
LIMIT_SECONDS = 300  # after which a script counts as hung

READERS: dict[str, list[str]] = {
    "evaluate": ["--iw-samples", "0"],
    "score": ["--metrics", "mig", "--images", "54", "--elbo-images", "8", "--samples", "0", "--resamples", "0"],
    "traverse": ["--steps", "2", "--images", "8"],
    "sample": ["--num", "2"],
    "compress": ["--images", "2", "--out", "compressed"],
}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the toy data, and end a script that hangs."""

    def hangs(*_: object) -> None:
        raise AssertionError("a script hangs")

    toy.register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not list(tmp_path.glob("executed*")), "a file was executed"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED / "flat", tmp_path / EVIL.replace("/", "")))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Rewrite a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def write_checkpoint(run: Path, save: Callable[[Path], object]) -> None:
    """Put a checkpoint with a checksum that fits in place of all others."""
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    path = run / "checkpoints" / "step-000000016.pt"
    save(path)
    digest = files.sha256(path) if path.is_file() else "0" * 64
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


def assert_harmless(said: running.Result) -> None:
    """No traceback, nothing that controls a terminal, and no line that a name forged."""
    words = said.out + said.err
    assert "Traceback" not in words, words
    assert re.search(r"[^\r\n\t -~\u00a0-\uffff]|\u202e|\r\n", words) is None, ascii(
        words
    )  # progress bars begin with \r
    assert not [line for line in words.splitlines() if re.match(r"\s*(error|fix): forged", line)], words


def read_by(script: str, run: Path) -> running.Result:
    said = running.call(script, "--run", run, *READERS[script])
    assert_harmless(said)
    return said


def compare(run: Path, *more: str, draws: bool = True) -> running.Result:
    where = ("--out", Path(EVIL + "report"), "--pictures", "0")
    said = running.call("compare", "--runs", run, *where, *more, draws=draws)
    assert_harmless(said)
    return said


# --- What works, under names that are made to do harm ----------------------------------------------------------------


def test_names_control_and_forge_nothing(run: Path) -> None:
    """Hostile names of folders, data, presets, factors, settings and files, in every script that reads a run."""
    change(run / "config.json", lambda c: c["data"].update(name=EVIL) or c["config"].update(preset=EVIL))
    change(
        run / "scores.json",
        lambda c: c.update(factor_names=[EVIL + "$\\frac{"] * 4, code=EVIL) or c["data"].update(name=EVIL),
    )
    (run / "checkpoints" / "step-999999999.pt").mkdir()
    (run / "checkpoints" / f"step-000000099.pt{EVIL}").touch()
    assert compare(run).code == 0
    report = next(Path(EVIL + "report").glob("report.md")).read_text()
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", report) is None
    assert re.search(r"^\W*(error|fix): forged", report, re.MULTILINE) is None
    for script in READERS:
        said = read_by(script, run)
        assert said.code == 0, said
        assert "\\x1b" in said.out, "the name is shown, escaped"


def test_a_container_with_a_false_header(run: Path) -> None:
    assert read_by("compress", run).code == 0
    file = Path("compressed")
    header, words = container.from_bytes(file.read_bytes(), "")
    for changed, code in (
        ({"data": EVIL}, 0),
        ({"count": 10**12}, 2),
        ({"checkpoint": EVIL}, 2),
        ({"torch": EVIL, "arithmetic": "other"}, 2),
        ({"halvings": [[0] * 10**6]}, 2),
    ):
        file.write_bytes(container.to_bytes(dataclasses.replace(header, **changed), words))
        said = running.call("compress", "--run", run, "--decompress", file, "--out", EVIL + "images")
        assert_harmless(said)
        assert said.code == code, (changed, said)


# --- What is refused: by exit code 2, one line what is wrong and one what to do ---------------------------------------


def setting(part: str, **values: Any) -> Callable[[Path], None]:
    """Change settings in a part of config.json, or at its top if ``part`` is ""."""

    def edit(content: dict[str, Any]) -> None:
        (content["config"][part] if part in content["config"] else content[part] if part else content).update(values)

    return lambda run: change(run / "config.json", edit)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Replace a file of the run by something else."""

    def hostile(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return hostile


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


INSTEAD_OF_A_FILE: dict[str, Callable[[Path], object]] = {
    "deep": lambda path: path.write_text(f'{{"config": {DEEP}'),
    "a pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": sparse,
    "a loop": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
    "no UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}'),
    "a digit too many": lambda path: path.write_text('{"format": ' + "9" * 100_000 + "}"),
    "escapes": lambda path: path.write_text(json.dumps({EVIL: EVIL, "format": EVIL, "family": EVIL})),
}

CONFIGS = {
    "family": setting("", family=EVIL),
    "format": setting("", format=10**300),
    "an unknown setting": setting("model", **{EVIL: EVIL}),
    "latents": setting("model", latent_dim=10**9),
    "latents without end": setting("model", latent_dim=10**200),
    "channels": setting("model", conv_channels=10**8),
    "height": setting("spec", height=10**9, width=10**9),
    "bits": setting("spec", num_bits=10**6),
    "seed": setting("run", seed=10**30),
    "not finite": setting("optim", lr=float("inf")),
    **{name: replaced("config.json", make) for name, make in INSTEAD_OF_A_FILE.items()},
}


@pytest.mark.parametrize("hostile", CONFIGS.values(), ids=CONFIGS)
def test_a_hostile_configuration(hostile: Callable[[Path], None], run: Path) -> None:
    hostile(run)
    for said in (*(read_by(script, run) for script in READERS), compare(run)):
        running.assert_one_error(said)


@pytest.mark.parametrize(
    "data",
    [{"dataset": EVIL}, {"dataset": "folder", "data_root": EVIL}, {"dataset": "folder", "data_root": "/dev/zero"}],
)
def test_data_that_are_not_those_of_the_run(data: dict[str, str], run: Path) -> None:
    running.draw(Path(EVIL) / "images")
    setting("data", **data)(run)
    for said in (*(read_by(script, run) for script in READERS if script != "sample"), compare(run)):
        assert said.code == (0 if said.err == "" else 2)


class Executed:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("executed", "w")


def saved(**content: Any) -> Callable[[Path], None]:
    return lambda run: write_checkpoint(run, lambda path: torch.save({"format": 1, "step": 16, **content}, path))


def edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The run's own checkpoint, changed."""

    def hostile(run: Path) -> None:
        content = checkpoint.load(checkpoint.find(run / "checkpoints")[0])
        edit(content)
        write_checkpoint(run, lambda path: torch.save(content, path))

    return hostile


def of_weights(make: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    return edited(lambda content: content.update(model={k: make(v) for k, v in content["model"].items()}, ema=None))


CHECKPOINTS = {
    "code": saved(model=Executed()),
    "code alone": lambda run: write_checkpoint(run, lambda path: path.write_bytes(pickle.dumps(Executed()))),
    "code beside weights": edited(lambda content: content.update(note=Executed())),
    "names": saved(model={EVIL: torch.zeros(2)}),
    "no names": saved(model=[1, 2]),
    "no weights": saved(model={"a": EVIL}),
    "step": edited(lambda content: content.update(step=10**30)),
    "format": edited(lambda content: content.update(format=EVIL)),
    "endless": of_weights(lambda w: torch.zeros(1).expand(10**12)),
    "complex": of_weights(lambda w: w.to(torch.complex64) if w.is_floating_point() else w),
    "sparse": of_weights(lambda w: w.to_sparse() if w.dim() else w),
    "no memory behind": of_weights(lambda w: w.to("meta")),
    "pipe": lambda run: (
        replaced("checkpoints/step-000000016.pt", os.mkfifo)(run)
        or shutil.rmtree(run / "checkpoints" / "x", ignore_errors=True)
        or (run / "checkpoints" / "step-000000008.pt").unlink()
    ),
    "checksum": lambda run: [path.write_text(EVIL) for path in (run / "checkpoints").glob("*.sha256")] and None,
}


@pytest.mark.parametrize("hostile", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_hostile_checkpoint(hostile: Callable[[Path], None], run: Path) -> None:
    hostile(run)
    for said in (read_by(script, run) for script in READERS):
        assert said.code == 2, said
        assert said.err.splitlines()[-2].startswith("error: "), said
    assert compare(run, "--no-score-missing", draws=False).code in (0, 2), "scores are all that it reads"


def record(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda run: change(run / "scores.json", edit)


SCORES = {
    "protocol": record(lambda c: c["protocol"].update(split=EVIL + DEEP, images="many", seed=-(10**400))),
    "numbers": record(lambda c: c.update(kl_of_units=[1e999], step=-1, num_images=10**300)),
    "scores": record(lambda c: c.update(scores=[EVIL])),
    "groups": record(lambda c: c.update(group_shapes=[[10**30] * 3] * 1000)),
    "samples": record(lambda c: c.update(samples={"samples": EVIL})),
    **{name: replaced("scores.json", make) for name, make in INSTEAD_OF_A_FILE.items()},
}


@pytest.mark.parametrize("hostile", SCORES.values(), ids=SCORES)
def test_hostile_scores(hostile: Callable[[Path], None], run: Path) -> None:
    hostile(run)
    said = compare(run, "--no-score-missing")
    assert said.code == 2, said
    assert "left out: " in said.err
