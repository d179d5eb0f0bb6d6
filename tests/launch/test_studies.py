"""The Frey and the Grouped-VAE study: theory against independent calculations, runs and reports on drawn images."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from scipy import optimize
from torch import Tensor

import datasets
from datasets.dsprites import FACTOR_NAMES, FACTOR_SIZES, render
from flat_vae import FlatVAE, FlatVAEConfig
from launch.console.config import DataConfig
from launch.machine import files, process
from launch.machine.distributed import Ranks
from launch.report.statistics import Estimate, Spread, holm
from launch.report.tables import Table
from launch.studies import frey, frey_runs, grouped, grouped_report, grouped_runs
from launch.studies.frey_theory import (
    Stop,
    critical_betas,
    foreseen_stop,
    mean_image_nats,
    predicted_rate,
    theory_agrees,
    where_learning_stops,
)
from launch.training import jobs
from metrics import mig
from tests.launch import running
from tests.launch.touching import touch

# --- Theory ---------------------------------------------------------------------------------------------------------


def test_critical_betas_of_the_real_frames(shared: Path) -> None:
    frames = datasets.open_dataset("frey", shared / "data" / "frey", "all")
    x = frames.images(range(len(frames))).numpy().reshape(1965, 560) / 255.0
    assert critical_betas(x)[:5] == pytest.approx([0.0101, 0.0063, 0.0058, 0.0040, 0.0026], abs=5e-5)
    assert mean_image_nats(x) == pytest.approx(351.68, abs=5e-3)


def test_critical_betas_are_squared_singular_values_of_whitened_pixels() -> None:
    x = np.random.default_rng(0).uniform(0.1, 0.9, (40, 7))
    p = x.mean(0)
    singular = np.linalg.svd((x - p) / np.sqrt(p * (1 - p)), compute_uv=False)
    np.testing.assert_allclose(critical_betas(x), singular**2 / 39 / 7, rtol=1e-10)


def test_constant_pixels_have_no_variance_but_are_counted() -> None:
    x = np.random.default_rng(0).uniform(0.1, 0.9, (40, 3))
    padded = np.concatenate([x, np.zeros((40, 1)), np.ones((40, 2))], axis=1)
    np.testing.assert_allclose(critical_betas(padded), [*critical_betas(x) / 2, 0, 0, 0], rtol=1e-10)
    assert mean_image_nats(padded) == pytest.approx(mean_image_nats(x), abs=1e-9)


@pytest.mark.parametrize("bad", [np.zeros((1, 5)), np.full((3, 5), 1.5), np.zeros(5)])
def test_images_without_critical_betas_are_refused(bad: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"no critical betas; give \[N, P\]"):
        critical_betas(bad)


@pytest.mark.parametrize("beta", [0.05, 0.3, 0.9, 1.4])
def test_predicted_rate_is_what_minimising_a_linear_vae_gives(beta: float) -> None:
    eigenvalue = 1.0

    def loss(v: np.ndarray[Any, Any]) -> float:
        encoder, decoder, log_variance = v
        variance = math.exp(log_variance)
        distortion = 0.5 * (eigenvalue * (1 - decoder * encoder) ** 2 + decoder**2 * variance)
        return distortion + beta * 0.5 * (encoder**2 * eigenvalue + variance - 1 - log_variance)

    found = optimize.minimize(loss, [0.7, 0.7, -0.5], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    encoder, _, log_variance = found.x
    rate = 0.5 * (encoder**2 * eigenvalue + math.exp(log_variance) - 1 - log_variance)
    assert predicted_rate(beta, np.array([eigenvalue, 0.01]), 1) == pytest.approx(rate, abs=1e-4)


def test_predicted_rate_adds_up_the_latents_in_use() -> None:
    critical = np.array([0.4, 0.2, 0.1])
    assert predicted_rate(0.15, critical, 3) == pytest.approx(0.5 * (math.log(0.4 / 0.15) + math.log(0.2 / 0.15)))
    assert predicted_rate(np.array([0.5, 0.4]), critical, 3).tolist() == [0.0, 0.0]


def test_where_learning_stops() -> None:
    betas = [1e-3, 1e-2, 1e-1]
    assert where_learning_stops(betas, [2.0, 0.5, 0.0]) == Stop(1e-2, 1e-1)
    assert where_learning_stops(betas, [2.0, 1.0, 0.5]) == Stop(1e-1, None)
    assert where_learning_stops(betas, [0.0, 0.0, 0.0]) == Stop(None, 1e-3)
    # one beta at which nothing is learnt is not the end if a larger beta learns
    assert where_learning_stops(betas, [0.0, 0.5, 0.0]) == Stop(1e-2, 1e-1)


def test_theory_agrees_only_between_the_two_betas() -> None:
    critical = np.array([0.0101, 0.0063])
    foreseen = foreseen_stop(critical, 1)
    assert foreseen == pytest.approx(0.0101 * math.exp(-2 * 0.05), rel=2e-3)
    assert theory_agrees(Stop(5e-3, 1e-2), foreseen)
    assert not theory_agrees(Stop(1e-3, 5e-3), foreseen)
    assert not theory_agrees(Stop(None, 1e-6), foreseen)


# --- The Frey study -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the public layout: a blob that moves and changes its brightness, 1,965 frames."""
    folder = tmp_path_factory.mktemp("frey")
    time = np.arange(1965)[:, None, None]
    y, x = np.mgrid[:28, :20]
    blob = np.exp(-((y - 14 - 6 * np.sin(time / 50)) ** 2 + (x - 10 - 4 * np.cos(time / 30)) ** 2) / 30)
    pixels = (40 + 180 * blob).astype(np.uint8).reshape(1965, 560)
    scipy.io.savemat(folder / "frey_rawface.mat", {"ff": pixels.T})
    return folder


