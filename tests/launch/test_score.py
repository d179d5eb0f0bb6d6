"""Scoring runs of both families and codes from elsewhere, from the command line."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import inception_v3

import metrics
from launch.machine.distributed import Ranks
from launch.report.runs import _per_image
from launch.results import encoding, score_codes, scores
from launch.results.encoding import Encoded, Protocol
from launch.results.run import open_run
from metrics.edits import residual_parameters
from metrics.reductions import halves
from tests.launch import running, toy
from tests.launch.running import assert_one_error, call
from tests.launch.test_evaluation import ThreadRanks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
QUICK = ["--images", "40", "--elbo-images", "8", "--dims", "2", "10", "--shuffles", "2", "--resamples", "2"]


@pytest.fixture(scope="module", autouse=True)
def _toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        yield


@pytest.fixture(scope="module")
def runs(_toy: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scored")
    return {family: toy.train(family, root / family) for family in ("nvae", "flat_vae")}


@pytest.fixture(params=["nvae", "flat_vae"])
def run(request: pytest.FixtureRequest, runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a run of each family."""
    return Path(shutil.copytree(runs[request.param], tmp_path / request.param))


class SpeakingRanks(ThreadRanks):
    @property
    def is_main(self) -> bool:
        return self.rank == 0


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing may be encoded here")


def read(run: Path) -> dict[str, Any]:
    record = json.loads((run / "scores.json").read_text())
    del record["seconds"]
    assert isinstance(record, dict)
    return record


def encoded(run: Path, ranks: Any = ALONE, *, max_gib: float = 1.0, images: int = 13) -> Encoded:
    saved = open_run(run)
    data = saved.data("test")
    rows = Protocol(images=images, seed=3).rows(len(data))
    return encoding.encode(saved.model, data, rows, ranks, batch_size=4, max_gib=max_gib)


def test_few_images_are_noted_even_without_intervals(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["flat_vae"], tmp_path / "run")
    result = call("score", "--run", run, "--images", "10", "--elbo-images", "0", "--metrics", "mig")
    assert result.code == 0, result.err
    assert "note: 10 images are few" in result.out
    assert "--split all" in result.out


def test_both_families_get_the_same_rows(run: Path) -> None:
    result = call("score", "--run", run, *QUICK, "--untrained")
    assert result.code == 0, result.err
    record = read(run)
    assert record["num_images"] == 40
    assert {(r["kind"], r["dim"]) for r in record["scores"]["reduced"]["rows"]} >= {
        (kind, dim) for kind in ("pool", "moments", "pca") for dim in (2, 10)
    }
    units = 2 if record["family"] == "nvae" else 10  # a flat model enters as groups of one latent
    assert np.shape(record["scores"]["groups"]["matrix"]) == (units, 4)
    assert ("covariance_distance" in record["scores"]) == (record["family"] == "flat_vae")
    assert set(record["untrained"]) == set(record["scores"])
    assert record["untrained"] != record["scores"]
    assert record["held_out"]["num_images"] == 8
    assert "beta_vae" in record["skipped"]
    with np.load(run / "scores.npz", allow_pickle=False) as file:
        elbo = file["log_likelihood"] - file["kl"].sum(1)
    assert float(elbo.mean()) == pytest.approx(record["held_out"]["elbo"], rel=1e-5)
    for word in ("mig", "moments", "posX", "KL per group"):
        assert word in result.out
    assert not any(isinstance(v, float) and math.isnan(v) for v in record["kl_at_means"])


def test_codes_are_encoded_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("score", "--run", run, *QUICK).code == 0
    first = read(run)
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode", refuse)
        assert call("score", "--run", run, *QUICK).code == 0
        assert read(run) == first
    files = set((run / "codes").iterdir())
    assert len(files) == 1
    assert call("score", "--run", run, *QUICK, "--seed", "1").code == 0
    assert len(set((run / "codes").iterdir())) == 2


def test_a_damaged_cache_is_encoded_again(run: Path) -> None:
    assert call("score", "--run", run, *QUICK).code == 0
    first = read(run)
    (cache,) = (run / "codes").iterdir()
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)
    result = call("score", "--run", run, *QUICK)
    assert result.code == 0, result.err
    assert "damaged" in result.err
    assert read(run) == first


