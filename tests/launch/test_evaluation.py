"""Held-out numbers: every image once on any number of ranks, against calculations that share no code."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import datasets
from launch.machine import noise
from launch.machine.distributed import Ranks
from launch.results.run import open_run
from launch.training import evaluation
from metrics.pixel_baseline import fit_pixel_baseline
from tests.launch import running

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)


class ThreadRanks:
    """A rank in a thread of this process; collectives meet at a barrier."""

    def __init__(self, rank: int, world_size: int, boxes: list[Any], meet: threading.Barrier) -> None:
        self.rank, self.world_size, self.device = rank, world_size, CPU
        self.boxes, self.meet = boxes, meet

    def gather(self, value: Any) -> list[Any]:
        self.boxes[self.rank] = value
        self.meet.wait(60)
        everyone = list(self.boxes)
        self.meet.wait(60)
        return everyone

    def maximum(self, *values: float) -> list[float]:
        return [max(column) for column in zip(*self.gather(values), strict=True)]


class Counted:
    """A data set that notes which images it was asked for."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.dataset, self.spec, self.asked = dataset, dataset.spec, list[int]()

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, indices: Any) -> Tensor:
        self.asked += [int(i) for i in indices]
        return self.dataset.images(indices)


def on_ranks(world_size: int, model: Any, data: Any, **options: Any) -> list[evaluation.Evaluation]:
    boxes, meet = [None] * world_size, threading.Barrier(world_size)
    results: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = evaluation.evaluate(model, data, ThreadRanks(rank, world_size, boxes, meet), **options)  # type: ignore[arg-type]
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="module")
def model_and_data(trained: Path) -> tuple[Any, datasets.Dataset]:
    run = open_run(trained)
    return run.model, run.data("train")


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_every_image_once_and_the_same_result_on_any_number_of_ranks(
    world_size: int, model_and_data: tuple[Any, datasets.Dataset]
) -> None:
    """18 images in blocks of 4: uneven, and with 9 ranks some have none."""
    model, data = model_and_data
    counted = Counted(data)
    results = on_ranks(world_size, model, counted, batch_size=4, seed=1, importance_draws=3)
    assert sorted(counted.asked) == list(range(18))
    alone = evaluation.evaluate(model, data, ALONE, batch_size=4, seed=1, importance_draws=3)
    for result in results:
        assert result.bound is not None
        assert alone.bound is not None
        for mine, theirs in (
            (result.elbo, alone.elbo),
            (result.kl, alone.kl),
            (result.psnr, alone.psnr),
            (result.bound, alone.bound),
        ):
            assert torch.equal(mine, theirs)  # the same blocks with the same noise: bit for bit
        assert result.active_units == alone.active_units
        assert result.num_units == alone.num_units == 4


def test_a_part_is_spread_evenly_over_the_split(model_and_data: tuple[Any, datasets.Dataset]) -> None:
    model, data = model_and_data
    counted = Counted(data)
    result = evaluation.evaluate(model, counted, ALONE, batch_size=4, seed=1, num_images=6)  # type: ignore[arg-type]
    assert counted.asked == [0, 3, 6, 9, 12, 15]  # of 18
    assert result.summary()["num_images"] == 6
    assert result.bound is None
    assert "importance_bound" not in result.summary()


def test_numbers_are_those_of_the_beliefs(model_and_data: tuple[Any, datasets.Dataset]) -> None:
    """ELBO, rate, distortion, bits per dimension and dB by hand, in float64."""
    model, data = model_and_data
    result = evaluation.evaluate(model, data, ALONE, batch_size=18, seed=5).summary()
    x = data.images(range(18)).float() / 255.0
    source = noise.generator(CPU, noise.EVALUATE, 5, 0)
    with torch.no_grad():
        output = model(x, [torch.randn(18, *shape, generator=source) for shape in model.group_shapes])
        reconstructed = model.reconstruct(x)
    distortion = -output.likelihood.log_prob(x).double().sum() / 18
    rate = 0.0
    for group in output.groups:
        q, p = (torch.distributions.Normal(b.mean.double(), b.std.double()) for b in (group.posterior, group.prior))
        rate += float(torch.distributions.kl_divergence(q, p).sum()) / 18
    assert result["distortion"] == pytest.approx(float(distortion), rel=1e-5)
    assert result["rate"] == pytest.approx(rate, rel=1e-3)
    assert result["elbo"] == pytest.approx(-(float(distortion) + rate), rel=1e-5)
    assert result["bits_per_dim"] == pytest.approx((float(distortion) + rate) / (3 * 12 * 16) / math.log(2), rel=1e-5)
    assert sum(result["kl_group"]) == pytest.approx(result["rate"], rel=1e-5)
    error = (reconstructed - x).double().square().flatten(1).mean(1)
    assert result["psnr"] == pytest.approx(float((-10 * error.log10()).mean()), rel=1e-5)
    assert result["elbo_95"] > 0


