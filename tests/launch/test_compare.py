"""Reports: comparable sets, what the text may claim, and many or broken runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from launch.console.figures import subplots
from launch.report import comparison, words
from launch.report.comparison import likelihood_table, training_table
from launch.report.figures import draw
from launch.report.runs import ScoredRun, read_runs
from launch.report.statistics import (
    Configuration,
    Estimate,
    comparable_sets,
    correlation,
    mean_of,
    over_images,
    over_seeds,
)
from launch.report.tables import Bullets, Figure, Heading, Table, Text, to_html, to_markdown, with_interval
from launch.results.score_run import ScoreConfig
from tests.conftest import ROOT
from tests.launch import running, toy
from tests.launch.running import assert_one_error, call

QUICK = ["--images", "40", "--elbo-images", "8", "--dims", "2", "10", "--shuffles", "2", "--resamples", "2"]


@pytest.fixture(scope="module", autouse=True)
def _toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        yield


@pytest.fixture(scope="module")
def runs(_toy: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two seeds of an NVAE and one flat VAE, scored."""
    root = tmp_path_factory.mktemp("compared")
    made = {
        "nvae0": toy.train("nvae", root / "nvae0"),
        "nvae1": toy.train("nvae", root / "nvae1", "--seed", "1"),
        "flat": toy.train("flat_vae", root / "flat"),
    }
    for run in made.values():
        result = call("score", "--run", run, *QUICK, "--untrained")
        assert result.code == 0, result.err
    return made


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures, which take most of a report's time, where only the text is tested."""
    monkeypatch.setattr(comparison, "_figures", lambda *_: ())


