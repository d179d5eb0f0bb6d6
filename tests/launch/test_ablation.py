"""The ablation study: the switched-off ingredients, and reports of records with known answers and of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from launch.console.flags import parse
from launch.families import nvae
from launch.studies import ablation
from launch.training import jobs
from launch.training.jobs import ScriptRun
from tests.launch.running import assert_one_error, call


def test_each_variant_changes_one_thing() -> None:
    recipe = nvae.FAMILY.preset("dsprites", "dsprites")
    built = {
        name: parse(nvae.NVAETrainConfig, recipe, list(variant.flags), prog="", description="")
        for name, variant in ablation.VARIANTS.items()
    }
    whole = built.pop("all")
    assert whole == recipe
    for config in built.values():
        changed = [(part, name) for part in ("model", "objective") for name in differing(config, whole, part)]
        assert len(changed) == 1


def differing(one: Any, other: Any, part: str) -> list[str]:
    first, second = vars(getattr(one, part)), vars(getattr(other, part))
    return [name for name in first if first[name] != second[name]]


def record(elbo: float, **changed: Any) -> dict[str, Any]:
    made = {"elbo": elbo, "rate": 20.0, "distortion": -elbo - 20.0, "kl_group": [15.0, 5.0], "active_units": 4}
    made |= {"step": 10, "images_seen": 320, "cpu_seconds": 60.0, "skipped_steps": 0, "num_parameters": 1e6}
    return made | {"grad_norm_median": 3.0, "grad_norm_largest": 9.0, "diverged_at": None} | changed


def test_the_report_says_differences_with_intervals_and_counts_what_diverged(tmp_path: Path) -> None:
    stored = {
        "all-seed0": record(-50.0),
        "all-seed1": record(-52.0),
        "no-spectral-penalty-seed0": record(-60.0),
        "no-spectral-penalty-seed1": {"diverged_at": 7},
    }
    (tmp_path / "runs").mkdir()
    for name, content in stored.items():
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps(content))
    text = ablation.write(tmp_path).read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    cells = {row[1]: dict(zip(rows[0], row, strict=True)) for row in rows}
    assert [cells["all"][name] for name in ("seeds", "diverged", "ELBO")] == ["2", "0", "-51.0 ± 1.4"]
    assert cells["all"]["difference from all"] == "-"
    assert cells["all"]["KL of the groups, top first"] == "15.0, 5.0"
    assert cells["all"]["CPU minutes"] == "1.0 ± 0.0"
    changed = cells["no-spectral-penalty"]
    assert [changed[name] for name in ("seeds", "diverged", "ELBO")] == ["2", "1", "-60.0"]
    assert changed["difference from all"] == "-9.0"
    assert "No spectral regularisation (`no-spectral-penalty`): ELBO -9.0 nats (no interval)." in text
    with Image.open(tmp_path / "elbo.png") as picture:
        assert picture.width > picture.height


def test_a_conclusion_says_whether_the_interval_excludes_0(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    elbos = {
        "all": (-50.0, -50.2, -49.8),
        "no-kl-balance": (-60.0, -60.3, -59.7),
        "no-kl-warm-up": (-49.0, -55.0, -47.0),
    }
    for name, values in elbos.items():
        for seed, elbo in enumerate(values):
            (tmp_path / "runs" / f"{name}-seed{seed}.json").write_text(json.dumps(record(elbo)))
    lines = ablation.write(tmp_path).read_text().splitlines()
    said = {name: next(line for line in lines if f"(`{name}`)" in line) for name in elbos if name != "all"}
    welch = stats.ttest_ind(elbos["no-kl-balance"], elbos["all"], equal_var=False).confidence_interval()
    assert f"ELBO -10.0 ± {(welch.high - welch.low) / 2:.1f} nats. Differs" in said["no-kl-balance"]
    assert "Within noise" in said["no-kl-warm-up"]
    assert "seeds of each" in said["no-kl-warm-up"]


def test_nothing_stored_and_unknown_variants_are_refused(tmp_path: Path) -> None:
    assert_one_error(call("studies.ablation", "--report-only", "--report", tmp_path), "--report-only")
    assert_one_error(call("studies.ablation", "--variants", "no-such"), "no-such")


def test_a_study_trains_what_is_missing_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(run: ScriptRun, devices: jobs.Devices) -> str | None:
        trained.append(str(run))
        run.folder.mkdir(parents=True)
        if str(run) == "no-kl-balance-seed1":
            (run.folder / "diverged.json").write_text('{"step": 7}')
            return "exit code 1, the loss is not finite"
        if str(run) == "no-kl-warm-up-seed0":
            return "exit code 1, disk full"
        kept = record(-40.0)
        held_out = {key: kept[key] for key in ("elbo", "rate", "distortion", "kl_group", "active_units")}
        summary = {key: kept[key] for key in ("step", "images_seen", "cpu_seconds", "skipped_steps", "num_parameters")}
        (run.folder / "summary.json").write_text(json.dumps({**summary, "valid": held_out}))
        (run.folder / "metrics.jsonl").write_text(
            '{"step": 1, "optim/grad_norm": 2.0}\n{"step": 2, "optim/grad_norm": 4.0}\n'
        )
        return None

    monkeypatch.setattr(jobs, "train", train)
    words = ["--out", tmp_path / "runs", "--report", tmp_path / "report", "--workers", "1", "--steps", "10"]
    two = ["--variants", "all", "no-kl-balance"]
    assert call("studies.ablation", *words, *two, "--seeds", "1").code == 0
    assert call("studies.ablation", *words, *two, "--seeds", "2").code == 0
    assert trained == ["all-seed0", "no-kl-balance-seed0", "all-seed1", "no-kl-balance-seed1"]
    stored = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "report" / "runs").iterdir()}
    assert stored["all-seed1"]["elbo"] == -40.0
    assert stored["all-seed1"]["grad_norm_median"] == 3.0
    assert stored["all-seed1"]["cpu_seconds"] == 60.0
    assert stored["no-kl-balance-seed1"] == {"diverged_at": 7, "max_steps": 10}
    assert "no-kl-balance" in (tmp_path / "report" / "index.md").read_text()
    failed = call("studies.ablation", *words, "--variants", "all", "no-kl-warm-up", "--seeds", "1")
    assert_one_error(failed, "disk full")
    assert trained[4:] == ["no-kl-warm-up-seed0"]
    elsewhere = ["--out", tmp_path / "fresh", *words[2:6]]
    assert call("studies.ablation", *elsewhere, "--steps", "10", *two, "--seeds", "2").code == 0
    assert len(trained) == 5  # stored runs of the same length are done, whoever trained them
    call("studies.ablation", "--out", tmp_path / "other", *words[2:6], "--steps", "11", *two, "--seeds", "1")
    assert trained[5:] == ["all-seed0", "no-kl-balance-seed0"]