def test_residual_means_and_kl_of_an_nvae(runs: dict[str, Path]) -> None:
    """Against the tools for latents, and KL from torch.distributions."""
    found = encoded(runs["nvae"])
    saved = open_run(runs["nvae"])
    model: Any = saved.model
    x = saved.data("test").images(found.rows).float()
    with torch.no_grad():
        relative = [residual_parameters(group) for group in model.groups_at_means(x)]
        means = model.encode(x)
    for i, belief in enumerate(relative):
        np.testing.assert_allclose(found.residuals[i], belief.mean, atol=2e-5)
        np.testing.assert_allclose(found.means[i], means[i], atol=2e-5)
        unit = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
        q = torch.distributions.Normal(belief.mean.double(), belief.std.double())
        kl = torch.distributions.kl_divergence(q, unit).flatten(1).sum(1)
        np.testing.assert_allclose(found.kl[:, i], kl, rtol=1e-3)
        assert found.kl_per_channel[i].sum() == pytest.approx(float(kl.mean()), rel=1e-3)


def test_a_flat_code_is_the_mean(runs: dict[str, Path]) -> None:
    found = encoded(runs["flat_vae"])
    saved = open_run(runs["flat_vae"])
    model: Any = saved.model
    x = saved.data("test").images(found.rows).float()
    with torch.no_grad():
        posterior = model.groups_at_means(x)[0].posterior
    assert found.variance is not None
    np.testing.assert_allclose(found.means[0][:, :, 0, 0], posterior.mean, atol=2e-5)
    np.testing.assert_array_equal(found.means[0], found.residuals[0])  # the prior is standard normal
    np.testing.assert_allclose(found.variance, posterior.std.square(), rtol=1e-4)
    assert [unit.shape for unit in found.units] == [(13, 1)] * 10


@pytest.mark.parametrize("family", ["nvae", "flat_vae"])
@pytest.mark.parametrize("world_size", [2, 5])
def test_any_number_of_ranks_encodes_the_same(family: str, world_size: int, runs: dict[str, Path]) -> None:
    """13 images in blocks of 4: uneven, and with 5 ranks one has none."""
    boxes, meet = [None] * world_size, threading.Barrier(world_size)
    results: list[Any] = [None] * world_size

    def work(rank: int) -> None:
        results[rank] = encoded(runs[family], SpeakingRanks(rank, world_size, boxes, meet))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = encoded(runs[family])
    for result in results:
        for mine, theirs in zip(result.residuals + result.means, alone.residuals + alone.means, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(result.kl, alone.kl)


def test_large_maps_are_kept_coarser_with_the_same_channel_means(runs: dict[str, Path]) -> None:
    whole, coarse = encoded(runs["nvae"]), encoded(runs["nvae"], max_gib=1e-9)
    assert coarse.max_side == 1
    assert whole.max_side == 8
    for fine, one in zip(whole.residuals, coarse.residuals, strict=True):
        np.testing.assert_allclose(fine.mean((2, 3)), one[:, :, 0, 0], atol=1e-6)
    assert coarse.resolution == whole.resolution == [4, 8]
    shapes = [(8, 8, 8), (8, 32, 32)]
    assert encoding.largest_side(shapes, 1000, 1.0) == 32
    assert encoding.largest_side(shapes, 10**7, 1.0) == 1
    at_16 = 8 * 1000 * (8 * 64 + 8 * 256) / 2**30
    assert encoding.largest_side(shapes, 1000, at_16) == 16


def test_a_random_subset_by_seed() -> None:
    one, other = Protocol(images=10, seed=0).rows(100), Protocol(images=10, seed=1).rows(100)
    assert len(np.unique(one)) == 10
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one, Protocol(images=10, seed=0).rows(100))
    np.testing.assert_array_equal(Protocol(images=200).rows(100), np.arange(100))


def test_the_full_grid_serves_sampled_metrics(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["flat_vae"], tmp_path / "run")
    result = call("score", "--run", run, "--full-grid", "--metrics", "mig", "factor_vae", "--elbo-images", "0")
    assert result.code == 0, result.err
    record = read(run)
    assert record["num_images"] == toy.TOTAL
    assert record["held_out"] is None
    assert 0.25 <= record["scores"]["factor_vae"]["score"] <= 1.0
    assert record["scores"]["mig"]["entropy"] == pytest.approx([math.log(n) for n in toy.SIZES])
    saved = open_run(run)
    data = saved.data("all")
    combination = np.array([[1, 2, 3, 4], [0, 0, 5, 1]])
    index = np.ravel_multi_index(tuple(combination.T), toy.SIZES)
    with torch.no_grad():
        direct = saved.model.encode(data.images(index).float())[0]
    (cache,) = (run / "codes").iterdir()
    found = encoding.load(cache)
    assert found is not None
    np.testing.assert_allclose(found.means[0][index, :, 0, 0], direct, atol=2e-5)