def test_the_importance_bound_tightens(model_and_data: tuple[Any, datasets.Dataset]) -> None:
    """The bound is in expectation never below the ELBO, and it rises with the number of draws."""
    model, data = model_and_data
    values = {
        k: evaluation.evaluate(model, data, ALONE, batch_size=9, seed=2, importance_draws=k).summary()
        for k in (1, 5, 150)
    }
    many = values[150]
    assert many["importance_draws"] == 150
    assert many["importance_bound"] > many["elbo"]
    assert values[1]["importance_bound"] < values[5]["importance_bound"] < many["importance_bound"]
    assert many["importance_bits_per_dim"] < many["bits_per_dim"]


def test_the_importance_bound_is_the_mean_of_weights(model_and_data: tuple[Any, datasets.Dataset]) -> None:
    """log mean p(x, z) / q(z | x), with every density from torch.distributions, in float64."""
    model, data = model_and_data
    draws, batch = 4, 3
    result = evaluation.evaluate(model, data, ALONE, batch_size=batch, seed=2, num_images=batch, importance_draws=draws)
    source = noise.generator(CPU, noise.IMPORTANCE, 2, 0)
    x = (data.images([0, 6, 12]).float() / 255.0).repeat_interleave(draws, 0)  # 3 of 18, evenly spread
    with torch.no_grad():
        output = model(x, [torch.randn(batch * draws, *shape, generator=source) for shape in model.group_shapes])
    weights = output.likelihood.log_prob(x).double()
    for group in output.groups:
        q, p = (torch.distributions.Normal(b.mean.double(), b.std.double()) for b in (group.posterior, group.prior))
        weights += (p.log_prob(group.z.double()) - q.log_prob(group.z.double())).flatten(1).sum(1)
    expected = weights.view(batch, draws).logsumexp(1) - math.log(draws)
    assert result.bound is not None
    torch.testing.assert_close(result.bound.double(), expected, rtol=1e-5, atol=1e-2)  # 3,300 nats in float32


def test_a_stop_is_agreed_on(model_and_data: tuple[Any, datasets.Dataset]) -> None:
    """One rank of two is asked in the middle; both raise, and none waits for ever."""
    model, data = model_and_data
    calls, lock = dict[int, int](), threading.Lock()

    def asked() -> bool:
        me = threading.get_ident()
        with lock:
            calls[me] = calls.get(me, 0) + 1
            return calls[me] > 1 and me == next(iter(calls))

    results = on_ranks(2, model, data, batch_size=4, seed=1, should_stop=asked)
    assert all(isinstance(result, evaluation.Stopped) for result in results)
    assert sorted(calls.values())[0] < 4  # it did not go on to the end of its blocks


def _logistic_cdf(value: float, mean: float, scale: float) -> float:
    return 1.0 / (1.0 + math.exp(-(value - mean) / scale))


