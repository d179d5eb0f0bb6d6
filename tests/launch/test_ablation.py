"""The ablation study: the switched-off ingredients, and reports of records with known answers and of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.console.flags import parse
from launch.families import nvae
from launch.studies import ablation
from launch.training import jobs
from launch.training.jobs import ScriptRun
from tests.launch.running import assert_one_error, call


def test_each_variant_changes_one_thing() -> None:
    recipe = nvae.FAMILY.preset("dsprites", "dsprites")
    built = {
        name: parse(nvae.NVAETrainConfig, recipe, list(flags), prog="", description="")
        for name, flags in ablation.VARIANTS.items()
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
    made |= {"step": 10, "images_seen": 320, "seconds": 60.0, "skipped_steps": 0, "num_parameters": 1e6}
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
    lines = ablation.write(tmp_path).read_text().splitlines()
    cells = {row[1]: row for row in ([c.strip() for c in line.split("|")] for line in lines if line.startswith("|"))}
    assert cells["all"][2:6] == ["2", "0", "-51.0 ± 1.4", "-"]
    assert cells["no-spectral-penalty"][2:6] == ["2", "1", "-60.0", "-9.0"]
    assert cells["all"][7] == "15.0, 5.0"


def test_nothing_stored_and_unknown_variants_are_refused(tmp_path: Path) -> None:
    assert_one_error(call("studies.ablation", "--report-only", "--report", tmp_path), "--report-only")
    assert_one_error(call("studies.ablation", "--variants", "no-such"), "no-such")


def test_a_study_trains_what_is_missing_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(runs: list[ScriptRun], workers: int | None, cluster: str | None) -> list[str]:
        assert cluster is None
        for run in runs:
            trained.append(str(run))
            run.folder.mkdir(parents=True)
            held_out = {key: record(-40.0)[key] for key in ("elbo", "rate", "distortion", "kl_group", "active_units")}
            summary = {key: record(-40.0)[key] for key in ("step", "images_seen", "seconds", "skipped_steps")}
            (run.folder / "summary.json").write_text(json.dumps({**summary, "num_parameters": 5, "valid": held_out}))
            (run.folder / "metrics.jsonl").write_text(
                '{"step": 1, "optim/grad_norm": 2.0}\n{"step": 2, "optim/grad_norm": 4.0}\n'
            )
        return []

    monkeypatch.setattr(jobs, "train_all", train)
    words = ["--variants", "all", "no-kl-balance", "--out", tmp_path / "runs", "--report", tmp_path / "report"]
    assert call("studies.ablation", *words, "--seeds", "1").code == 0
    assert call("studies.ablation", *words, "--seeds", "2").code == 0
    assert trained == ["all-seed0", "no-kl-balance-seed0", "all-seed1", "no-kl-balance-seed1"]
    kept = json.loads((tmp_path / "report" / "runs" / "all-seed1.json").read_text())
    assert kept["elbo"] == -40.0
    assert kept["grad_norm_median"] == 3.0
    assert "no-kl-balance" in (tmp_path / "report" / "index.md").read_text()