def test_a_hierarchy_has_a_code_of_the_full_grid(runs: dict[str, Path], tmp_path: Path) -> None:
    """Chosen and scaled without labels: standardised means of the channels that vary most."""
    run = shutil.copytree(runs["nvae"], tmp_path / "run")
    result = call("score", "--run", run, "--full-grid", "--metrics", "factor_vae", "--elbo-images", "0", "--dims", "3")
    assert result.code == 0, result.err
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(50, 2, 3, 3)) * np.array([1.0, 9.0])[:, None, None], rng.normal(size=(50, 2)) * 5]
    codes = scores.most_varying_channels(groups, 3)
    np.testing.assert_allclose(codes.std(0), 1.0)
    expected = groups[0][:, 1].mean((1, 2))
    np.testing.assert_allclose(codes[:, 0], (expected - expected.mean()) / expected.std())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--metrics", "mgi"], ["mgi", "did you mean 'mig'"]),
        (["--metrics", "factor_vae"], ["--full-grid"]),
        (["--images", "3"], ["--images 3"]),
        (["--dims", "0"], ["--dims"]),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    more: list[str], words: list[str], runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "encode", refuse)
    assert_one_error(call("score", "--run", runs["nvae"], *more), *words)


def test_missing_factors_are_reported_before_anything_is_encoded(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of images has none; without --metrics the other scores are computed."""
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode", refuse)
        assert_one_error(call("score", "--run", trained, "--metrics", "mig"), "mig", "no ground-truth factors")
        patch.setattr("launch.results.run.SavedRun._newest", refuse)
        assert_one_error(call("score", "--run", trained, "--metrics", "groups"), "groups")


def test_unsupervised_scores_need_no_factors(copied: Path) -> None:
    result = call("score", "--run", copied, "--split", "train", "--elbo-images", "0")
    assert result.code == 0, result.err
    assert set(read(copied)["scores"]) == {"total_correlation", "pairwise_information"}
    assert "left out" in result.out


def test_either_a_run_or_codes(trained: Path, tmp_path: Path) -> None:
    assert_one_error(call("score"), "--run")
    assert_one_error(call("score", "--run", trained, "--codes", tmp_path / "x.npz"), "--run")
    assert_one_error(call("score", "--run", tmp_path / "nothing"), "nothing")


def test_codes_of_another_framework(tmp_path: Path) -> None:
    """A perfect code reaches the ceiling; the numbers are those of the library."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(n, size=600) for n in (3, 6, 5)], axis=1)
    np.savez(tmp_path / "codes.npz", codes=factors.astype(np.float32), factors=factors)
    result = call("score", "--codes", tmp_path / "codes.npz", "--metrics", "mig", "sap", "groups")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "codes.scores.json").read_text())
    expected = metrics.mig(factors.astype(np.float32), factors)
    assert record["scores"]["mig"]["score"] == pytest.approx(expected.score, rel=1e-12)
    assert record["scores"]["mig"]["score"] == pytest.approx(record["scores"]["mig"]["ceiling"], rel=1e-12)
    shares = np.array(record["scores"]["groups"]["matrix"]) / np.array(record["scores"]["groups"]["entropy"])
    assert (np.diag(shares) > 0.6).all()
    assert (shares - np.diag(np.diag(shares)) < 0.05).all()


def test_codes_of_a_whole_grid_in_any_order_serve_sampled_metrics(tmp_path: Path) -> None:
    factors = toy.factors_of(np.random.default_rng(1).permutation(toy.TOTAL))
    np.savez(tmp_path / "codes.npz", codes=factors.astype(np.float64), factors=factors)
    result = call("score", "--codes", tmp_path / "codes.npz", "--metrics", "factor_vae")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "codes.scores.json").read_text())
    assert record["scores"]["factor_vae"]["score"] == 1.0  # a wrong order would lose the held factor