def small(frames: Path, folder: Path, *more: str) -> list[str]:
    where = ["--data-root", str(frames), "--out", str(folder / "out"), "--report", str(folder / "report")]
    size = ["--betas", "1e-3", "--latent-dims", "2", "--seeds", "1", "--epochs", "1", "--workers", "1"]
    return [*where, *size, *more]


@pytest.fixture(scope="session")
def studied(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Frey study that is complete."""
    folder = tmp_path_factory.mktemp("study")
    frey.main(small(frames, folder))
    return folder


def test_frey_study_leaves_records_and_a_report_without_faces(studied: Path) -> None:
    names = {path.stem for path in (studied / "out" / "records").iterdir()}
    assert names == {"all-z2-beta1e-03-seed0", "train-z2-beta1e-03-seed0"}
    assert {path.stem for path in (studied / "out" / "samples").iterdir()} == names
    report = (studied / "report" / "index.md").read_text()
    assert "**2 of 2 runs are done**" in report
    assert "## Held-out frames" in report
    pictures = {"kl_all", "kl_train", "loss_all_z2", "loss_train_z2", "posterior_z2", "covariance_distance", "held_out"}
    assert {path.stem for path in (studied / "report").glob("*.png")} == pictures
    assert all(f"({name}.png)" in report for name in pictures)
    lines = (studied / "report" / "runs.csv").read_text().splitlines()
    assert len(lines) == 3


def test_frey_record_says_what_its_posteriors_say(studied: Path) -> None:
    record = json.loads((studied / "out" / "records" / "all-z2-beta1e-03-seed0.json").read_text())
    with np.load(studied / "out" / "posteriors" / "all-z2-beta1e-03-seed0.npz") as arrays:
        mean, std = arrays["mean"].astype(np.float64), arrays["std"].astype(np.float64)
    assert mean.shape == (1965, 2)
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std))
    assert record["final"]["rate"] == pytest.approx(kl.sum(1).mean(), rel=1e-4)
    assert record["kl_per_latent"] == pytest.approx(kl.mean(0).tolist(), rel=1e-4)
    centred = np.cov(mean.T, ddof=0)
    distance = np.mean([np.linalg.norm(np.diag(s**2) - centred) for s in std])
    assert record["covariance_distance"]["score"] == pytest.approx(distance, rel=1e-5)
    assert record["steps"] == 1965 // 16
    assert record["final_held_out"] is None


def test_held_out_record_is_of_other_frames(studied: Path) -> None:
    record = json.loads((studied / "out" / "records" / "train-z2-beta1e-03-seed0.json").read_text())
    assert record["num_images"] == 1415
    assert record["curve"][-1]["held_out"] == record["final_held_out"]
    assert record["final_held_out"]["distortion"] != record["final"]["distortion"]


def test_frey_study_resumes(
    studied: Path, frames: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(frey_runs, "work", lambda job: trained.append(str(job)))
    frey.main(small(frames, studied))
    assert trained == []
    assert "2 of 2 runs are done; 0 to go" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no run of the study is done"):  # the work is a stand-in
        frey.main(small(frames, studied, "--epochs", "2"))
    assert sorted(trained) == ["all-z2-beta1e-03-seed0", "train-z2-beta1e-03-seed0"]
    again = small(frames, studied, "--seeds", "2", "--report-only")
    frey.main(again)
    assert "**2 of 3 runs are done**" in (studied / "report" / "index.md").read_text()


def test_the_most_informative_runs_come_first() -> None:
    order = frey.FreyConfig().jobs()
    assert len(order) == 12 * 3 * (3 + 1)  # held out with one seed
    assert [(j.split, j.latent_dim, j.beta, j.seed) for j in order[:3]] == [("all", 2, 1e-3, s) for s in range(3)]
    assert {j.beta for j in order[3:30]} == {5e-3, 1e-2, 2e-2}
    assert {j.split for j in order[:108]} == {"all"}


def test_samples_span_the_aggregate_posterior_where_beta_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frey_runs.figures, "grid", lambda images, *_, **__: images)
    torch.manual_seed(0)
    spec = datasets.ImageSpec(channels=1, height=28, width=20)
    model = FlatVAE(FlatVAEConfig(network="frey", latent_dim=2, likelihood="bernoulli"), spec).eval()
    far = frey_runs.flat_figures.Codes(torch.full((50, 2), 8.0), torch.full((50, 2), 0.1))
    pictures = []
    for beta in (1e-4, 1e-3):
        job = frey_runs.Job(Path(), None, "all", 2, beta, 0, 1, "glorot")
        pictures.append(frey_runs.samples(model, far, job))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--seeds", "0"], "--seeds 0"),
        (["--betas"], "betas"),
        (["--splits", "test"], "test"),
        (["--data-root", "nowhere"], "frey_rawface.mat"),
        (["--report-only"], "no run of the study is done"),
    ],
)
def test_frey_study_refuses_in_one_line(frames: Path, tmp_path: Path, wrong: list[str], said: str) -> None:
    running.assert_one_error(running.call("studies.frey", *small(frames, tmp_path, *wrong)), said)


def test_a_damaged_record_is_named(studied: Path, frames: Path, tmp_path: Path) -> None:
    record = tmp_path / "out" / "records" / "all-z2-beta1e-03-seed0.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"split": ')
    running.assert_one_error(running.call("studies.frey", *small(frames, tmp_path)), record.name, "damaged")


# --- Jobs and tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [True, False])
def test_jobs_that_are_done_are_skipped_and_faults_come_back(tmp_path: Path, threads: bool) -> None:
    names = [str(tmp_path / name) for name in ("a", "b", "bad")]
    Path(names[0]).write_text("done")
    faults = jobs.run_all(names, touch, lambda name: Path(name).exists(), 2, threads=threads)
    assert faults == [f"{names[2]}: it is bad"]
    assert Path(names[0]).read_text() == "done"
    assert Path(names[1]).read_text() == "touched"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A scheduler and two workers, in threads of this process."""
    distributed = pytest.importorskip("distributed", reason="Dask, of the extra cluster, is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as there:
        yield there.scheduler_address


def test_the_workers_of_a_cluster_do_the_jobs(cluster: str, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a", "b", "bad")]
    Path(names[0]).write_text("done")
    faults = jobs.run_all(names, touch, lambda name: Path(name).exists(), 1, threads=True, cluster=cluster)
    assert faults == [f"{names[2]}: it is bad"]
    assert Path(names[0]).read_text() == "done"
    assert Path(names[1]).read_text() == "touched"


def test_runs_on_a_cluster_keep_the_environment_of_its_workers(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool of this machine's devices is not sent to the workers."""
    took: list[dict[str, str]] = []

    def train(command: list[str], env: dict[str, str], output: Any) -> int:
        took.append(env)
        (Path(command[command.index("--run-dir") + 1]) / "summary.json").write_text("{}")
        return 0

    monkeypatch.setattr(process, "run", train)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "of the worker")
    runs = [jobs.ScriptRun("train_flat_vae", ("--seed", str(i)), tmp_path / f"run{i}") for i in range(3)]
    for run in runs:
        run.folder.mkdir()
    assert jobs.train_all(runs, 1, cluster) == []
    assert all(run.is_done() for run in runs)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in took] == ["of the worker"] * 3


def test_a_cluster_that_does_not_answer_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask, of the extra cluster, is not installed")
    monkeypatch.setattr(jobs, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"--dask .* does not answer"):
        jobs.run_all([str(tmp_path / "a")], touch, lambda name: False, 1, threads=True, cluster="tcp://127.0.0.1:1")


def test_spread_and_table() -> None:
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.std, spread.num) == (2.0, 1.0, 3)
    assert spread.standard_error == pytest.approx(1 / math.sqrt(3))
    assert spread.text(1) == "2.0 ± 1.0"
    assert Spread.of([4.0]).text(0) == "4"
    table = Table(["a", "long"], [["xyz", "1"]])
    assert table.markdown().splitlines() == ["| a   | long |", "| --- | ---: |", "| xyz |    1 |"]
    assert table.text().splitlines() == ["a    long", "xyz     1"]


# --- The Grouped-VAE study ------------------------------------------------------------------------------------------


def interval_of(found: Estimate) -> tuple[float, float]:
    assert found.half_width is not None
    return found.mean - found.half_width, found.mean + found.half_width


def test_paired_test_against_enumeration_and_known_answers() -> None:
    first, second = [0.5, 0.1, 0.7, 0.35], [0.2, 0.3, 0.1, 0.2]
    found, p_value = grouped_report.paired_test(first, second)
    difference = np.subtract(first, second)
    means = [abs(np.dot(signs, difference)) / 4 for signs in itertools.product([1, -1], repeat=4)]
    assert p_value == np.mean([m >= abs(difference.mean()) - 1e-12 for m in means])
    half = 3.182446 * difference.std(ddof=1) / 2  # Student's t, 3 degrees of freedom
    assert interval_of(found) == pytest.approx((difference.mean() - half, difference.mean() + half), rel=1e-6)
    assert grouped_report.paired_test([1.0] * 10, [0.0] * 10)[1] == 2 / 2**10
    with pytest.raises(ValueError, match="give 2 to 16 pairs"):
        grouped_report.paired_test([1.0], [0.0])


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


class Sprites:
    """Every 997th image of the dSprites grid, drawn when it is asked for."""

    name, recipe = "dsprites", {"name": "drawn"}
    spec = datasets.ImageSpec(channels=1, height=64, width=64, num_bits=1)
    factor_names, factor_sizes = FACTOR_NAMES, FACTOR_SIZES

    def __len__(self) -> int:
        return 700

    def factors(self, indices: Any) -> Tensor:
        return torch.from_numpy(np.stack(np.unravel_index(np.asarray(indices) * 997, FACTOR_SIZES), axis=1))

    def images(self, indices: Any, draw: int = 0) -> Tensor:
        return torch.from_numpy(render(self.factors(indices).numpy())[:, None])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataConfig, "open", lambda self, split: Sprites())


