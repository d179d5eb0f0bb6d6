"""The sweep: what it refuses, what it runs and skips, what it recommends."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import sweep
from launch.machine import files
from launch.studies import sweep_report
from launch.studies.sweep_report import recommend
from launch.training import jobs
from tests.conftest import ROOT
from tests.launch import running, toy

SHARED = ["--preset", "tiny", "--objective", "beta", "--conv-channels", "4", "--latent-dim", "3", "--max-steps", "4"]
SHARED += ["--batch-size", "4", "--figure-images", "4", "--iw-samples", "2", "--eval-every", "4"]


def flags(data: Path, out: Path, *own: str) -> list[str]:
    typed = ["--out", str(out), "--seeds", "1", "--workers", "1", *own]
    return [*typed, "--", "--dataset", "folder", "--data-root", str(data), *SHARED]


@pytest.fixture(scope="module")
def swept(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two runs, the first in a process of its own."""
    out, start = tmp_path_factory.mktemp("sweep") / "out", jobs.Devices.run

    def run(self: jobs.Devices, command: list[str], log: Path) -> int:
        return start(self, command, log) if log.stem == "beta-1-seed0" else running.do_job(command, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.Devices, "run", run)
        assert running.call("sweep", *flags(data, out, "--values", "1", "40")).code == 0
    return out


def test_sweep_leaves_runs_table_plot_and_results(swept: Path) -> None:
    for value in ("1", "40"):
        config = json.loads((swept / f"beta-{value}-seed0" / "config.json").read_text())["config"]
        assert config["objective"]["beta"] == float(value)
        assert (swept / "logs" / f"beta-{value}-seed0.txt").exists()
    text = (swept / "table.md").read_text()
    assert "Recommended beta" in text
    assert "covariance distance" in text
    assert "MIG" not in text.splitlines()[0]  # a folder of images has no factors
    assert (swept / "sweep.png").stat().st_size > 1000
    results = json.loads((swept / "results.json").read_text())["results"]
    assert results.keys() == {"1", "40"}
    assert results["40"][0]["beta_norm"] == pytest.approx(40 * 3 / (12 * 16 * 3))
    summary = json.loads((swept / "beta-1-seed0" / "summary.json").read_text())["valid"]
    assert results["1"][0]["distortion"] == summary["distortion"]


