"""The hierarchy and the scaling study: the family's sizes, fits with known answers, and both from training to report."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import datasets
from launch.console.flags import parse
from launch.families import nvae
from launch.report.statistics import Estimate, mean_of, seeds_needed
from launch.studies import family, hierarchy, scaling, scaling_fit, scaling_report, study
from launch.studies.scaling_fit import Measured, Point
from launch.training import jobs
from nvae import NVAE
from tests.launch import running

SPEC = datasets.ImageSpec(channels=1, height=64, width=64, num_bits=1)


# --- The family -----------------------------------------------------------------------------------------------------


def built(member: family.Member) -> NVAE:
    """The model that a member's flags make, on the meta device."""
    typed = list(member.flags)
    config = parse(nvae.NVAETrainConfig, nvae.FAMILY.preset("tiny"), typed, prog="", description="")
    with torch.device("meta"):
        return NVAE(config.model, SPEC)


@pytest.mark.parametrize("width", [4, 6, 16])
def test_depth_changes_neither_parameters_nor_latents(width: int) -> None:
    models = [built(family.deep(depth, width)) for depth in (2, 4, 8)]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert max(sizes) < 1.1 * min(sizes)
    assert {sum(math.prod(shape) for shape in model.group_shapes) for model in models} == {16 * 16 * 16}
    assert [len(model.group_shapes) for model in models] == [2, 4, 8]


def test_scales_have_four_groups_each() -> None:
    for num_scales in (1, 2, 3):
        shapes = built(family.scaled(num_scales, 4)).group_shapes
        assert len(shapes) == 4
        assert len(set(shapes)) == num_scales
    assert family.scaled(1, 4) == family.deep(4, 4)


@pytest.mark.parametrize("depth", [0, 1, 3, 16])
def test_depths_that_share_no_cells_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="choose 2, 4 or 8"):
        family.deep(depth, 4)


def test_nothing_is_trained_twice() -> None:
    chosen = scaling.ScalingConfig(out=Path("out"), depths=(4,), widths=(4,), scales=(1,), seeds=2)
    names = ["flat-vae-seed0", "nvae-groups4-width4-seed0", "flat-vae-seed1", "nvae-groups4-width4-seed1"]
    assert [str(run.folder) for run in chosen.runs("dsprites")] == [f"out/dsprites/{name}" for name in names]


# --- Fits -----------------------------------------------------------------------------------------------------------


def run(seed: int = 0, **changed: Any) -> Measured:
    """A measured run with made-up figures."""
    plain = Measured(
        name="m",
        seed=seed,
        depth=2,
        width=4,
        num_scales=1,
        num_parameters=1000,
        gflop_per_image=0.5,
        memory_mib=1.0,
        images_per_s=10.0,
        points=(Point(100, -50.0, 2.0),),
        elbo=-50.0,
        bits_per_dim=2.0,
        mig=0.1,
        group_mig=0.2,
    )
    return replace(plain, **changed)


def test_estimate_is_students_interval() -> None:
    values = [1.0, 2.0, 4.0]
    found = mean_of(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))  # type: ignore[operator]
    assert not found.excludes_zero
    assert mean_of([1.0]) == Estimate(1.0, None, "seeds", (1,))