def bad_files(folder: Path) -> dict[str, Path]:
    codes, factors = np.zeros((20, 2)), np.zeros((20, 1), dtype=np.int64)
    for name, arrays in {
        "empty": {},
        "keys": {"z": codes},
        "rows": {"codes": codes, "factors": factors[:7]},
        "nan": {"codes": codes * np.nan, "factors": factors},
        "pickled": {"codes": np.array([{}] * 20, dtype=object)},
        "constant": {"codes": codes, "factors": factors},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    np.save(folder / "array.npy", codes)
    (folder / "text.npz").write_text("no archive")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", ["codes"]),
        ("keys", ["'z'"]),
        ("rows", ["(20, 2)", "(7, 1)"]),
        ("nan", ["NaN"]),
        ("pickled", ["np.savez"]),
        ("constant", ["two values"]),
        ("array", ["np.savez"]),
        ("text", ["text.npz"]),
        ("absent", ["absent.npz"]),
    ],
)
def test_bad_codes_are_refused_in_one_line(name: str, words: list[str], tmp_path: Path) -> None:
    path = bad_files(tmp_path).get(name, tmp_path / "absent.npz")
    assert_one_error(call("score", "--codes", path, "--metrics", "mig"), *words)


def test_the_trainer_scores_on_a_schedule(tmp_path: Path) -> None:
    run = toy.train("nvae", tmp_path / "run", "--score-every", "8")
    for name in ("mig", "jemmig", "mcc", "linear_r2"):
        scored = {r["step"]: r[f"score/{name}_d10"] for r in running.records(run) if f"score/{name}_d10" in r}
        assert set(scored) == {8, 16}
        assert all(0.0 <= v <= 1.0 for v in scored.values())


def test_the_trainer_refuses_scores_without_factors(data: Path, tmp_path: Path) -> None:
    result = call("train_nvae", *running.flags(data, tmp_path / "run", "--score-every", "8"))
    assert_one_error(result, "--score-every", "no ground-truth factors")
    assert not (tmp_path / "run").exists()


def test_samples_are_held_against_all_images_that_exist(run: Path) -> None:
    result = call("score", "--run", run, *QUICK, "--metrics", "total_correlation", "--samples", "12")
    assert result.code == 0, result.err
    found = read(run)["samples"]
    assert found["held_out"]["score"] == 1.0
    assert found["held_out"]["median_distance"] == 0.0
    assert found["samples"]["num_samples"] == found["reconstructions"]["num_samples"] == 12
    assert len(found["samples"]["coverage"]) == len(toy.SIZES)
    assert all(0.0 <= share <= 1.0 for share in found["samples"]["precision"])
    assert "reconstructions" in result.out


def test_no_samples_are_drawn_where_none_are_asked_for(run: Path) -> None:
    assert call("score", "--run", run, *QUICK, "--metrics", "total_correlation", "--samples", "0").code == 0
    assert read(run)["samples"] is None
    assert_one_error(call("score", "--run", run, "--samples", "-1"), "--samples -1")