def grouped_flags(folder: Path, *more: str) -> list[str]:
    where = ["--out", str(folder / "out"), "--report", str(folder / "report")]
    size = ["--seeds", "1", "--points", "2", "--steps-per-point", "1", "--test-images", "100", "--workers", "1"]
    return ["--protocol", "reduced", *where, *size, *more]


@pytest.mark.usefixtures("drawn")
def test_grouped_study_from_command_to_report(tmp_path: Path) -> None:
    grouped.main(grouped_flags(tmp_path))
    names = {path.stem for path in (tmp_path / "out" / "records").iterdir()}
    assert names == {f"{variant}-seed0" for variant in grouped_runs.VARIANTS}
    record = json.loads((tmp_path / "out" / "records" / "grouped-seed0.json").read_text())
    assert [point["step"] for point in record["points"]] == [1, 2]
    report = (tmp_path / "report" / "index.md").read_text()
    assert "reduced protocol for two CPU cores" in report
    assert "**It was not reached**" in report
    assert "nothing to test yet" in report
    assert "4 of 4 runs are done" in report


def test_measure_scores_the_posterior_means_of_fixed_images() -> None:
    config = FlatVAEConfig(network="burgess", latent_dim=6, likelihood="bernoulli")
    model = FlatVAE(config, Sprites.spec).eval()
    numbers = grouped_runs.measure(model, Sprites(), Ranks(0, 1, torch.device("cpu")), 300)
    rows = datasets.choose_rows(700, 300, seed=0)  # the rule by which all scores choose some of the images
    with torch.no_grad():
        codes = model.encode(Sprites().images(rows).float())[0]
    assert numbers["mig"] == pytest.approx(mig(codes, Sprites().factors(rows)).score, abs=1e-3)
    assert set(numbers["mic"]) == set(FACTOR_NAMES)
    assert len(numbers["kl_per_latent"]) == 6


