"""Records are complete in the files: event files, JSON lines, figures."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, TENSORS, EventAccumulator

from launch.machine.files import plain
from launch.training import records
from launch.training.records import Monitor
from tests.conftest import ROOT
from tests.launch import running

TRAIN = ["loss", "elbo", "rate", "distortion", "bits_per_dim"]
OPTIM = ["optim/lr", "optim/grad_norm", "optim/skipped_steps", "speed/images_per_s"]


def events(run: Path) -> EventAccumulator:
    read = EventAccumulator(str(run), size_guidance={SCALARS: 0, IMAGES: 0, TENSORS: 0})
    read.Reload()
    return read


@pytest.fixture(scope="module")
def read(trained: Path) -> EventAccumulator:
    return events(trained)


@pytest.mark.parametrize("tag", [*(f"train/{n}" for n in TRAIN), *OPTIM, "kl_group_train/00", "kl_group_train/01"])
def test_training_scalars_at_every_interval(tag: str, read: EventAccumulator) -> None:
    points = read.Scalars(tag)
    assert [p.step for p in points] == list(range(1, running.STEPS + 1))
    assert all(math.isfinite(p.value) for p in points)


@pytest.mark.parametrize(
    "tag",
    [*(f"val/{n}" for n in TRAIN if n != "loss"), "val/psnr", "val/active_units", "kl_group/00", "kl_group/01"],
)
def test_held_out_scalars_at_every_evaluation(tag: str, read: EventAccumulator) -> None:
    assert [p.step for p in read.Scalars(tag)] == [8, 16]


def test_the_parts_add_up(read: EventAccumulator) -> None:
    for where in ("train", "val"):
        for elbo, rate, distortion in zip(
            *(read.Scalars(f"{where}/{n}") for n in ("elbo", "rate", "distortion")), strict=True
        ):
            assert elbo.value == pytest.approx(-(rate.value + distortion.value), rel=1e-5)
    groups = [
        sum(p.value for p in points)
        for points in zip(read.Scalars("kl_group/00"), read.Scalars("kl_group/01"), strict=True)
    ]
    assert groups == pytest.approx([p.value for p in read.Scalars("val/rate")], rel=1e-5)


@pytest.mark.parametrize("name", ["samples_t0.7", "samples_t0.8", "samples_t0.9", "samples_t1.0", "reconstruction"])
def test_images_can_be_decoded_and_hold_the_grid(name: str, trained: Path, read: EventAccumulator) -> None:
    """4 images of 12 x 16, shown six times as large, with labels: samples 2 by 2, originals above reconstructions."""
    points = read.Images(f"images/{name}")
    assert [p.step for p in points] == [8, 16]
    picture = np.asarray(Image.open(io.BytesIO(points[-1].encoded_image_string)))
    rows, columns = (2, 4) if name == "reconstruction" else (2, 2)
    height, width = rows * (72 + 2) + 2, columns * (96 + 2) + 2
    assert height < picture.shape[0] <= height + 80
    assert width <= picture.shape[1] <= max(width + 120, 400)
    assert picture.std() > 1.0
    assert np.array_equal(picture, np.asarray(Image.open(trained / "figures" / f"{name}.png")))


def test_originals_stand_above_their_reconstructions(trained: Path, data: Path) -> None:
    picture = np.asarray(Image.open(trained / "figures" / "reconstruction.png"))
    first = np.asarray(Image.open(sorted((data / "valid").iterdir())[0]))
    shown = first.repeat(6, 0).repeat(6, 1)
    top = len(picture) - 2 * (72 + 2)  # labels stand above and on the left
    found = [np.array_equal(picture[top : top + 72, left : left + 96], shown) for left in range(picture.shape[1] - 95)]
    assert found.count(True) == 1


def test_hparams_are_in_the_same_run(trained: Path, read: EventAccumulator) -> None:
    """`add_hparams` would make a run of its own: here the summaries are in the one event file."""
    assert len(list(trained.rglob("events.out.tfevents.*"))) == 1
    plugin = read.PluginTagToContent("hparams")
    assert "_hparams_/session_start_info" in plugin
    assert "_hparams_/experiment" in plugin
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    said = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"]).session_start_info.hparams
    assert said["run.max_steps"].number_value == running.STEPS
    assert said["model.channels_enc"].number_value == 4
    experiment = HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    columns = [info.name.partition(".")[0] for info in experiment.hparam_infos]
    assert columns.index("model") < columns.index("data")  # what shapes a result stands first
    assert "log" not in columns
    shown = {info.name.tag for info in experiment.metric_infos}
    assert "val/bits_per_dim" in shown
    assert shown <= set(read.Tags()["scalars"])
    assert min(read.Tags()["scalars"]) > "images"  # the first page opens on pictures
    score = read.Scalars("val/bits_per_dim")[-1].value
    assert score == pytest.approx(json.loads((trained / "summary.json").read_text())["valid"]["bits_per_dim"])


def test_json_lines_say_what_tensorboard_says(trained: Path, read: EventAccumulator) -> None:
    lines = running.records(trained)
    assert [line["step"] for line in lines] == [*range(1, 9), 8, *range(9, 17), 16]
    for tag in ("train/loss", "optim/lr", "val/elbo"):
        written = [line[tag] for line in lines if tag in line]
        assert written == pytest.approx([p.value for p in read.Scalars(tag)], rel=1e-6)


def test_learning_rate_and_images_seen(read: EventAccumulator) -> None:
    assert read.Scalars("optim/lr")[0].value == 0.0  # the warm-up starts from nothing
    assert max(p.value for p in read.Scalars("optim/lr")) > 0.009
    assert [p.value for p in read.Scalars("speed/images_seen")] == [4.0 * s for s in range(1, running.STEPS + 1)]


def _log(folder: Path, steps: range, resume_step: int = 0, total: int = 6) -> Monitor:
    folder.mkdir(exist_ok=True)
    with Monitor(folder, active=True, resume_step=resume_step, total_steps=total) as monitor:
        for step in steps:
            monitor.scalars(step, {"train/loss": float(step)})
            if step % 2 == 0:
                monitor.scalars(step, {"val/elbo": -float(step)})
    return monitor


def _steps(folder: Path) -> list[tuple[int, bool]]:
    return [(line["step"], "val/elbo" in line) for line in running.records(folder)]


def test_resuming_drops_the_lost_future_and_repeats_nothing(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    _log(whole, range(1, 7))
    broken = tmp_path / "broken"
    _log(broken, range(1, 6))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # the kill came here
    assert _log(broken, range(4, 7), resume_step=3).has_recorded("val/") is False
    assert _steps(broken) == _steps(whole)
    points = events(broken).Scalars("train/loss")
    assert [p.step for p in points] == list(range(1, 7))


def test_clocks_go_on_where_the_resumed_step_left_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of lost steps and the time between an end and the next start do not count."""
    now = {"seconds": 0.0, "cpu_seconds": 0.0}
    monkeypatch.setattr(records, "CLOCKS", {name: partial(now.__getitem__, name) for name in now})

    def run(steps: range, resume_step: int) -> dict[str, float]:
        with Monitor(tmp_path, active=True, resume_step=resume_step, total_steps=6) as monitor:
            for step in steps:
                now["seconds"] += 10.0
                now["cpu_seconds"] += 4.0
                monitor.scalars(step, {"train/loss": 1.0})
            return monitor.spent()

    assert run(range(1, 4), 0) == {"seconds": 30.0, "cpu_seconds": 12.0}
    now.update(seconds=5000.0, cpu_seconds=2.0)
    assert run(range(3, 5), 2) == {"seconds": 40.0, "cpu_seconds": 16.0}