def table(path: Path, separator: str = ",") -> Path:
    """120 rows of codes in any order of columns, variances, a factor of text, one from 1 and one of fractions."""
    rng = np.random.default_rng(0)
    kind, place, size = rng.integers(3, size=120), rng.integers(6, size=120), rng.uniform(size=120)
    lines = [separator.join(["z10", "kind", "z2", "place", "size", "var10", "var2"])]
    for i in range(120):
        cells = [kind[i] + 0.01 * i / 120, ("cone", "ball", "cube")[kind[i]], size[i], place[i] + 1, size[i], 0.1, 0.2]
        lines.append(separator.join(map(str, cells)))
    path.write_text("﻿" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_codes(separator: str, tmp_path: Path) -> None:
    """Codes come in the order of their numbers; text, labels from 1 and fractions are factors."""
    path = table(tmp_path / "mine.csv", separator)
    result = call("score", "--codes", path, "--resamples", "4", "--shuffles", "2", "--dims", "2")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "mine.scores.json").read_text())
    assert record["factor_names"] == ["kind", "place", "size"]
    assert record["scores"]["mcc"]["matching"][-1] == [0, 2]  # z2 comes before z10
    assert record["scores"]["covariance_distance"]["score"] > 0
    assert record["codes_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (record["seed"], record["num_latents"], record["num_images"]) == (0, 2, 120)
    assert {"numpy", "scikit-learn"} <= set(record["versions"])
    found = record["scores"]["mcc"]["uncertainty"]
    assert found["interval"][0] <= found["corrected"] <= found["interval"][1]
    assert str(tmp_path / "mine.scores.json") in result.out
    assert "[{:.4f}, {:.4f}]".format(*found["interval"]) in result.out
    without = record["scores"]["med"]["uncertainty"]
    assert without["interval"] is None
    assert without["halves_std"] > 0
    assert without["bias_note"][:40] in result.out
    assert "120 rows are few" in result.out
    assert f"{found['chance']:.4f}" in result.out
    first = (tmp_path / "mine.scores.json").read_bytes()
    assert call("score", "--codes", path, "--resamples", "4", "--shuffles", "2", "--dims", "2").code == 0
    assert (tmp_path / "mine.scores.json").read_bytes() == first


def test_other_scores_leave_those_of_the_run_as_they_are(run: Path, tmp_path: Path) -> None:
    """ELBOs of single images lie beside their scores, and do not count beside others."""
    words = ["score", "--run", run, *QUICK, "--metrics", "total_correlation", "--samples", "0"]
    assert call(*words).code == 0
    own = [(run / name).read_bytes() for name in ("scores.json", "scores.npz")]
    assert call(*words, "--split", "valid", "--out", tmp_path / "other.json").code == 0
    assert [(run / name).read_bytes() for name in ("scores.json", "scores.npz")] == own
    assert (tmp_path / "other.npz").exists()
    record = json.loads((run / "scores.json").read_text())
    assert len(_per_image(run / "scores.npz", record)) == 8
    assert _per_image(tmp_path / "other.npz", record) == {}
    assert_one_error(call(*words, "--out", run / "scores.valid"), "--out", ".json")  # its ELBOs would be scores.npz


def test_a_score_that_refuses_the_rows_leaves_the_others(tmp_path: Path) -> None:
    """One row of 64 differs, so a half of the rows, on which reduced codes are scored, may not vary."""
    rng = np.random.default_rng(0)
    odd = int(halves(64, 0)[0][0])
    lines = ["z0,z1,kind", *(f"{rng.normal():.4f},{rng.normal():.4f},{int(i == odd)}" for i in range(64))]
    (tmp_path / "rare.csv").write_text("\n".join(lines) + "\n")
    words = ["score", "--codes", tmp_path / "rare.csv", "--resamples", "4", "--shuffles", "2", "--dims", "2"]
    result = call(*words)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "rare.scores.json").read_text())
    assert "takes two values" in record["skipped"]["reduced"]
    assert "takes two values" in result.out
    assert record["scores"]["mig"]["score"] >= 0
    assert_one_error(call(*words, "--metrics", "reduced", "mig"), "takes two values")


def test_parquet_scores_as_csv_does(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet is read where pyarrow is installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    columns = {"z0": rng.normal(size=60), "kind": np.array(["ball", "cone"])[rng.integers(2, size=60)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    rows = [f"{z!r},{kind}" for z, kind in zip(columns["z0"].tolist(), columns["kind"], strict=True)]
    (tmp_path / "b.csv").write_text("\n".join(["z0,kind", *rows]) + "\n")
    scores = []
    for name in ("a.parquet", "b.csv"):
        result = call("score", "--codes", tmp_path / name, "--metrics", "mig", "mcc", "--resamples", "0")
        assert result.code == 0, result.err
        scores.append(json.loads((tmp_path / name).with_suffix(".scores.json").read_text())["scores"])
    assert scores[0] == scores[1]


def test_columns_that_number_or_name_the_rows_are_no_factors(tmp_path: Path) -> None:
    """As pandas writes an index, and file names; a factor of distinct fractions stays."""
    rng = np.random.default_rng(0)
    lines = [f"{i},image{i}.png,{i % 3 + 0.01 * i},{i % 3},{rng.uniform():.6f}" for i in range(60)]
    (tmp_path / "mine.csv").write_text("\n".join([",image,z0,kind,size", *lines]))
    result = call("score", "--codes", tmp_path / "mine.csv", "--metrics", "mcc", "--resamples", "0")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "mine.scores.json").read_text())
    assert record["factor_names"] == ["kind", "size"]
    assert record["ignored_columns"] == ["", "image"]
    assert "image" in result.out


def test_what_spreadsheets_add_is_no_data(tmp_path: Path) -> None:
    """A line that names the separator, rows and columns of empty cells, line ends of Windows."""
    plain = table(tmp_path / "plain.csv", ";")
    names, *rows = plain.read_text(encoding="utf-8-sig").splitlines()
    lines = ["sep=;", names + ";;", *(row + ";;" for row in rows), ";" * 8, ""]
    (tmp_path / "sheet.csv").write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    first, second = (score_codes.read_codes(path) for path in (plain, tmp_path / "sheet.csv"))
    np.testing.assert_array_equal(first.codes, second.codes)
    assert first.factors is not None
    assert second.factors is not None
    assert first.factors.names == second.factors.names
    np.testing.assert_array_equal(first.factors.columns, second.factors.columns)


def test_plain_rows_serve_sampled_metrics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(n, size=300) for n in (3, 4)], axis=1)
    codes = factors + 0.01 * rng.normal(size=factors.shape)
    np.savez(tmp_path / "codes.npz", codes=codes, factors=factors + 1, factor_names=np.array(["a", "b"]))
    result = call("score", "--codes", tmp_path / "codes.npz", "--metrics", "beta_vae_rows", "factor_vae_rows")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "codes.scores.json").read_text())
    assert record["factor_names"] == ["a", "b"]
    assert record["scores"]["factor_vae_rows"]["score"] == 1.0
    assert record["scores"]["beta_vae_rows"]["score"] > 0.95


