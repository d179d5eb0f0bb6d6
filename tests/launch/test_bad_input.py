"""Users' mistakes: one line on the error, one on the remedy, exit code 2, and nothing half-written."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.training import memory
from tests.conftest import ROOT
from tests.launch import running
from tests.launch.running import assert_one_error, call, environment, flags


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "new"


def assert_refused(run: Path, arguments: list[str], *words: str) -> None:
    """Assert that train_nvae.py refuses the arguments and leaves no run folder behind."""
    assert_one_error(call("train_nvae", *arguments), *words)
    assert not run.exists()


def test_a_missing_folder(run: Path, tmp_path: Path) -> None:
    assert_refused(run, flags(tmp_path / "nowhere", run), str(tmp_path / "nowhere"), "--data-root")


def test_an_empty_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(run, flags(tmp_path / "empty", run), "has no images", "put images")


def test_a_folder_without_held_out_images(run: Path, tmp_path: Path) -> None:
    data = running.draw(tmp_path / "data", {"train": 5})
    assert_refused(run, flags(data, run), "split valid")


def test_every_unreadable_image_is_named(run: Path, tmp_path: Path) -> None:
    data = running.draw(tmp_path / "data")
    files = sorted(data.rglob("*.png"))
    files[2].write_bytes(files[2].read_bytes()[:60])  # cut off
    files[9].write_bytes(b"\x89PNG but not really")
    result = call("train_nvae", *flags(data, run))
    assert result.code == 2
    assert "Traceback" not in result.err
    for path in (files[2], files[9]):
        assert path.name in result.err
    assert "fix: replace them, or leave them out" in result.err
    assert not run.exists()
    assert not list(data.rglob("*.npy")), "half a cache"
    assert call("train_nvae", *flags(data, run, "--skip-bad", "--max-steps", "1")).code == 0


def test_a_wrong_split_file(run: Path, tmp_path: Path) -> None:
    celeba = tmp_path / "celeba"
    shutil.copytree(running.draw(tmp_path / "drawn", {"train": 3}) / "train", celeba / "img_align_celeba")
    (celeba / "list_eval_partition.txt").write_text("000001.jpg 0\nwhat is this\n")
    arguments = flags(celeba, run, "--dataset", "celeba")
    assert_refused(run, arguments, "list_eval_partition.txt")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--dataset", "foldr"), ("'foldr'", "did you mean folder?")),
        (("--preset", "tinyy"), ("'tinyy'", "did you mean 'tiny'?")),
        (("--max-step", "4"), ("--max-step", "did you mean --max-steps?")),
        (("--lr", "quick"), ("--lr", "quick")),
        (("--batch-size", "19"), ("19", "18")),
        (("--batch-size", "0"), ("--batch-size 0", "1 or more")),
        (("--num-bits", "9"), ("num_bits is 9",)),
        (("--optimizer", "fused_adam"), ("apex", "--optimizer adam")),
        (("--optimizer", "adamx"), ("adamx", "adamax")),
        (("--device", "gpu"), ("gpu", "cuda")),
        (("--lr", "nan"), ("--lr nan", "positive")),
        (("--num-scales", "5", "--groups-per-scale", "1", "1", "1", "1", "1"), ("12 x 16", "stride 32")),
        (("--dsprites-source", "rendered"), ("folder has no option",)),
        (("--image-size", "8", "8", "8"), ("size",)),
        (("--resume", "maybe"), ("maybe", "auto")),
        (("--", "stray"), ("stray",)),
    ],
)
def test_bad_flags(more: tuple[str, ...], words: tuple[str, ...], data: Path, run: Path) -> None:
    assert_refused(run, flags(data, run, *more), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(data: Path, run: Path) -> None:
    assert_refused(run, flags(data, run, "--device", "cuda"), "--device cpu")


def test_a_run_folder_that_exists(copied: Path, data: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert_one_error(call("train_nvae", *flags(data, copied)), str(copied), "--resume auto")
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("work of years")
    for more in ((), ("--resume", "auto")):
        result = call("train_nvae", *flags(data, tmp_path / "thesis", *more))
        assert_one_error(result, "chapter.tex", "another --run-dir")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_run_folder_that_is_a_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    assert_one_error(call("train_nvae", *flags(data, tmp_path / "file")), "file", "another --run-dir")
    assert_one_error(call("train_nvae", *flags(data, tmp_path / "file" / "run")), "can't be written")


@pytest.mark.parametrize("resume", [(), ("--resume", "auto")])
def test_a_folder_in_use_by_another_process(resume: tuple[str, ...], data: Path, run: Path) -> None:
    run.mkdir(parents=True)
    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_error(call("train_nvae", *flags(data, run, *resume)), "another process is training", str(run))
        assert [path.name for path in run.iterdir()] == [".lock"]
    # the lock dies with its process: nothing has to be cleaned up by hand
    assert call("train_nvae", *flags(data, run, "--max-steps", "1")).code == 0


def test_a_dry_run_writes_nothing(data: Path, run: Path) -> None:
    result = call("train_nvae", *flags(data, run, "--dry-run"))
    assert result.code == 0
    assert "M parameters" in result.out
    assert "model.channels_enc = 4  (preset: 16)" in result.out
    assert "measured: mean of 2 steps of 4 images" in result.out
    assert "for 16 steps" in result.out
    assert not run.exists()


def test_a_dry_run_times_no_step_that_does_not_fit(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(memory, "seconds_of_step", lambda *_: pytest.fail("a step was taken"))
    result = call("train_nvae", *flags(data, run, "--dry-run"))
    assert result.code == 0
    assert "does not fit" in result.out
    assert "--batch-size" in result.out


@pytest.mark.parametrize("script", ["evaluate", "sample"])
class TestReaders:
    """evaluate.py and sample.py on what is no run."""

    def test_no_folder(self, script: str, tmp_path: Path) -> None:
        assert_one_error(call(script, "--run", tmp_path / "gone"), "there is no run folder")

    def test_no_run(self, script: str, tmp_path: Path) -> None:
        assert_one_error(call(script, "--run", tmp_path), "no config.json")

    def test_no_flag(self, script: str) -> None:
        assert_one_error(call(script), "--run is missing")

    def test_a_typo(self, script: str, trained: Path) -> None:
        assert_one_error(call(script, "--run", trained, "--sede", "3"), "did you mean --seed?")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"family": "nvae"}', '{"family": "gan"}', "[" * 10**5])
    def test_a_damaged_configuration(self, text: str, script: str, copied: Path) -> None:
        (copied / "config.json").write_text(text)
        assert_one_error(call(script, "--run", copied), "config.json")

    @pytest.mark.parametrize(
        ("field", "value"),
        [("channels_enc", "four"), ("chanels_enc", 4), ("groups_per_scale", [1]), ("channels_enc", 0)],
    )
    def test_a_field_that_is_wrong(self, field: str, value: object, script: str, copied: Path) -> None:
        record = json.loads((copied / "config.json").read_text())
        record["config"]["model"][field] = value
        (copied / "config.json").write_text(json.dumps(record))
        assert_one_error(call(script, "--run", copied), "config.json", field)

    @pytest.mark.parametrize("odd", ["a\nb", "a\r\n  fix: rm -rf", "\x1b[2J\u2028\x00", "\ud800"])
    def test_names_that_would_break_the_line(self, odd: str, script: str, copied: Path) -> None:
        """Found by fuzzing: a key with a line break made two lines, and control characters reached the terminal."""
        record = json.loads((copied / "config.json").read_text())
        for place in ({odd: 4}, {"channels_enc": odd}):
            changed = {**record, "config": {**record["config"], "model": {**record["config"]["model"], **place}}}
            (copied / "config.json").write_text(json.dumps(changed))
            result = call(script, "--run", copied)
            assert_one_error(result, "config.json")
            assert all(line.isprintable() for line in result.err.splitlines()), repr(result.err)
            assert len(result.err.splitlines()) == 2, repr(result.err)

    @pytest.mark.parametrize(
        "spec", [None, [], {"channels": 3}, {"channels": 3, "height": "x", "width": 4, "num_bits": 8}]
    )
    def test_a_wrong_image_spec(self, spec: object, script: str, copied: Path) -> None:
        record = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**record, "spec": spec}))
        assert_one_error(call(script, "--run", copied), "image spec")

    def test_another_model(self, script: str, copied: Path) -> None:
        record = json.loads((copied / "config.json").read_text())
        record["config"]["model"]["channels_enc"] = 5
        (copied / "config.json").write_text(json.dumps(record))
        assert_one_error(call(script, "--run", copied), "does not fit the model", "of another shape")

    def test_no_checkpoint(self, script: str, copied: Path) -> None:
        shutil.rmtree(copied / "checkpoints")
        assert_one_error(call(script, "--run", copied), "no valid checkpoint")

    def test_only_damaged_checkpoints(self, script: str, copied: Path) -> None:
        for path in (copied / "checkpoints").glob("*.pt"):
            path.write_bytes(b"")
        result = call(script, "--run", copied)
        assert_one_error(result, "no valid checkpoint")
        assert result.err.count("warning: skipped: ") == 3


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "inf"])
def test_a_temperature_that_makes_no_sense(temperature: str, trained: Path) -> None:
    assert_one_error(call("sample", "--run", trained, "--temperature", temperature), "temperature")


@pytest.mark.parametrize(("flag", "value"), [("--num", "0"), ("--batch-size", "-1"), ("--seed", "x")])
def test_sample_numbers(flag: str, value: str, trained: Path) -> None:
    assert_one_error(call("sample", "--run", trained, flag, value), flag)


@pytest.mark.parametrize(
    ("flag", "value", "word"),
    [("--split", "tset", "test"), ("--images", "0", "--images"), ("--iw-samples", "-1", "--iw-samples")],
)
def test_evaluate_numbers(flag: str, value: str, word: str, trained: Path) -> None:
    assert_one_error(call("evaluate", "--run", trained, flag, value), word)


def test_other_data(copied: Path, tmp_path: Path) -> None:
    other = running.draw(tmp_path / "other", height=20, width=20)
    assert_one_error(call("evaluate", "--run", copied, "--data-root", other), "--other-data", "--data-root")


def test_prepare_data(tmp_path: Path, data: Path) -> None:
    assert_one_error(call("prepare_data", "--dataset", "folder", "--data-root", tmp_path), "has no images")
    result = call("prepare_data", "--dataset", "folder", "--data-root", data)
    assert result.code == 0
    counts = re.findall(r"(train|valid|test) +(\d+) images", result.out)
    assert counts == [("train", "18"), ("valid", "5"), ("test", "7")], result.out


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = call("evaluate", "--run", tmp_path, "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    assert "error: " in result.err


FOREIGN = """
import sys, runpy
sys.path.insert(0, {folder!r})
import datasets
sys.argv = ["evaluate.py", "--run", "nowhere"]
runpy.run_path({script!r}, run_name="__main__")
"""


def test_a_foreign_package_of_our_name_is_refused(tmp_path: Path) -> None:
    """Hugging Face's `datasets`, already imported by a sitecustomize or a notebook: one line, no AttributeError."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    program = FOREIGN.format(folder=str(tmp_path), script=str(ROOT / "launch" / "evaluate.py"))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: the package 'datasets' was imported from" in done.stderr
    assert "  fix: " in done.stderr


@pytest.mark.parametrize(
    ("family", "typed", "said"),
    [
        ("nvae", ["--channels-enc", "1"], "channels_enc is 1"),
        ("nvae", ["--channels-dec", "1"], "channels_dec is 1"),
        ("nvae", ["--decoder-ops", "mconv_e3k4g0"], "mconv_e3k4g0"),
        ("nvae", ["--decoder-ops", "mconv_e0k3g0"], "mconv_e0k3g0"),
        ("flat_vae", ["--optimizer", "rmsprop", "--rmsprop-decay", "1.5"], "--rmsprop-decay 1.5"),
        ("flat_vae", ["--objective", "tc", "--batch-size", "1"], "too small for --objective tc"),
    ],
)
def test_settings_that_no_model_can_have_leave_no_folder(
    family: str, typed: list[str], said: str, run: Path, tmp_path: Path
) -> None:
    data = running.draw(tmp_path / "data")
    where = ["--dataset", "folder", "--data-root", data, "--preset", "tiny", "--run-dir", run, "--max-steps", "1"]
    assert_one_error(call(f"train_{family}", *where, *typed), said)
    assert not run.exists()
