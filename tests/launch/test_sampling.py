"""Sampling: temperatures per group, re-estimated and kept batch-norm statistics, both treatments of edge bins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flat_vae import FlatVAE, FlatVAEConfig
from launch.machine.distributed import Ranks
from launch.results.run import open_run
from launch.sample import SampleConfig, draw, readjust
from launch.training import evaluation
from metrics import elbo
from nvae import NVAE
from nvae.batch_norm import read_statistics
from tests.launch import running
from tests.nvae.small import Images, small

CPU = torch.device("cpu")


def config(**changes: Any) -> SampleConfig:
    return SampleConfig(**{"run": Path("run"), "num": 5, "batch_size": 2, **changes})


def test_temperature_per_group_reaches_each_group() -> None:
    model = small().eval()
    per_group = draw(model, config(temperature=(0.5, 0.7, 1.0)), torch.Generator().manual_seed(1))
    source = torch.Generator().manual_seed(1)
    expected = [model.sample(n, (0.5, 0.7, 1.0), generator=source) for n in (2, 2, 1)]
    torch.testing.assert_close(per_group, torch.cat(expected))
    same = draw(model, config(temperature=(0.5,)), torch.Generator().manual_seed(1))
    assert (same - per_group).abs().max() > 0


@pytest.mark.parametrize("temperatures", [(0.0,), (-1.0,), (0.7, 0.7), (float("nan"),)])
def test_impossible_temperatures_are_refused(temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"temperature.*; give"):
        draw(small().eval(), config(temperature=temperatures), torch.Generator())


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 0.5, 0.7, 1.0, 1.2])
@pytest.mark.parametrize("readjusts", [False, True])
def test_samples_are_finite_at_every_temperature(temperature: float, readjusts: bool) -> None:
    model = small().eval()
    if readjusts:
        readjust(
            model, config(temperature=(temperature,), readjust_bn=3, batch_size=4), torch.Generator().manual_seed(2)
        )
    for pixels in ("mean", "sample"):
        images = draw(model, config(temperature=(temperature,), pixels=pixels), torch.Generator().manual_seed(0))
        assert torch.isfinite(images).all()
        assert images.min() >= 0
        assert images.max() <= 1


def test_readjusted_statistics_are_those_of_samples_at_the_temperature() -> None:
    """The same noise gives the same statistics, another temperature gives different ones, and weights are unchanged."""
    found = []
    for temperature in (0.7, 0.7, 0.5):
        model = small().eval()
        weights = {name: value.clone() for name, value in model.named_parameters()}
        readjust(
            model, config(temperature=(temperature,), readjust_bn=3, batch_size=4), torch.Generator().manual_seed(2)
        )
        assert not model.training
        assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())
        found.append(torch.cat([value.flatten() for value in read_statistics(model).values()]))
    own = torch.cat([value.flatten() for value in read_statistics(small().eval()).values()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], own)


def test_a_model_without_batch_norms_says_so() -> None:
    with pytest.raises(ValueError, match="--readjust-bn"):
        readjust(FlatVAE(FlatVAEConfig(conv_channels=4), Images()), config(readjust_bn=1), torch.Generator())


def test_commands_sample_per_group_and_readjust(copied: Path) -> None:
    for _ in range(1):
        done = running.call(
            "sample", "--run", copied, "--num", 3, "--temperature", 0.5, 0.9, "--readjust-bn", 2, "--batch-size", 4
        )
        assert done.code == 0, done.err
    assert (copied / "figures" / "samples_t0.5-0.9_seed0.png").is_file()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--temperature", 0], "temperature is 0"),
        (["--temperature", -0.5], "temperature is -0.5"),
        (["--temperature", 1, 1, 1], "3 values for 2 group"),
        (["--readjust-bn", -1], "--readjust-bn -1"),
        (["--temperature", 0, "--readjust-bn", 2], "temperature is 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(copied: Path, flags: list[Any], word: str) -> None:
    before = sorted(copied.rglob("*"))
    running.assert_one_error(running.call("sample", "--run", copied, "--num", 2, *flags), word)
    assert sorted(copied.rglob("*")) == before


def test_both_edges_score_the_same_draws(copied: Path) -> None:
    """Against a second model that was built with the other edges."""
    run = open_run(copied)
    exact = run.model
    assert isinstance(exact, NVAE)
    legacy = NVAE(exact.config.__class__(**{**vars(exact.config), "likelihood_edges": "legacy"}), run.spec)
    legacy.load_state_dict(exact.state_dict())
    data, alone = run.config.data.open("test"), Ranks(0, 1, CPU)
    one, other = (
        evaluation.evaluate(m, data, alone, batch_size=3, seed=0, importance_draws=5, both_edges=True).summary()
        for m in (exact, legacy.eval())
    )
    for name in ("elbo", "bits_per_dim", "importance_bound", "importance_bits_per_dim"):
        assert one[f"legacy_{name}"] == pytest.approx(other[name], rel=1e-6)
        assert other[f"exact_{name}"] == pytest.approx(one[name], rel=1e-6)
    assert not [
        key for key in evaluation.evaluate(exact, data, alone, batch_size=3, seed=0).summary() if "legacy" in key
    ]


def test_evaluate_shows_and_records_both_edges(copied: Path) -> None:
    done = running.call("evaluate", "--run", copied, "--iw-samples", 2)
    assert done.code == 0, done.err
    assert "negative ELBO, legacy edges" in done.out
    assert "2 samples, legacy edges" in done.out
    record = json.loads((copied / "evaluation-test.json").read_text())
    assert record["legacy_bits_per_dim"] == pytest.approx(
        elbo.bits_per_dim(-record["legacy_elbo"], 3 * 12 * 16), rel=1e-9
    )
