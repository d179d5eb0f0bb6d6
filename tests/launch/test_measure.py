"""Numbers that a model does not have are not shown: a density's bits/dim, and an autoencoder's rate and ELBO."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

import datasets
from datasets import to_float
from launch.families import FAMILIES
from launch.report.tables import evaluation as evaluation_table
from launch.results.run import open_run
from launch.training import evaluation
from metrics.measure import Measure
from tests.launch import running, toy
from tests.launch.running import call

KINDS = {
    "density-nvae": ("nvae", ["--likelihood", "normal"]),
    "density-flat": ("flat_vae", ["--likelihood", "normal"]),
    "autoencoder": ("flat_vae", ["--objective", "ae"]),
    "denoising": ("flat_vae", ["--objective", "denoising", "--likelihood", "normal"]),
}
BINARY = datasets.ImageSpec(channels=1, height=32, width=32, num_bits=1)
OF_A_RATE = r"bits/dim|bits_per_dim|\bELBO\b|\bKL\b|\brate\b|units active|collapse"


@pytest.fixture(scope="module")
def trained_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, str]]]:
    """A run of each kind and everything that its training printed."""
    root = tmp_path_factory.mktemp("kinds")
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        found = {}
        for name, (family, typed) in KINDS.items():
            preset = running.MODEL if family == "nvae" else ["--preset", "tiny"]
            where = ["--dataset", "toy", "--run-dir", str(root / name), "--batch-size", "8", *running.LENGTH]
            result = call(f"train_{family}", *where, *preset, *typed)
            assert result.code == 0, result.err
            found[name] = (root / name, result.out + result.err)
        yield found


def numbers_of(text: str) -> str:
    """The lines of a training's output that show numbers."""
    return "\n".join(line for line in text.splitlines() if re.match(r"step |done: |warning: posterior", line))


def test_units_and_names() -> None:
    bits, density, autoencoder = Measure(), Measure("density"), Measure(has_rate=False)
    assert bits.per_dim(3.0) == 3.0
    assert density.per_dim(3.0) == pytest.approx(3.0 * math.log(2.0))
    assert "bits" not in density.unit
    for name in ("elbo", "val/rate", "importance_bits_per_dim", "kl_group/00", "kl_group_train/01", "train/loss"):
        assert bits.shows(name)
    assert [density.shows(n) for n in ("val/bits_per_dim", "bits_per_dim_95", "val/elbo")] == [False, False, True]
    hidden = ("bits_per_dim", "val/elbo", "train/negative_elbo", "rate", "kl_group/00", "kl_group_train/00")
    assert not any(map(autoencoder.shows, hidden))
    assert all(map(autoencoder.shows, ("train/loss", "val/distortion", "psnr", "optim/lr")))


def test_a_family_knows_the_kind_of_its_numbers() -> None:
    for name, (family, typed) in KINDS.items():
        config = FAMILIES[family].recipe(["--preset", "tiny"])[0]
        assert FAMILIES[family].measure(config, BINARY) == Measure()
        assert FAMILIES[family].measure(open_config(family, typed), BINARY) == Measure(
            "density" if "normal" in typed else "probability", has_rate=name.startswith("density")
        )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_bernoulli_of_grey_pixels_is_no_probability(family: str) -> None:
    """A constant image, with no latents, beats every discretised likelihood by this number."""
    grey = replace(BINARY, num_bits=8)
    bernoulli, auto = (open_config(family, ["--likelihood", name]) for name in ("bernoulli", "auto"))
    assert FAMILIES[family].measure(bernoulli, BINARY) == FAMILIES[family].measure(auto, grey) == Measure()
    measure = FAMILIES[family].measure(bernoulli, grey)
    assert measure == Measure("cross entropy")
    assert measure.unit == "nats/dim of a cross entropy"
    assert not measure.shows("val/bits_per_dim")
    assert measure.shows("val/elbo")


def open_config(family: str, typed: list[str]) -> object:
    config = FAMILIES[family].preset("tiny")
    chosen = dict(zip(typed[::2], typed[1::2], strict=True))
    model = replace(config.model, likelihood=chosen.get("--likelihood", "auto"))
    if "--objective" in chosen:
        config = replace(config, objective=replace(config.objective, objective=chosen["--objective"]))
    return replace(config, model=model)


@pytest.mark.parametrize("name", KINDS)
def test_training_prints_what_the_model_has(name: str, trained_kinds: dict[str, tuple[Path, str]]) -> None:
    run, printed = trained_kinds[name]
    said, valid = numbers_of(printed), json.loads((run / "summary.json").read_text())["valid"]
    assert f"{valid['distortion']:.1f}" in said
    assert "bits" not in said
    if name.startswith("density"):
        assert f"{valid['bits_per_dim'] * math.log(2.0):.3f} nats/dim of a density" in said
        assert f"ELBO {valid['elbo']:.1f}" in said
    else:
        assert not re.search(OF_A_RATE, said)