def test_the_evaluation_of_the_resumed_step_is_known(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 6))
    assert _log(tmp_path, range(5, 5), resume_step=4).has_recorded("val/") is True
    assert _log(tmp_path, range(5, 5), resume_step=3).has_recorded("val/") is False


def test_the_final_evaluation_is_made_again(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 7))
    assert _log(tmp_path, range(7, 7), resume_step=6).has_recorded("val/") is False
    assert _steps(tmp_path)[-1] == (6, False)


def test_starting_over_leaves_nothing_of_the_first_try(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 6))
    _log(tmp_path, range(1, 3))
    assert _steps(tmp_path) == [(1, False), (2, False), (2, True)]
    assert [p.step for p in events(tmp_path).Scalars("train/loss")] == [1, 2]


def test_lines_that_cannot_be_read_stay_and_stop_nothing(tmp_path: Path) -> None:
    """Invalid UTF-8, JSON too deep to parse and records without a step are left in the file."""
    _log(tmp_path, range(1, 4))
    odd = [b'{"step": 2, "\xff": 1}\n', b"[" * 100_000 + b"\n", b'{"step": "x"}\n', b"null\n", b'{"step": NaN}\n']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(odd) + path.read_bytes() + b'{"step": 3, "tr')
    _log(tmp_path, range(3, 4), resume_step=2)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[: len(odd)] == odd
    assert [json.loads(line)["step"] for line in lines[len(odd) :]] == [1, 2, 2, 3]


def test_records_out_of_order_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 9}\n{"step": 2}')
    _log(tmp_path, range(3, 4), resume_step=2)
    assert [line["step"] for line in running.records(tmp_path)] == [1, 2, 3]