def test_sweep_goes_on_where_it_was(swept: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def run(self: jobs.Devices, command: list[str], log: Path) -> int:
        started.append(log.stem)
        log.parent.mkdir(exist_ok=True)
        log.write_text("error: it broke; mend it\n")
        return 3

    monkeypatch.setattr(jobs.Devices, "run", run)
    assert running.call("sweep", *flags(data, swept, "--values", "1", "40")).code == 0
    assert started == []
    result = running.call("sweep", *flags(data, swept, "--values", "1", "40", "80"))
    assert started == ["beta-80-seed0"]
    running.assert_one_error(result, "1 of 3 runs failed", "it broke", "exit code 3")
    assert "| 80" not in (swept / "table.md").read_text()  # the finished runs are reported all the same


def test_sweep_refuses_the_folder_of_another(swept: Path, data: Path) -> None:
    changed = [*flags(data, swept, "--values", "1"), "--lr", "1e-4"]
    running.assert_one_error(running.call("sweep", *changed), "was made with", "--out")


@pytest.mark.parametrize(
    ("own", "passed", "said"),
    [
        (["--values", "1", "1"], [], "each value once"),
        (["--values", "0", "--flag", "seed"], [], "set by the sweep"),
        (["--values", "x"], [], "x"),
        (["--values", "-1"], [], "-1"),
        (["--values", "1", "--flag", "betta"], [], "betta"),
        (["--values", "1"], ["--beta", "2"], "follows --"),
        (["--values", "1"], ["--seed", "2"], "follows --"),
        (["--values", "1", "--seeds", "0"], [], "--seeds 0"),
        (["--values", "1", "--by", "latent-dim"], [], "give both or neither"),
        (["--values", "1", "--by", "beta", "--by-values", "2"], [], "differ from --flag"),
        ([], [], "--values"),
    ],
)
def test_sweep_refuses_before_it_trains(
    data: Path, tmp_path: Path, own: list[str], passed: list[str], said: str
) -> None:
    result = running.call("sweep", *flags(data, tmp_path / "out", *own), *passed)
    running.assert_one_error(result, said)
    assert not (tmp_path / "out").exists()


def test_machines_share_a_sweep(swept: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is trained by one of them, and only a sweep without --share writes the report."""
    trained: list[list[str]] = []

    def train_all(runs: list[jobs.ScriptRun], workers: int | None, cluster: str | None) -> list[str]:
        assert cluster is None
        trained.append([str(run) for run in runs])
        return []

    monkeypatch.setattr(jobs, "train_all", train_all)
    report = (swept / "table.md").stat().st_mtime_ns
    for share in ("1/2", "2/2"):
        own = ["--values", "1", "40", "80", "--share", share]
        assert running.call("sweep", *flags(data, swept, *own)).code == 0
    assert trained == [["beta-1-seed0", "beta-80-seed0"], ["beta-40-seed0"]]
    assert (swept / "table.md").stat().st_mtime_ns == report
    assert sweep.SweepConfig(values=("1",)).share == "1/1"


@pytest.mark.parametrize("share", ["0/2", "3/2", "2", "1/", "/2", "1/2/2", "a/b", "01/2"])
def test_an_invalid_share_is_refused(share: str) -> None:
    with pytest.raises(ValueError, match=f"--share {share}"):
        sweep.SweepConfig(values=("1",), share=share)


def test_values_of_several_numbers() -> None:
    chosen = sweep.SweepConfig(values=("3,3",), flag="latent-groups", out=Path("out"))
    run = sweep._run(chosen, ["--lr", "1"], ("3,3",), 1)
    assert run.arguments == ("--lr", "1", "--latent-groups", "3", "3", "--seed", "1")
    assert run.all_arguments[-4:] == ("--run-dir", "out/latent-groups-3,3-seed1", "--resume", "auto")


def test_gpus_are_handed_out_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    devices = jobs.Devices(None)
    assert devices.workers == 2
    command = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    seen = []
    for i in range(3):
        assert devices.run(command, tmp_path / f"{i}.txt") == 0
        seen.append((tmp_path / f"{i}.txt").read_text().strip())
    assert seen == ["4", "6", "4"]


def test_without_gpus_a_run_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    devices = jobs.Devices(None)
    assert devices.workers == os.cpu_count()
    command = [sys.executable, "-c", "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(5)"]
    assert devices.run(command, tmp_path / "log.txt") == 5
    assert (tmp_path / "log.txt").read_text().strip() == "1"


def scores(**numbers: float) -> dict[str, float]:
    return {"distortion": 50.0, "rate": 10.0, "elbo": -60.0, "active_units": 5.0, **numbers}


def test_recommended_is_the_highest_mig() -> None:
    results = {
        "1": [scores(mig=0.10), scores(mig=0.11)],
        "4": [scores(mig=0.30), scores(mig=0.31)],
        "8": [scores(mig=0.20), scores(mig=0.21)],
    }
    assert recommend(results).value == "4"


def test_of_values_that_noise_cannot_tell_apart_the_best_reconstruction_wins() -> None:
    results = {
        "1": [scores(mig=0.28, distortion=20.0), scores(mig=0.29, distortion=20.0)],
        "4": [scores(mig=0.20, distortion=40.0), scores(mig=0.40, distortion=40.0)],
    }
    chosen = recommend(results)
    assert chosen.value == "1"
    assert "within one standard error" in chosen.reason


def test_without_factors_the_elbo_decides_and_collapse_is_out() -> None:
    results = {
        "1": [scores(elbo=-60.0)],
        "4": [scores(elbo=-70.0)],
        "100": [scores(elbo=-50.0, active_units=0.0)],
    }
    chosen = recommend(results)
    assert chosen.value == "1"
    assert "one seed cannot" in chosen.reason


def test_among_autoencoders_the_lowest_distortion_is_recommended() -> None:
    """They have neither ELBO nor active units."""
    chosen = recommend({"8": [{"distortion": 50.0}], "16": [{"distortion": 40.0}]})
    assert chosen.value == "16"
    assert "lowest distortion" in chosen.reason


def test_table_shows_mean_spread_and_only_what_all_runs_have() -> None:
    results: dict[str, list[dict[str, float]]] = {
        "1": [scores(mig=0.1, distortion=10.0), scores(mig=0.3, distortion=12.0)],
        "4": [scores(distortion=20.0)],
    }
    lines = sweep_report.table("beta", results).splitlines()
    assert "MIG" not in lines[0]
    assert "11.0 ± 1.4" in lines[2]
    assert " 20.0 |" in lines[3]


@pytest.mark.parametrize("values", [("1", "10", "100"), ("burgess", "conv"), ("0", "1")])
def test_plot_of_numbers_and_names(values: tuple[str, ...]) -> None:
    picture = sweep_report.plot("flag", {"": {value: [scores(mig=0.1)] for value in values}})
    assert picture.ndim == 3


def test_betas_of_latent_sizes_stand_at_their_normalised_values() -> None:
    sizes = {"latent-dim 5": 5, "latent-dim 10": 10}
    series = {
        title: {beta: [scores(mig=0.1, beta_norm=float(beta) * size / 4096)] for beta in ("1", "16")}
        for title, size in sizes.items()
    }
    positions, logarithmic = sweep_report._positions("beta", series["latent-dim 5"], ["1", "16"])
    assert logarithmic
    assert positions == [5 / 4096, 16 * 5 / 4096]
    assert list(sweep_report.flat(series))[:2] == ["1 (latent-dim 5)", "16 (latent-dim 5)"]
    assert sweep_report.plot("beta", series).ndim == 3
    # a run without a beta, or another flag, stands at the value itself
    assert sweep_report._positions("capacity", {"1": [scores()], "2": [scores()]}, ["1", "2"]) == ([1.0, 2.0], False)


def test_a_value_stands_at_one_place_in_every_series() -> None:
    """One series lacks the first objective, because its run failed."""
    every = ["vae", "tc"]
    positions = [sweep_report._positions("objective", {v: [scores()] for v in of}, every)[0] for of in (every, ["tc"])]
    assert positions == [[0.0, 1.0], [1.0]]


@pytest.mark.parametrize("same", [True, False])
def test_numbers_of_two_likelihoods_give_no_recommendation(same: bool, tmp_path: Path) -> None:
    kinds = ["bernoulli of 28x20x1, 8 bit", *([] if same else ["mixture, exact edges of 28x20x1, 8 bit"])]
    series = {"": {"bernoulli": [scores()], "mixture": [scores(elbo=-9.0)]}}
    text = sweep_report.write(tmp_path, "likelihood", series, quantities=kinds)
    recorded = json.loads((tmp_path / "results.json").read_text())["recommended"]
    assert (recorded is not None) == ("Recommended likelihood: **mixture**" in text) == same
    assert ("; ".join(kinds) in text) != same


def test_two_flags_give_every_combination(tmp_path: Path) -> None:
    chosen = sweep.SweepConfig(values=("1", "4"), by="latent-dim", by_values=("5", "10"), out=tmp_path)
    assert chosen.settings == [("1", "5"), ("1", "10"), ("4", "5"), ("4", "10")]
    run = sweep._run(chosen, [], chosen.settings[1], 0)
    assert run.arguments == ("--beta", "1", "--latent-dim", "10", "--seed", "0")
    assert run.folder.name == "beta-1-latent-dim-10-seed0"


def test_measured_scores_are_kept_with_their_step(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = swept / "beta-1-seed0"
    first = sweep_report.measure(run, 10_000)

    def again(*_: Any) -> dict[str, float]:
        raise AssertionError("measured twice")

    monkeypatch.setattr(sweep_report, "_representation", again)
    assert sweep_report.measure(run, 10_000) == first
    with pytest.raises(AssertionError, match="measured twice"):
        sweep_report.measure(run, 8)
    assert files.read_json(run / "sweep_scores.json")["of"] == {"step": 4, "images": 10_000}


def test_sweep_and_score_give_a_run_one_mig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 20 of 54 test images both use the same images and codes and get the same number; for a hierarchy too."""
    toy.register(monkeypatch)
    for name in ("flat", "nvae"):
        run = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "runs" / name, tmp_path / name))
        measured = sweep_report.measure(run, 20)
        (run / "scores.json").unlink()
        flags = ["--images", "20", "--metrics", "mig", "--elbo-images", "0", "--samples", "0"]
        scored = running.call("score", "--run", run, *flags)
        assert scored.code == 0, scored.err
        assert measured["mig"] == json.loads((run / "scores.json").read_text())["scores"]["mig"]["score"]