def test_the_baseline_is_a_logistic_per_pixel(data: Path) -> None:
    """Nats per image pixel by pixel: bin masses by two CDFs, the outer bins open, summed in plain Python."""
    train, test = (datasets.open_dataset("folder", data, split) for split in ("train", "test"))
    row = evaluation.no_latents(train, test)
    dims = 3 * 12 * 16
    counts = torch.zeros(dims, 256)
    for image in train.images(range(len(train))):
        for p, level in enumerate(image.flatten().tolist()):
            counts[p, level] += 1
    fitted = fit_pixel_baseline(counts, 8)
    total = 0.0
    for image in test.images(range(len(test))):
        for p, level in enumerate(image.flatten().tolist()):
            mean, scale = float(fitted.mean[p]), math.exp(float(fitted.log_scale[p]))
            x = level / 127.5 - 1.0
            upper = 1.0 if level == 255 else _logistic_cdf(x + 1 / 255, mean, scale)
            lower = 0.0 if level == 0 else _logistic_cdf(x - 1 / 255, mean, scale)
            total -= math.log(upper - lower)
    nats = total / len(test)
    assert row["negative_log_likelihood"] == pytest.approx(nats, rel=1e-4)
    assert row["bits_per_dim"] == pytest.approx(nats / dims / math.log(2), rel=1e-4)
    assert 4.0 < row["bits_per_dim"] < 8.5


def test_evaluate_prints_and_records(copied: Path) -> None:
    result = running.call("evaluate", "--run", copied, "--iw-samples", "3", "--batch-size", "2")
    assert result.code == 0, result.err
    record = json.loads((copied / "evaluation-test.json").read_text())
    assert record["num_images"] == running.COUNTS["test"]
    assert record["step"] == running.STEPS
    assert record["checkpoint"] == f"step-{running.STEPS:09d}.pt"
    assert record["importance_draws"] == 3
    for value in (record["bits_per_dim"], record["importance_bits_per_dim"], record["no_latents"]["bits_per_dim"]):
        assert f"{value:.4f}" in result.out
    assert "no latents (baseline)" in result.out
    again = running.call("evaluate", "--run", copied, "--iw-samples", "3", "--batch-size", "2")
    assert again.out == result.out  # the same seed, the same figures


def test_evaluate_uses_the_averaged_weights_unless_told(copied: Path) -> None:
    values = {}
    for weights in ("auto", "raw"):
        arguments = ["--split", "valid", "--iw-samples", "0", "--no-baseline", "--weights", weights]
        assert running.call("evaluate", "--run", copied, *arguments).code == 0
        values[weights] = json.loads((copied / "evaluation-valid.json").read_text())
    assert values["auto"]["elbo"] != values["raw"]["elbo"]
    assert values["auto"]["no_latents"] is None
    said = json.loads((copied / "summary.json").read_text())["valid"]
    assert values["auto"]["elbo"] == pytest.approx(said["elbo"], rel=1e-6)  # the final evaluation of training


def test_data_that_moved_is_found_where_the_user_says(copied: Path, data: Path, tmp_path: Path) -> None:
    moved = running.draw(tmp_path / "moved")
    record = json.loads((copied / "config.json").read_text())
    record["config"]["data"]["data_root"] = str(tmp_path / "gone")
    (copied / "config.json").write_text(json.dumps(record))
    running.assert_one_error(running.call("evaluate", "--run", copied), str(tmp_path / "gone"), "--data-root")
    result = running.call("evaluate", "--run", copied, "--data-root", moved, "--iw-samples", "0")
    assert result.code == 0, result.err


@pytest.mark.parametrize("temperature", ["0.7", "1"])
def test_samples_are_a_png_of_the_right_size(temperature: str, copied: Path, tmp_path: Path) -> None:
    arguments = ["--run", copied, "--num", "6", "--temperature", temperature, "--seed", "3", "--batch-size", "4"]
    paths = [tmp_path / "one.png", tmp_path / "new folder" / "two.png"]
    for path in paths:
        result = running.call("sample", *arguments, "--out", path)
        assert result.code == 0, result.err
        assert str(path) in result.out
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert np.array_equal(*pictures)  # the same seed gives the same picture
    scale = 96 // 16  # small images are shown enlarged; 3 columns, 2 rows, 2 pixels of frame
    height, width = 2 * (12 * scale + 2) + 2, 3 * (16 * scale + 2) + 2
    assert height < len(pictures[0]) <= height + 80, "a title stands above"
    assert width <= pictures[0].shape[1] <= max(width, 400)
    assert running.call("sample", "--run", copied, "--seed", "3").code == 0
    assert (copied / "figures" / "samples_t1_seed3.png").exists()


def test_another_seed_gives_other_samples(copied: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert (
            running.call("sample", "--run", copied, "--num", 4, "--seed", seed, "--out", tmp_path / f"{seed}.png").code
            == 0
        )
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()