def test_wide_codes_leave_out_what_would_take_hours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "wide.npz", codes=rng.normal(size=(40, 70)), factors=rng.integers(2, size=(40, 1)))
    result = call("score", "--codes", tmp_path / "wide.npz", "--resamples", "0", "--shuffles", "1", "--dims", "2")
    assert result.code == 0, result.err
    assert "--metrics groups" not in result.err
    assert "groups" in json.loads((tmp_path / "wide.scores.json").read_text())["skipped"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("names.csv", "a,b\n1,2\n", ["'a'", "z0"]),
        ("cells.csv", "z0,f\n1,2\n1\n", ["row 3", "1 cells"]),
        ("words.csv", "z0,f\nx,2\n1,3\n", ["column z0", "row 2", "'x'"]),
        ("gaps.csv", "z0,f\n1,2\n\n1,\n", ["empty", "column f", "row 4"]),
        ("absent.csv", "z0,f\n" + "1,2.5\n" * 20 + "1,n/a\n", ["column f", "row 22", "'n/a'"]),
        ("stray.csv", "z0,f\n" + "1,2.5\n" * 20 + "1,2.5 cm\n", ["column f", "row 22", "'2.5 cm'"]),
        ("twice.csv", "z0,z0,f\n1,2,3\n", ["z0", "twice"]),
        ("comma.csv", "z0;f\n1;2,5\n2;3,5\n", ["column f", "'2,5'", "decimal point"]),
        ("head.csv", "z0,f\n", ["no rows"]),
        ("table.parquet", "no parquet", ["table.parquet", "save a csv" if find_spec("pyarrow") is None else "again"]),
    ],
)
def test_bad_tables_are_refused_in_one_line(name: str, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert_one_error(call("score", "--codes", tmp_path / name), *words)


def test_continuous_factors_refuse_scores_of_classes_by_name(tmp_path: Path) -> None:
    path = table(tmp_path / "mine.csv")
    assert_one_error(call("score", "--codes", path, "--metrics", "explicitness"), "size", "linear_r2")


def test_samples_as_files_are_scored_against_a_folder(run: Path, tmp_path: Path) -> None:
    """Single images of the run's own size; without weights, or a second folder, one line says what is missing."""
    assert call("sample", "--run", run, "--num", "6", "--files", tmp_path / "drawn").code == 0
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == [f"0000{i}.png" for i in range(6)]
    with Image.open(drawn[0]) as image:
        assert image.size == (16, 16)
    folders = ["--images", tmp_path / "drawn", "--reference", tmp_path / "drawn"]
    assert_one_error(call("score", *folders), "--inception")
    assert_one_error(call("score", "--images", tmp_path / "drawn"), "--reference")
    assert_one_error(call("sample", "--run", run, "--out", tmp_path / "drawn"), ".png", "--files")
    again = ["sample", "--run", run, "--num", "5", "--files", tmp_path / "drawn"]
    assert_one_error(call(*again), "00005.png", "empty folder")  # it would count as a sample
    assert_one_error(call("sample", "--run", run, "--out", tmp_path / "x.jpg"), ".png")


def test_images_are_scored_by_the_weights_that_are_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("drawn", "real"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            pixels = rng.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), tmp_path / "weights.pt")
    folders = ["--images", tmp_path / "drawn", "--reference", tmp_path / "real"]
    result = call("score", *folders, "--inception", tmp_path / "weights.pt", "--out", tmp_path / "fid.json")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "fid.json").read_text())
    assert record["generated"]["num_images"] == record["reference"]["num_images"] == 3
    assert record["scores"]["images"]["score"] > 0
    assert "FID" in result.out