@pytest.mark.parametrize(("effect", "each"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_seeds_needed_are_those_of_cohens_table(effect: float, each: int) -> None:
    """Cohen 1988, table 2.4.1: two-sided at 5 %, power .80."""
    assert seeds_needed(-2.0 * effect, 2.0) == pytest.approx(each, abs=1)
    assert seeds_needed(0.01, 1.0) is None
    assert seeds_needed(1.0, 0.0) is None


def test_power_law_finds_exponent_scale_and_range() -> None:
    runs = [
        run(seed, name=str(n), num_parameters=n, bits_per_dim=(3.0 + 0.1 * seed) * n**-0.2)
        for seed in range(3)
        for n in (100, 1000, 5000)
    ]
    law = scaling_fit.power_law(runs, scaling_fit.by_parameters)
    assert law is not None
    assert law.exponents == pytest.approx([0.2] * 3)
    assert law.exponent.half_width == pytest.approx(0.0, abs=1e-9)
    median, interval = law.at(1e6)
    assert interval is not None
    low, high = interval
    assert median == pytest.approx(math.exp(np.mean(np.log([3.0, 3.1, 3.2]))) * 1e6**-0.2)
    assert low < 3.0 * 1e6**-0.2
    assert high > 3.2 * 1e6**-0.2
    assert law.decades_beyond(5e6) == pytest.approx(3.0)
    alone = scaling_fit.power_law(runs[:3], scaling_fit.by_parameters)
    assert alone is not None
    assert alone.at(1e6) == (pytest.approx(3.0 * 1e6**-0.2), None)


def test_extrapolated_interval_grows_with_distance() -> None:
    runs = [
        run(seed, name=str(n), num_parameters=n, bits_per_dim=3.0 * n ** -(0.2 + 0.02 * seed))
        for seed in range(3)
        for n in (100, 1000)
    ]
    law = scaling_fit.power_law(runs, scaling_fit.by_parameters)
    assert law is not None
    intervals = [law.at(x)[1] for x in (1e3, 1e5, 1e7)]
    widths = [math.log(high / low) for low, high in filter(None, intervals)]
    assert widths[0] < widths[1] < widths[2]


def test_compute_is_counted_at_every_evaluation() -> None:
    points = (Point(100, -50.0, 2.0), Point(200, -40.0, 1.5))
    assert scaling_fit.by_compute(run(points=points)) == [(50.0, 2.0), (100.0, 1.5)]
    assert scaling_fit.by_images(run(points=points)) == [(100, 2.0), (200, 1.5)]


def test_depth_slope_ignores_what_width_does() -> None:
    def elbo(depth: int, width: int) -> float:
        return -100.0 + 3.0 * math.log2(depth) + 7.0 * width

    runs = [
        run(seed, name=f"{d} {w}", depth=d, width=w, elbo=elbo(d, w) + seed)
        for seed in range(3)
        for w, depths in ((4, (2, 4, 8)), (6, (2, 8)))
        for d in depths
    ]
    found = scaling_fit.slope_per_doubling(runs, lambda r: r.depth)
    assert found is not None
    assert found.mean == pytest.approx(3.0)
    assert found.counts == (3,)


def test_half_done_seeds_and_single_sizes_are_left_out() -> None:
    runs = [run(0, name="a", depth=2), run(0, name="b", depth=4, elbo=-40.0), run(1, name="a", depth=2)]
    assert list(scaling_fit.by_seed(runs)) == [0]
    found = scaling_fit.slope_per_doubling(runs, lambda r: r.depth)
    assert found is not None
    assert (found.mean, found.half_width) == (10.0, None)
    assert scaling_fit.slope_per_doubling(runs[:1], lambda r: r.depth) is None
    assert scaling_fit.power_law(runs[:1], scaling_fit.by_parameters) is None
    assert scaling_fit.difference(runs, "b", "a") == Estimate(10.0, None, "seeds", (1,))
    assert scaling_fit.difference(runs, "b", "c") is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Estimate(1.0, 0.5, "seeds", (3,)), "excludes 0"),
        (Estimate(-1.0, 0.5, "seeds", (3,)), "excludes 0"),
        (Estimate(1.0, 1.5, "seeds", (3,)), "contains 0"),
        (Estimate(1.0, None, "seeds", (1,)), "nothing is claimed"),
    ],
)
def test_words_follow_the_interval(found: Estimate, said: str) -> None:
    assert said in scaling_report.verdict(found)


# --- From training to report ----------------------------------------------------------------------------------------


def in_this_process(self: jobs.Devices, command: list[str], log: Path) -> int:
    """Run a script without loading torch again and on few images; the study's own numbers would take ten minutes."""
    few = ["--samples", "2", "--elbo-images", "16", "--resamples", "2", "--shuffles", "2"]
    return running.do_job(command, log, *(few if Path(command[1]).stem == "score" else ["--eval-images", "16", *FINAL]))