@pytest.fixture(scope="module")
def report(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[running.Result, Path]:
    out = tmp_path_factory.mktemp("report") / "out"
    return call("compare", "--runs", *runs.values(), "--out", out), out


def test_a_report_says_how_near_samples_come_to_real_images(report: tuple[running.Result, Path]) -> None:
    text = (report[1] / "report.md").read_text()
    assert "precision at 20 px" in text
    for name in toy.NAMES:
        assert f"{name} covered" in text


class Page(HTMLParser):
    """References of a page, and a check that its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    assert not page.open
    return page


def test_a_report_of_both_families(report: tuple[running.Result, Path], runs: dict[str, Path]) -> None:
    result, out = report
    assert result.code == 0, result.err
    assert str(out / "report.html") in result.out
    page, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    for word in (
        "ELBO",
        "MIG against dimension",
        "Where the factors are",
        "group-MIG",
        "Traversals",
        "Top groups",
        "Glossary",
    ):
        assert word in page
        assert word in markdown
    record = json.loads((out / "comparison.json").read_text())
    (one_set,) = record["sets"]
    assert sorted(len(paths) for paths in one_set["configurations"].values()) == [1, 2]  # seeds together
    assert {d["quantity"].split("_")[0] for d in record["differences"]} == {"elbo", "mig"}
    elbos = [json.loads((runs[n] / "scores.json").read_text())["held_out"]["elbo"] for n in ("nvae0", "nvae1")]
    assert record["means"]["compare1/elbo/NVAE tiny"] == pytest.approx(np.mean(elbos))
    named = set(re.findall(r"\(figures/([^)]+)\)", markdown))
    assert named == {path.name for path in (out / "figures").iterdir()}


def test_a_report_begins_with_what_was_found_and_with_pictures(report: tuple[running.Result, Path]) -> None:
    """A table of contents follows the date, commit and command, and each entry leads to its section."""
    page, markdown = (report[1] / "report.html").read_text(), (report[1] / "report.md").read_text()
    sections = re.findall(r"^### (.*)", markdown, flags=re.MULTILINE)
    assert sections[:3] == ["In short", "Pictures", "Training"]
    assert {"Differences", "Figures", "Runs"} < set(sections)
    entries = dict(re.findall(r'<a href="#([^"]+)">([^<]+)</a>', page))
    assert [title for title in entries.values() if title in sections] == sections
    for place, title in entries.items():
        assert re.search(rf'<h[23] id="{place}">{re.escape(title)}</h[23]>', page)
    assert page.index("<nav>") < page.index('id="part-1"')
    made = re.search(
        r"^Made on (\d{4}-\d\d-\d\d).* from commit .+ by: python launch/compare.py --runs ", markdown, re.MULTILINE
    )
    assert made
    assert made.start() < markdown.index("### In short")


def test_unequal_training_is_reported_before_any_difference(runs: dict[str, Path], tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    shutil.copytree(runs["flat"], longer)
    summary = json.loads((longer / "summary.json").read_text())
    summary |= {"images_seen": 10 * summary["images_seen"], "seconds": 900.0, "cpu_seconds": 600.0}
    (longer / "summary.json").write_text(json.dumps(summary))
    (compared,) = comparable_sets(read_runs([runs["nvae0"], longer], None)[0])
    first, *_ = words.summary(compared)
    for value in (
        f"{summary['images_seen']:,} for",
        "CPU minutes",
        "10.0 for",
        *(c.label for c in compared.configurations),
    ):
        assert value in first
    assert "CPU minutes" in training_table(compared).head

    config = json.loads((longer / "config.json").read_text())
    config["hardware"]["gpu"] = "H200"  # the CPU only waits for it, so the wall clock counts
    (longer / "config.json").write_text(json.dumps(config))
    (compared,) = comparable_sets(read_runs([runs["nvae0"], longer], None)[0])
    first, *_ = words.summary(compared)
    assert "CPU minutes" not in first
    assert "15.0 for" in first
    assert training_table(compared).head[6] == "minutes"
    (alone,) = comparable_sets(read_runs([runs["nvae0"], runs["nvae0"]], None)[0])
    assert not words.unequal_training(alone)


def test_a_density_has_no_bits_per_dim(runs: dict[str, Path], tmp_path: Path) -> None:
    (compared,) = comparable_sets(read_runs([runs["flat"]], None)[0])
    assert "bits/dim" in likelihood_table(compared).head
    run = edited(runs["flat"], tmp_path / "density", config__config__model__likelihood="normal")
    (compared,) = comparable_sets(read_runs([run], None)[0])
    of_density = likelihood_table(compared)
    assert "bits/dim" not in of_density.head
    assert len(of_density.head) == len(of_density.rows[0])
    assert "density" in of_density.caption


def test_a_report_has_the_interval_and_the_chance_level_of_each_score(
    report: tuple[running.Result, Path], runs: dict[str, Path]
) -> None:
    """A line for each score of each configuration's first run, and a figure."""
    markdown = (report[1] / "report.md").read_text().replace("\\", "")
    for name in ("nvae0", "flat"):
        scores = json.loads((runs[name] / "scores.json").read_text())["scores"].values()
        shown = [(result["score"], result["uncertainty"]) for result in scores if result.get("uncertainty")]
        assert {found["interval"] is None for _, found in shown} == {True, False}
        for score, found in shown:
            spread = f"(no interval; std of halves {found['halves_std']:.3f})"
            beside = "[{:.3f}, {:.3f}]".format(*found["interval"]) if found["interval"] else spread
            assert f"{score:.3f} {beside}, {found['chance']:.3f}" in markdown
    assert (report[1] / "figures" / "intervals.png").is_file()


def test_a_score_without_an_interval_shows_its_spread() -> None:
    without = {"interval": None, "halves_std": 0.0123, "chance": 0.25}
    shown = with_interval(0.5, without)
    assert "no interval" in shown
    assert "0.012" in shown
    assert shown.startswith("0.500")
    assert shown.endswith("0.250")


def test_the_page_needs_nothing_but_itself(report: tuple[running.Result, Path]) -> None:
    """No script, no request; ids that are referred to are there, once."""
    page = parsed(report[1] / "report.html")
    text = (report[1] / "report.html").read_text()
    assert "script" not in page.tags
    assert all(source.startswith(("data:", "#")) for source in page.sources), page.sources
    assert "url(http" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    for reference in re.findall(r"url\(#([^)]+)\)", text) + [s[1:] for s in page.sources if s.startswith("#")]:
        assert reference in ids


def test_tensorboard_gets_pictures_and_text_and_opens_on_those_of_the_runs(report: tuple[running.Result, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(report[1]), size_guidance={"images": 0})
    events.Reload()
    pictures = events.Tags()["images"]
    assert len(pictures) == len(list((report[1] / "figures").iterdir()))
    assert min(pictures) > "images/"  # TensorBoard sorts by name: images of a run come first
    assert events.Tags()["scalars"] == []  # each would be a card of one point
    assert events.Tags()["tensors"] == ["report/text/text_summary"]


def test_a_report_is_made_again_in_its_folder_but_in_no_other(
    report: tuple[running.Result, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert_one_error(call("compare", "--runs", runs["flat"], "--out", tmp_path), "no earlier report")
    again = call("compare", "--runs", runs["flat"], "--out", report[1], "--pictures", "0")
    assert again.code == 0, again.err
    names = [path.name for path in (report[1] / "figures").iterdir()]
    assert not [name for name in names if name.startswith("samples")]
    assert len(list(report[1].glob("events*"))) == 1


@pytest.mark.usefixtures("no_figures")
def test_a_run_without_scores_is_scored_as_the_others_were(runs: dict[str, Path], tmp_path: Path) -> None:
    bare = shutil.copytree(runs["flat"], tmp_path / "bare")
    (bare / "scores.json").unlink()
    kept = call(
        "compare", "--runs", runs["nvae0"], bare, "--out", tmp_path / "a", "--no-score-missing", "--pictures", "0"
    )
    assert kept.code == 0
    assert "no scores.json" in kept.err
    done = call("compare", "--runs", runs["nvae0"], bare, "--out", tmp_path / "b", "--pictures", "0")
    assert done.code == 0, done.err
    one, other = (json.loads((run / "scores.json").read_text()) for run in (runs["nvae0"], bare))
    assert one["protocol"] == other["protocol"]
    assert len(json.loads((tmp_path / "b" / "comparison.json").read_text())["sets"]) == 1


@pytest.mark.usefixtures("no_figures")
def test_scores_of_an_older_checkpoint_are_made_again(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["flat"], tmp_path / "run")
    record = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps(record | {"checkpoint_sha256": "0" * 64}))
    done = call("compare", "--runs", run, "--out", tmp_path / "out", "--pictures", "0")
    assert done.code == 0, done.err
    assert json.loads((run / "scores.json").read_text())["checkpoint_sha256"] == record["checkpoint_sha256"]


def damage(run: Path, name: str) -> None:
    record = json.loads((run / "scores.json").read_text())
    if name == "config":
        (run / "config.json").write_text("{")
    elif name == "json":
        (run / "scores.json").write_text("[1, 2")
    elif name == "list":
        (run / "scores.json").write_text("[]")
    elif name == "keys":
        del record["protocol"]
        (run / "scores.json").write_text(json.dumps(record))
    elif name == "interval":
        record["scores"]["mig"]["uncertainty"]["interval"] = [0.1]
        (run / "scores.json").write_text(json.dumps(record))
    elif name == "arrays":
        (run / "scores.npz").write_bytes(b"PK" + bytes(50))
    else:
        shutil.rmtree(run)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name", ["config", "json", "list", "keys", "interval", "arrays", "folder"])
def test_a_broken_run_is_left_out_with_a_reason(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(runs["nvae1"], tmp_path / "broken")
    damage(broken, name)
    result = call(
        "compare", "--runs", runs["nvae0"], broken, runs["flat"],
        *("--out", tmp_path / "out", "--no-score-missing", "--pictures", "0"),
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "left out" in result.err
    assert "broken" in result.err
    assert "broken" in (tmp_path / "out" / "report.md").read_text().replace("\\", "")
    assert len(json.loads((tmp_path / "out" / "comparison.json").read_text())["skipped"]) == 1


def test_no_usable_run_is_an_error(tmp_path: Path) -> None:
    result = call("compare", "--runs", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert result.code == 2
    assert "error: none of 2 runs can be compared" in result.err
    assert not (tmp_path / "out").exists()
    assert_one_error(call("compare", "--out", tmp_path / "out"), "--runs")


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A run folder without weights, its records changed: keys name a file and a path in it."""
    target.mkdir(parents=True)
    for name in ("config.json", "scores.json", "summary.json", "scores.npz"):
        shutil.copy(source / name, target / name)
    for key, value in changes.items():
        file, *path = key.split("__")
        record = json.loads((target / f"{file}.json").read_text())
        place = record
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        (target / f"{file}.json").write_text(json.dumps(record))
    return target


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"config__data__recipe": {"name": "toy", "source": "official"}, "config__data__name": "toy (official)"},
            "data",
        ),
        ({"config__spec__num_bits": 5}, "5 bit"),
        ({"config__config__model__likelihood": "normal"}, "likelihood"),
        ({"scores__protocol__seed": 7}, "seed 7"),
        ({"scores__data": {"name": "other", "recipe": {"name": "other"}}}, "scored on other"),
        ({"scores__data__recipe": {"name": "toy", "sha256": "of other images"}}, "recipe"),
        ({"scores__weights": "raw"}, "raw weights"),
        (
            {"config__config__model__likelihood": "mixture", "config__config__model__likelihood_edges": "legacy"},
            "legacy",
        ),
    ],
)
def test_runs_that_do_not_compare_stand_apart_and_are_named(
    changes: dict[str, Any], named: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    other = edited(runs["nvae1"], tmp_path / "other", **changes)
    result = call("compare", "--runs", runs["nvae0"], other, "--out", tmp_path / "out", "--pictures", "0")
    assert result.code == 0, result.err
    assert "not comparable" in result.err
    assert named in result.err
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(record["sets"]) == 2
    assert record["differences"] == []  # nothing is subtracted across sets
    assert "Set 2 differs from set 1" in (tmp_path / "out" / "report.md").read_text()


def test_two_hundred_runs_stay_readable(runs: dict[str, Path], tmp_path: Path) -> None:
    """40 configurations of 5 seeds."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(200):
        source = runs["nvae0"] if i % 2 else runs["flat"]
        changes = {
            "config__config__run__seed": i // 40,
            "config__config__optim__lr": 1e-3 * (1 + i % 40),
            "scores__held_out__elbo": -50 - (i % 40) + float(rng.normal()),
        }
        paths.append(edited(source, tmp_path / f"run{i}", **changes))
    result = call("compare", "--runs", *paths, "--out", tmp_path / "out", "--pictures", "0")
    assert result.code == 0, result.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "200 runs of 40 configurations" in page
    assert "20 more rows" in page  # folded away
    assert len(page) < 4e6
    assert len(list((tmp_path / "out" / "figures").iterdir())) <= 11  # 2 of each of 4 heat maps, and 3 of all
    assert len(result.out.splitlines()) < 30
    parsed(tmp_path / "out" / "report.html")


# --- Intervals and sentences ----------------------------------------------------------------------------------------


def test_an_interval_over_seeds_is_welchs() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(1.0, 2.0, 4), rng.normal(0.0, 0.5, 7)
    found = over_seeds(one, other)
    assert found is not None
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert found.half_width is not None
    assert found.mean - found.half_width == pytest.approx(expected.low)
    assert found.mean + found.half_width == pytest.approx(expected.high)


def test_p_values_are_those_of_scipys_tests() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(1.0, 1.0, 4), rng.normal(0.0, 3.0, 5)
    found, alone = over_seeds(one, other), mean_of(one)
    assert found is not None
    assert found.p_value == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)
    assert alone.p_value == pytest.approx(stats.ttest_1samp(one, 0.0).pvalue)
    assert mean_of([2.0, 2.0]).p_value == 0.0


def test_a_report_says_what_remains_after_holms_correction() -> None:
    """0.02 and 0.03 exclude 0 alone, but of four comparisons only those below 0.05 / 4 and 0.05 / 3 remain."""
    made = [(name, Estimate(2.0, 1.0, p_value=p)) for name, p in (("a", 0.01), ("b", 0.012), ("c", 0.03), ("d", 0.5))]
    (said,) = words.corrected(made)
    assert "4 of these differences" in said
    assert said.endswith("2 differ: a; b.")
    (said,) = words.corrected(
        [*made[1:], ("e", Estimate(1.0, None)), ("f", None), ("g", Estimate(1.0, 2.0, p_value=0.9))]
    )
    assert said.endswith("for 4 comparisons, 1 differs: b.")
    (said,) = words.corrected(made[2:])
    assert said.endswith("none of them differs.")
    assert words.corrected(made[:1]) == []


def test_a_correlation_has_fishers_interval() -> None:
    """The interval by hand: 1.96 standard errors 1 / sqrt(n - 3) of the inverse hyperbolic tangent."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=20)
    y = 0.5 * x + rng.normal(size=20)
    r, low, high = correlation(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    width = stats.norm.ppf(0.975) / np.sqrt(17)
    assert (low, high) == pytest.approx((np.tanh(np.arctanh(r) - width), np.tanh(np.arctanh(r) + width)))


def test_seeds_that_agree_in_all_digits_have_no_interval(runs: dict[str, Path], tmp_path: Path) -> None:
    """Their variation is not known: an interval of no width would claim any difference."""
    found = over_seeds([1.0, 1.0], [0.5, 0.5, 0.5])
    assert found == Estimate(0.5, None, "seeds", (2, 3), 0.0, None)
    assert "agree in all digits" in words.verdict(found)
    paths = [edited(runs[n], tmp_path / n, scores__held_out__elbo=-9.0) for n in ("nvae0", "nvae1")]
    paths += [edited(runs["flat"], tmp_path / str(s), config__config__run__seed=s) for s in (0, 1)]
    (compared,) = comparable_sets(read_runs(paths, None)[0])
    ((_, elbo, _),) = compared.differences
    assert elbo is not None
    assert (elbo.half_width, elbo.over) == (None, "seeds")  # and not one over the images of the first seeds


def test_intervals_cover_as_they_say() -> None:
    """With three seeds each and no difference, about one in twenty excludes zero."""
    rng = np.random.default_rng(0)
    false = sum(
        bool((d := over_seeds(rng.normal(size=3), rng.normal(size=3))) and d.excludes_zero) for _ in range(2000)
    )
    assert 0.02 < false / 2000 < 0.07


def test_a_single_run_has_no_interval_over_seeds() -> None:
    found = over_seeds(np.array([1.0]), np.array([0.0, 0.1]))
    assert found is not None
    assert found.half_width is None
    assert not found.excludes_zero
    assert "cannot be separated" in words.verdict(found)
    assert over_seeds(np.array([]), np.array([1.0])) is None


def test_images_are_paired_by_row(runs: dict[str, Path]) -> None:
    (one, other), skipped = read_runs([runs["nvae0"], runs["flat"]], None)
    assert not skipped
    found = over_images(one.elbo, other.elbo)
    assert found is not None
    paired = np.array([one.elbo[i] - other.elbo[i] for i in one.elbo])
    assert found.mean == pytest.approx(paired.mean())
    expected = stats.ttest_1samp(paired, 0.0).confidence_interval(0.95)
    assert found.mean - (found.half_width or 0.0) == pytest.approx(expected.low)
    assert found.over == "images"


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Estimate(1.0, 2.0), "within noise"),
        (Estimate(-3.0, 2.0), "differs: the 95 % interval over seeds excludes 0"),
        (Estimate(3.0, 2.0, "images"), "nothing about other seeds"),
        (Estimate(3.0, None), "cannot be separated"),
        (None, "not measured"),
    ],
)
def test_the_text_claims_what_the_interval_allows(difference: Estimate | None, said: str) -> None:
    assert said in words.verdict(difference)


def test_seeds_make_one_configuration_and_settings_name_it(runs: dict[str, Path], tmp_path: Path) -> None:
    faster = edited(runs["nvae0"], tmp_path / "faster", config__config__optim__lr=0.5)
    read, _ = read_runs([runs["nvae0"], runs["nvae1"], faster], None)
    (compared,) = comparable_sets(read)
    assert [(c.label, len(c.runs)) for c in compared.configurations] == [
        ("NVAE tiny (lr 0.01)", 2),
        ("NVAE tiny (lr 0.5)", 1),
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config__config__run__batch_size": 16, "summary__images_seen": 64, "summary__step": 4}, "batch 16"),
        ({"config__config__run__init_from": "runs/first"}, "init from runs/first"),
    ],
)
def test_what_a_resumed_run_may_change_still_distinguishes_configurations(
    changes: dict[str, Any], named: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    other = edited(runs["nvae1"], tmp_path / "other", **changes)
    (compared,) = comparable_sets(read_runs([runs["nvae0"], other], None)[0])
    assert [len(c.runs) for c in compared.configurations] == [1, 1]
    assert named in compared.configurations[1].label


def test_a_batch_is_the_same_however_it_is_divided(runs: dict[str, Path], tmp_path: Path) -> None:
    """Two processes that accumulate over two batches each, against one process."""
    summary = json.loads((runs["nvae1"] / "summary.json").read_text())
    batch = summary["images_seen"] // summary["step"]
    changes = {"config__config__run__batch_size": batch // 4, "config__config__optim__accumulation": 2}
    other = edited(runs["nvae1"], tmp_path / "other", **changes)
    (compared,) = comparable_sets(read_runs([runs["nvae0"], other], None)[0])
    assert [len(c.runs) for c in compared.configurations] == [2]


def test_an_older_record_of_the_same_configuration_counts_as_its_seed(runs: dict[str, Path], tmp_path: Path) -> None:
    """It lacks a setting that was added later, with a default that reproduces it, and a digest of its rows."""
    older = edited(runs["nvae1"], tmp_path / "older")
    config = json.loads((older / "config.json").read_text())
    del config["config"]["data"]["split_by"], config["config"]["model"]["patch_size"]
    (older / "config.json").write_text(json.dumps(config))
    recipe = json.loads((older / "scores.json").read_text())["data"]["recipe"] | {"rows_sha256": "not recorded before"}
    newer = edited(runs["nvae0"], tmp_path / "newer", scores__data__recipe=recipe)
    (compared,) = comparable_sets(read_runs([newer, older], None)[0])
    assert [len(c.runs) for c in compared.configurations] == [2]


def test_an_unfinished_run_of_two_processes_counts_as_a_seed(runs: dict[str, Path], tmp_path: Path) -> None:
    summary = json.loads((runs["nvae1"] / "summary.json").read_text())
    batch = summary["images_seen"] // summary["step"]
    killed = edited(
        runs["nvae1"], tmp_path / "killed", config__config__run__batch_size=batch // 2, config__global_batch=batch
    )
    (killed / "summary.json").unlink()
    (compared,) = comparable_sets(read_runs([runs["nvae0"], killed], None)[0])
    assert [len(c.runs) for c in compared.configurations] == [2]


def test_of_two_runs_of_a_seed_the_finished_one_counts(runs: dict[str, Path], tmp_path: Path) -> None:
    killed = edited(runs["nvae0"], tmp_path / "a-killed", scores__step=10**6)
    (killed / "summary.json").unlink()
    found, (reason,) = read_runs([killed, runs["nvae0"]], None)
    assert [run.path for run in found] == [runs["nvae0"]]
    assert reason.startswith(f"{killed}: the same configuration and seed as {runs['nvae0']}")


@pytest.mark.usefixtures("no_figures")
def test_a_run_given_twice_is_one_seed(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = edited(runs["nvae0"], tmp_path / "copy")
    monkeypatch.chdir(runs["nvae0"].parent)
    given = [runs["nvae0"], "nvae0", copy, runs["flat"]]
    result = call("compare", "--runs", *given, "--out", tmp_path / "out", "--pictures", "0")
    assert result.code == 0, result.err
    assert "the same configuration and seed" in result.err
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [len(paths) for paths in record["sets"][0]["configurations"].values()] == [1, 1]


def test_runs_that_did_not_end_are_named_before_any_difference(runs: dict[str, Path], tmp_path: Path) -> None:
    short = edited(runs["nvae1"], tmp_path / "short", scores__step=3)
    (short / "summary.json").unlink()
    (compared,) = comparable_sets(read_runs([runs["flat"], runs["nvae0"], short], None)[0])
    assert "1 of 3 runs did not reach their end (no summary.json): short (step 3)" in words.summary(compared)[0]
    (ended,) = comparable_sets(read_runs([runs["flat"], runs["nvae0"]], None)[0])
    assert not words.unfinished(ended)


@pytest.mark.parametrize(("num", "related"), [(7, False), (8, True)])
def test_a_correlation_is_over_configurations(num: int, related: bool, runs: dict[str, Path], tmp_path: Path) -> None:
    """Seeds of a configuration are no independent evidence, so eight configurations are needed, however many runs."""
    paths, elbos, migs = [], [], []
    source = json.loads((runs["flat"] / "scores.json").read_text())
    rows = source["scores"]["reduced"]["rows"]
    chosen = next(i for i, row in enumerate(rows) if row["kind"] == "moments" and row["dim"] == 10)
    for i in range(num):
        for seed in (0, 1):
            path = edited(
                runs["flat"],
                tmp_path / f"{i}-{seed}",
                config__config__run__seed=seed,
                config__config__optim__lr=1e-3 * (1 + i),
                scores__held_out__elbo=-50.0 - i * i + seed,
            )
            record = json.loads((path / "scores.json").read_text())
            record["scores"]["reduced"]["rows"][chosen] |= {"mig": 0.1 + 0.01 * i - 0.2 * seed, "num_latents": 10}
            (path / "scores.json").write_text(json.dumps(record))
            paths.append(path)
        elbos.append(-49.5 - i * i)
        migs.append(0.01 * i)
    (compared,) = comparable_sets(read_runs(paths, None)[0])
    said = words.scatter(compared)
    assert ("too few configurations" in said) != related
    if related:
        assert (
            f"means of 8 configurations, the correlation of ELBO and MIG is {np.corrcoef(elbos, migs)[0, 1]:+.2f}"
            in said
        )


def test_blocks_escape_what_users_name() -> None:
    def build() -> Any:
        figure, axes = subplots(size=(3.0, 2.0))
        axes.plot([0, 1], label="a<b>&c")
        axes.legend()
        return figure

    bad = "<script>x</script> | *a*"
    blocks = [
        Heading(bad), Text(bad), Bullets([bad]), Table(["n", bad], [[bad, "1"]] * 30, bad),
        Figure("f", '"quoted" <i>', draw(build, "f", "a title"), bad),
    ]  # fmt: skip
    page, markdown = to_html(bad, blocks), to_markdown(blocks)
    assert "<script>" not in page
    assert "10 more rows" in page
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    reader = Page()
    reader.feed(page)
    assert not reader.open


def test_how_runs_are_scored_follows_the_first_that_has_scores(runs: dict[str, Path], tmp_path: Path) -> None:
    from launch.compare import CompareConfig, _scoring

    config = CompareConfig(runs=(tmp_path, runs["flat"]), out=tmp_path / "out")
    chosen = _scoring(config)
    assert isinstance(chosen, ScoreConfig)
    assert (chosen.images, chosen.split) == (40, "test")


def test_a_record_that_no_script_wrote_does_not_say_how_runs_are_scored(tmp_path: Path) -> None:
    from launch.compare import CompareConfig, _scoring

    good = ROOT / "tests" / "fixtures" / "runs" / "flat"
    record = json.loads((good / "scores.json").read_text())
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "scores.json").write_text(json.dumps(record | {"protocol": record["protocol"] | {"images": -1}}))
    assert _scoring(CompareConfig(runs=(bad, good), out=tmp_path / "out")).images == record["protocol"]["images"]


def test_of_many_factors_the_best_known_are_named(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The text names the eight of forty attributes that are encoded best, and summarises the rest."""
    (one,), _ = read_runs([runs["nvae0"]], None)
    (configuration,) = comparable_sets([one])[0].configurations
    share = np.zeros((2, 40))
    share[0, 30:38] = np.linspace(0.9, 0.2, 8)
    share[1, 5] = 0.07
    names = [f"factor{i}" for i in range(40)]
    monkeypatch.setattr(Configuration, "shares", lambda configuration, key: share)
    monkeypatch.setattr(ScoredRun, "factor_names", names)
    known, gained = words.heat_map(configuration), words.gains(configuration)
    positions = [known.lower().index(f"factor{i} is encoded mainly") for i in range(30, 38)]
    assert positions == sorted(positions)
    assert "encodes more than 7% of any of the other 32 factors" in known
    assert "factor30 90%" in gained
    assert "the other 32 factors at most 7%" in gained
    assert "factor5" not in known + gained


def test_labels_name_few_settings_and_tell_all_configurations_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    """Five settings that change together are one difference; two that don't are two."""
    paths = []
    for number, (depth, lr) in enumerate([(1, 0.01), (2, 0.01), (2, 0.02), (3, 0.02)]):
        path = shutil.copytree(runs["nvae0"], tmp_path / str(number), ignore=shutil.ignore_patterns("checkpoints"))
        record = json.loads((path / "config.json").read_text())
        model = record["config"]["model"]
        model["groups_per_scale"] = [depth, depth]
        for name in ("cells_per_group_enc", "cells_per_group_dec", "preprocess_cells", "postprocess_cells"):
            model[name] = depth
        record["config"]["optim"]["lr"] = lr
        (path / "config.json").write_text(json.dumps(record))
        paths.append(path)
    found, skipped = read_runs(paths, None)
    assert not skipped
    labels = [run.label for run in found]
    assert len(set(labels)) == 4
    assert all(label.count(";") == 1 and "lr " in label for label in labels), labels


def test_a_label_gives_settings_in_words(runs: dict[str, Path], tmp_path: Path) -> None:
    paths = []
    for groups in ([2, 1], [1, 1]):
        path = tmp_path / "-".join(map(str, groups))
        shutil.copytree(runs["nvae0"], path, ignore=shutil.ignore_patterns("checkpoints"))
        record = json.loads((path / "config.json").read_text())
        record["config"]["model"]["groups_per_scale"] = groups
        (path / "config.json").write_text(json.dumps(record))
        paths.append(path)
    found, _ = read_runs(paths, None)
    assert [run.label.partition(" (")[2] for run in found] == ["groups per scale 2, 1)", "groups per scale 1, 1)"]