def record(distortions: list[float], score: float) -> dict[str, Any]:
    """A record with these reconstructions at its points and MIG at all of them."""
    factors = dict.fromkeys(FACTOR_NAMES, 0.1)
    points = [
        {"step": 10 * i, "distortion": d, "rate": 20.0, "mig": score, "mic": factors, "mic_corrected": factors}
        for i, d in enumerate(distortions, start=1)
    ]
    return {"points": points, "steps_per_epoch": 10, "train_images": 640, "protocol": PROTOCOL}


PROTOCOL = {"points": 3, "steps_per_point": None, "test_images": 100}


def test_the_anchor_chooses_the_epoch_and_the_test_its_words(tmp_path: Path) -> None:
    chosen = grouped.GroupedConfig(out=tmp_path, points=3, test_images=100)
    wanted = chosen.jobs()
    for job in wanted:
        distortions = [60.0, 50.0, 45.0]
        if job.variant == "mlp-beta1":  # one seed is early, the mean is not
            distortions = [40.0 if job.seed else 34.0, 34.0 + 0.1 * job.seed, 30.0]
        score = {"grouped": 0.02, "mlp-beta1": 0.01, "mlp-beta5": 0.02, "mlp-beta10": 0.02}[job.variant]
        wobble = 0.0001 * job.seed + (0.001 * (-1) ** job.seed if job.variant == "mlp-beta5" else 0.0)
        files.write_json(job.record, record(distortions, score + wobble))
    assert grouped_report.chosen_point(grouped_report.read(wanted)) == (1, True)
    text = grouped_report.write(tmp_path / "report", wanted, reduced=False).read_text()
    assert "That is step 20 (2.00 epochs)." in text
    assert "reduced" not in text
    assert "after Holm: mlp-beta1." in text  # 10 seeds of one sign: p = .002; the others do not differ on average
    assert grouped_report.chosen_point({"mlp-beta1": {0: record([40.0, 35.0], 0.0)}}) == (1, False)


def test_grouped_study_refuses_in_one_line(tmp_path: Path) -> None:
    for wrong in (["--seeds", "17"], ["--protocol", "half"], ["--points", "0"]):
        running.assert_one_error(running.call("studies.grouped", *grouped_flags(tmp_path, *wrong)), wrong[1])
    nothing = running.call("studies.grouped", *grouped_flags(tmp_path, "--report-only"))
    running.assert_one_error(nothing, "no run with beta 1 is done")