SHORT = ["--datasets", "dsprites", "--seeds", "1", "--nvae-steps", "4", "--flat-steps", "4", "--images", "200"]
SHORT += ["--workers", "1"]
FINAL = ["--final-eval-images", "32", "--eval-every", "2", "--figure-images", "1"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scaling study of three runs of four steps."""
    root = tmp_path_factory.mktemp("scaling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.Devices, "run", in_this_process)
        result = running.call("studies.scaling", *where(root), "--depths", "2", "4", "--widths", "2", "--scales", "1")
    assert result.code == 0, result.err
    return root


def where(root: Path) -> list[str]:
    own = ["--out", str(root / "runs"), "--store", str(root / "store"), "--report", str(root / "report")]
    longer = ["--longer", str(root / "store")]  # each run beside itself
    return [*SHORT, *own, *longer, "--cache-dir", str(root / "cache")]


def test_scaling_study_reports_from_stored_scores(studied: Path) -> None:
    text = (studied / "report" / "index.md").read_text()
    assert "Depth" in text
    assert "one seed: no interval" in text
    assert "**Longer runs**" in text
    for name in ("flat-vae", "nvae-groups2-width2", "nvae-groups4-width2"):
        assert f"| {name} " in text
    assert {p.stem for p in (studied / "report").glob("*.png")} >= {
        "dsprites-depth",
        "dsprites-compute",
        "dsprites-cost",
    }


def test_stored_runs_name_no_place(studied: Path) -> None:
    stored = list((studied / "store" / "dsprites").iterdir())
    assert len(stored) == 3
    for path in stored:
        assert {p.name for p in path.iterdir()} == {"config.json", "metrics.jsonl", "scores.json", "summary.json"}
        assert not any(str(studied) in p.read_text() for p in path.iterdir())


def test_measured_figures_are_those_of_the_run(studied: Path) -> None:
    path = studied / "store" / "dsprites" / "nvae-groups4-width2-seed0"
    found = scaling_fit.measured(path)
    summary = json.loads((path / "summary.json").read_text())
    assert (found.depth, found.width, found.num_scales, found.is_flat) == (4, 2, 1, False)
    assert found.points[-1].images == summary["images_seen"] == 64
    assert found.points[-1].elbo == pytest.approx(summary["valid"]["elbo"])
    assert found.num_parameters == summary["num_parameters"]
    assert found.elbo == json.loads((path / "scores.json").read_text())["held_out"]["elbo"]
    assert scaling_fit.measured(path.with_name("flat-vae-seed0")).is_flat


def test_finished_study_only_reports(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> int:
        raise AssertionError("trained or scored again")

    monkeypatch.setattr(jobs.Devices, "run", never)
    own = ["--depths", "2", "4", "--widths", "2", "--scales", "1"]
    before = (studied / "report" / "index.md").read_text()
    assert running.call("studies.scaling", *where(studied), *own).code == 0
    assert running.call("studies.scaling", *where(studied), *own, "--report-only").code == 0
    assert (studied / "report" / "index.md").read_text() == before


def test_runs_stored_by_another_machine_are_not_trained_again(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, begun = Path(shutil.copytree(studied / "store", tmp_path / "store")), []

    def begin(self: jobs.Devices, command: list[str], log: Path) -> int:
        begun.append(log.stem)
        return 1

    monkeypatch.setattr(jobs.Devices, "run", begin)
    monkeypatch.setattr(jobs, "fault", lambda code, log: "stopped" if code else None)
    own = [
        "--depths",
        "2",
        "4",
        "--widths",
        "2",
        "--scales",
        "1",
        "--out",
        str(tmp_path / "runs"),
        "--store",
        str(store),
    ]
    assert running.call("studies.scaling", *where(studied), *own).code == 0
    assert begun == []
    shutil.rmtree(store / "dsprites" / "flat-vae-seed0")
    longer = store / "dsprites" / "nvae-groups2-width2-seed0" / "summary.json"
    longer.write_text(json.dumps({**json.loads(longer.read_text()), "step": 5}))
    running.assert_one_error(running.call("studies.scaling", *where(studied), *own), "2 runs failed")
    assert begun == ["flat-vae-seed0", "nvae-groups2-width2-seed0"]
    begun.clear()
    result = running.call("studies.scaling", *where(studied), *own, "--images", "100")  # other images, so other scores
    running.assert_one_error(result, "3 runs failed")


def test_other_length_in_one_folder_is_refused(studied: Path) -> None:
    result = running.call("studies.scaling", *where(studied), "--nvae-steps", "5")
    running.assert_one_error(result, "nvae_steps 4", "--out")


def test_hierarchy_report_of_stored_runs(studied: Path, tmp_path: Path) -> None:
    """Two seeds of a hierarchy, one of a flat VAE, under the names of that study."""
    names = {
        "flat-vae-seed0": "flat-vae",
        "nvae-groups2-width2-seed0": "nvae-scales1",
        "nvae-groups4-width2-seed0": "nvae-scales2",
    }
    source, store = studied / "store" / "dsprites", tmp_path / "store"
    for name, of_study in names.items():
        shutil.copytree(source / name, store / "dsprites" / f"{of_study}-seed0")
        renumber(Path(shutil.copytree(source / name, store / "dsprites" / f"{of_study}-seed1")))
    only = ["--datasets", "dsprites", "--seeds", "2", "--store", str(store), "--report", str(tmp_path), "--report-only"]
    result = running.call("studies.hierarchy", *only)
    assert result.code == 0, result.err
    text = (tmp_path / "index.md").read_text()
    assert "minus flat VAE" in text
    assert "encodes the factors" in text
    assert (tmp_path / "dsprites" / "report.md").exists()
    assert (tmp_path / "dsprites" / "curves.png").exists()
    assert not list((tmp_path / "dsprites").glob("events.*"))


@pytest.mark.parametrize("study", ["hierarchy", "scaling"])
def test_stored_runs_that_cannot_be_compared_are_named(study: str, studied: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(studied / "store", tmp_path / "store"))
    source = store / "dsprites" / "nvae-groups2-width2-seed0"
    if study == "hierarchy":
        for name in ("flat-vae-seed0", "nvae-groups2-width2-seed0"):
            shutil.copytree(store / "dsprites" / name, store / "dsprites" / f"{name[:4]}-scales1-seed0")
        shutil.copytree(source, store / "dsprites" / "nvae-scales1-seed0", dirs_exist_ok=True)
        source = store / "dsprites" / "nvae-scales1-seed0"
    scores = json.loads((source / "scores.json").read_text())
    scores["num_images"] = 150
    (source / "scores.json").write_text(json.dumps(scores))
    result = running.call(f"studies.{study}", *where_stored(tmp_path, store, study))
    running.assert_one_error(result, "cannot be compared", "150 test images")


def where_stored(root: Path, store: Path, study: str) -> list[str]:
    longer = ["--longer", str(store), "--depths", "2", "4", "--widths", "2", "--scales", "1"]
    only = [
        "--datasets",
        "dsprites",
        "--seeds",
        "1",
        "--store",
        str(store),
        "--report",
        str(root / "report"),
        "--report-only",
    ]
    return [*only, *(longer if study == "scaling" else [])]


def renumber(folder: Path) -> None:
    """Change a stored run to seed 1, and lower its ELBO by one nat."""
    config = json.loads((folder / "config.json").read_text())
    config["config"]["run"]["seed"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    scores = json.loads((folder / "scores.json").read_text())
    scores["held_out"]["elbo"] -= 1.0
    (folder / "scores.json").write_text(json.dumps(scores))


@pytest.mark.parametrize("data", ["dsprites", "celeba"])
def test_hierarchies_of_the_study_differ_in_their_scales_alone(data: family.DataName) -> None:
    members = hierarchy.HierarchyConfig().members(data)
    assert members[0].name == "flat-vae"
    shapes = {}
    for member in members:
        if member.script == "train_nvae":
            typed = list(member.flags)
            config = parse(nvae.NVAETrainConfig, nvae.FAMILY.preset(typed[1]), typed, prog="", description="")
            with torch.device("meta"):
                shapes[member.name] = NVAE(config.model, SPEC).group_shapes
    assert {name: len({shape[1:] for shape in of}) for name, of in shapes.items()} == {
        f"nvae-scales{i}": i for i in (1, 2, 3)
    }
    assert {len(of) for of in shapes.values()} == {4}
    assert len({max(of, key=lambda shape: shape[1]) for of in shapes.values()}) == 1


def test_models_that_take_longer_take_fewer_steps() -> None:
    runs = hierarchy.HierarchyConfig(minutes=2.0, seeds=1).runs("dsprites")
    steps = {run.folder.name: run.max_steps for run in runs}
    assert steps["nvae-scales1-seed0"] == 750
    assert steps["nvae-scales3-seed0"] < steps["nvae-scales2-seed0"] < 750
    assert steps["flat-vae-seed0"] == steps["flat-tc4-seed0"] == 880


@pytest.mark.parametrize(
    ("study", "flags", "said"),
    [
        ("scaling", ["--depths", "3"], "choose 2, 4 or 8"),
        ("scaling", ["--scales", "4"], "choose 1, 2 or 3"),
        ("scaling", ["--seeds", "0"], "--seeds 0"),
        ("scaling", ["--nvae-steps", "0"], "--nvae-steps 0"),
        ("hierarchy", ["--minutes", "0"], "--minutes 0"),
        ("hierarchy", ["--report-only", "--store", "nowhere"], "no scores are stored"),
    ],
)
def test_studies_refuse_before_they_train(study: str, flags: list[str], said: str) -> None:
    running.assert_one_error(running.call(f"studies.{study}", *flags), said)


def test_stored_numbers_are_short_and_nothing_else_changes() -> None:
    content = {"a": [1 / 3, 2, True, None, "1.23456789"], "b": {"c": -52818.0312345, "d": float("inf")}}
    short = study._shortened(content)
    assert short == {"a": [0.3333333, 2, True, None, "1.23456789"], "b": {"c": -52818.03, "d": float("inf")}}
    assert isinstance(short["a"][2], bool)
    assert np.isnan(study._shortened(float("nan")))