@pytest.mark.parametrize("name", KINDS)
def test_evaluate_and_score_print_what_the_model_has(
    name: str, trained_kinds: dict[str, tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.register(monkeypatch)
    run, _ = trained_kinds[name]
    evaluated = call("evaluate", "--run", run, "--iw-samples", "2")
    assert evaluated.code == 0, evaluated.err
    record = json.loads((run / "evaluation-test.json").read_text())
    assert record["no_latents"] is None  # probabilities of grey levels, with which neither kind compares
    assert "bits_per_dim" in record  # the names in records stay
    table = "\n".join(line for line in evaluated.out.splitlines() if re.search(r"\d", line))
    assert f"{record['distortion']:.2f}" in table
    assert "bits/dim" not in table
    scored = call("score", "--run", run, "--images", "40", "--elbo-images", "8", "--metrics", "mig", "--samples", "0")
    assert scored.code == 0, scored.err
    assert ("KL per group" in scored.out) == ("KL per group" in evaluated.out) == name.startswith("density")
    if not name.startswith("density"):
        assert not re.search(OF_A_RATE, table)


@pytest.mark.parametrize("name", KINDS)
def test_tensorboard_shows_what_the_model_has_and_the_records_hold_all(
    name: str, trained_kinds: dict[str, tuple[Path, str]]
) -> None:
    run, _ = trained_kinds[name]
    read = EventAccumulator(str(run), size_guidance={SCALARS: 0})
    read.Reload()
    tags = set(read.Tags()["scalars"])
    assert {"train/loss", "val/distortion", "val/psnr"} <= tags
    assert not any("bits_per_dim" in tag for tag in tags)
    assert any("elbo" in tag or "rate" in tag.split("/")[1] for tag in tags) == name.startswith("density")
    assert "val/bits_per_dim" in running.records(run)[-1]


def test_an_autoencoder_is_measured_at_its_means(
    trained_kinds: dict[str, tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its posterior's variance is not trained, so a draw would measure noise."""
    toy.register(monkeypatch)
    run = open_run(trained_kinds["autoencoder"][0])
    data = run.data("valid")
    x = to_float(data.images(range(len(data))), data.spec)
    with torch.no_grad():
        at_means = run.model(x, [torch.zeros(len(x), *shape) for shape in run.model.group_shapes])
    expected = -float(at_means.likelihood.log_prob(x).mean())
    recorded = json.loads((run.folder / "summary.json").read_text())["valid"]
    assert recorded["distortion"] == pytest.approx(expected, rel=1e-5)
    assert "importance_draws" not in recorded


def test_a_report_leaves_the_numbers_out(
    trained_kinds: dict[str, tuple[Path, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An autoencoder is compared with a VAE by distortion; its rate and ELBO are dashes."""
    toy.register(monkeypatch)
    vae = toy.train("flat_vae", tmp_path / "vae")
    out, autoencoder = tmp_path / "out", trained_kinds["autoencoder"][0]
    for run in (vae, autoencoder):
        few = ["--images", "40", "--elbo-images", "8", "--samples", "0", "--shuffles", "2", "--resamples", "2"]
        assert call("score", "--run", run, *few).code == 0
    result = call("compare", "--runs", vae, autoencoder, "--out", out, "--pictures", "0")
    assert result.code == 0, result.err
    text = (out / "report.md").read_text()
    (row,) = re.findall(
        r"^\|[^|\n]*\bae\b[^|\n]*\|(.*)$", text.partition("Held-out images")[2].partition("\n\n### ")[0], re.M
    )
    cells = [cell.strip() for cell in row.split("|")][:6]
    assert [cell == "-" for cell in cells] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]  # rate, ELBO, bits/dim, active units
    record = json.loads((out / "comparison.json").read_text())
    assert not any("elbo" in name and " ae" in name for name in record["means"])
    assert {d["quantity"]: d["difference"] for d in record["differences"]}["elbo"] is None
    assert text.count("The largest KL") == 1


def test_tables_and_lines_of_each_kind() -> None:
    result = {
        **{
            "elbo": 12.0,
            "elbo_95": 1.0,
            "rate": 3.0,
            "distortion": -15.0,
            "psnr": 20.0,
            "active_units": 1,
            "num_units": 2,
        },
        **{"bits_per_dim": -2.0, "bits_per_dim_95": 0.5, "kl_group": [3.0], "num_images": 7},
        **{"importance_draws": 5, "importance_bound": 13.0, "importance_bits_per_dim": -3.0},
    }
    bits = evaluation.describe(result, Measure()) + evaluation_table(result, None, Measure())
    assert "-2.000 bits/dim" in bits
    density = evaluation.describe(result, Measure("density")) + evaluation_table(result, None, Measure("density"))
    for number in ("-1.386 nats/dim of a density", "-2.079 with 5 importance samples", "-1.3863 ± 0.3466", "-2.0794"):
        assert number in density
    assert "-2.000" not in density
    grey = evaluation_table(result, None, Measure("cross entropy"))
    assert "-1.3863 ± 0.3466" in grey
    assert "a cross entropy: its numbers are not bits/dim" in grey
    distortion = evaluation.describe(result, Measure(has_rate=False))
    assert "-15.0" in distortion
    assert not re.search(OF_A_RATE, distortion)