def _fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["SummaryWriter", "open", "add_scalar", "add_image", "close", "truncate", "read"])
def test_no_record_ends_a_run(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up before, in and at the end of a run: one warning, and no exception."""
    _log(tmp_path, range(1, 4))
    owner = {"add_scalar": records.SummaryWriter, "add_image": records.SummaryWriter, "close": records.SummaryWriter}
    place: Any = owner.get(broken, records.os if broken == "truncate" else records)
    with monkeypatch.context() as patch:
        patch.setattr(place, broken, _fail, raising=False)
        with Monitor(tmp_path, active=True, resume_step=1, total_steps=6) as monitor:
            for step in (2, 3):
                monitor.scalars(step, {"a": 1.0})
                monitor.image(step, "b", np.zeros((2, 2, 3), np.uint8))
            monitor.hparams({"x": object(), "path": os.fsdecode(b"\xff")}, ["y"])
            monitor.flush()
    said = capsys.readouterr().err
    assert 1 <= said.count("could not be written") <= 3
    assert os.strerror(errno.ENOSPC) in said


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fills in the middle of a line, the next line does not continue the partial one."""

    class Full(io.FileIO):
        def write(self, data: Any, /) -> int:
            return super().write(bytes(data)[:5])

    with Monitor(tmp_path, active=True, total_steps=6) as monitor:
        monitor.scalars(1, {"a": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(records, "open", lambda path, *_, **__: Full(path, "ab"), raising=False)
            monitor.scalars(2, {"a": 2.0})
        monitor.scalars(3, {"a": 3.0})
    assert [line["step"] for line in running.records(tmp_path)] == [1, 3]


def test_a_run_folder_that_is_renamed_is_not_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with Monitor(run, active=True, total_steps=6) as monitor:
        monitor.scalars(1, {"a": 1.0})
        run.rename(tmp_path / "elsewhere")
        monitor.scalars(2, {"a": 2.0})
    assert not (run / "metrics.jsonl").exists()
    assert [line["step"] for line in running.records(tmp_path / "elsewhere")] == [1]


def test_a_clock_that_is_set_back_hides_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 86_400)
        _log(tmp_path, range(1, 4))
        _log(tmp_path, range(3, 5), resume_step=2)
    _log(tmp_path, range(4, 7), resume_step=3)
    assert [p.step for p in events(tmp_path).Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_kill_after_the_final_evaluation_leaves_one_point(tmp_path: Path) -> None:
    _log(tmp_path, range(1, 7))
    with Monitor(tmp_path, active=True, resume_step=6, total_steps=6) as monitor:
        monitor.scalars(6, {"val/elbo": -6.5})
    read = events(tmp_path)
    assert [(p.step, p.value) for p in read.Scalars("val/elbo")] == [(2, -2.0), (4, -4.0), (6, -6.5)]
    assert [p.step for p in read.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_thread_of_tensorboard_that_fails_prints_no_traceback(tmp_path: Path) -> None:
    """A renamed folder or a full disk used to cause a traceback. The program is a subprocess, because pytest would catch it."""
    program = """
import pathlib, sys, threading
from launch.training.records import Monitor
run = pathlib.Path(sys.argv[1]); run.mkdir()
with Monitor(run, active=True, total_steps=6) as monitor:
    monitor.scalars(1, {"a": 1.0})
    run.rename(run.with_name("elsewhere"))
    monitor.scalars(2, {"a": 2.0})
for thread in threading.enumerate()[1:]:
    thread.join(1.0)
def fail(): raise RuntimeError("ours")
ours = threading.Thread(target=fail); ours.start(); ours.join()
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.count("could not be written") >= 1
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert "ours" in done.stderr


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_records_that_are_no_file_end_nothing(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "metrics.jsonl")
    if make is os.mkfifo:  # a pipe without a reader blocks whoever opens it to write
        (tmp_path / "metrics.jsonl").unlink()
        make(tmp_path / "other")
        with pytest.raises(ValueError, match="regular file"):
            records.read(tmp_path / "other")
    _log(tmp_path, range(1, 3))


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Monitor(tmp_path, active=False) as monitor:
        monitor.scalars(1, {"a": 1.0})
        monitor.image(1, "a", np.zeros((2, 2, 3), np.uint8))
        monitor.hparams({}, [])
        monitor.progress(1, {})
        monitor.say("nothing")
        monitor.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")], {"a": {"b": float("-inf")}}])
def test_json_has_no_nan(value: Any) -> None:
    assert "NaN" not in json.dumps(plain(value))
    json.dumps(plain(value), allow_nan=False)


def test_a_summary_for_people(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["family"] == "nvae"
    assert config["spec"] == {"channels": 3, "height": 12, "width": 16, "num_bits": 8}
    assert config["data"]["num_images"] == running.COUNTS["train"]
    assert config["versions"].keys() >= {"python", "torch", "numpy"}
    assert config["argv"][0] == "train_nvae.py"
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["step"] == running.STEPS
    assert summary["images_seen"] == 4 * running.STEPS
    assert summary["valid"]["num_images"] == running.COUNTS["valid"]
