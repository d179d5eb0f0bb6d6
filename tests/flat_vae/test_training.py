"""The flat family through the trainer and its command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datasets import ImageSpec
from flat_vae import adversary, build_objective
from launch import train_flat_vae
from launch.families import FAMILIES, family_of, flat_vae
from launch.families.flat_vae import FlatTrainConfig
from launch.results.run import open_run
from launch.training import start
from tests.launch import running

SPECS = {
    "dsprites": ImageSpec(channels=1, height=64, width=64, num_bits=1),
    "frey": ImageSpec(channels=1, height=28, width=20, num_bits=8),
    "celeba": ImageSpec(channels=3, height=64, width=64, num_bits=8),
    "folder": ImageSpec(channels=3, height=64, width=64, num_bits=8),
}
SMALL = {
    "--preset": "tiny",
    "--conv-channels": "4",
    "--latent-dim": "3",
    "--max-steps": "6",
    "--batch-size": "4",
    "--checkpoint-every": "3",
    "--eval-every": "100",
    "--log-every": "1",
    "--figure-images": "4",
    "--iw-samples": "2",
}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.draw(tmp_path_factory.mktemp("flat") / "images")


def flags(data: Path, run: Path, *more: str) -> list[str]:
    small = [word for flag in SMALL.items() for word in flag]
    return ["--dataset", "folder", "--data-root", str(data), "--run-dir", str(run), *small, *more]


@pytest.mark.parametrize("name", flat_vae.FLAT_PRESETS)
def test_every_preset_builds(name: str) -> None:
    config = flat_vae.FLAT_PRESETS[name].build()
    assert config.preset == name
    spec = SPECS[config.data.dataset]
    model = family_of(config).build_model(config, spec)
    build_objective(config.objective, model, 100, 1000)  # type: ignore[arg-type]
    assert len(FAMILIES["flat_vae"].describe(config, spec)) == 1
    assert config.optim.ema_decay == config.optim.weight_decay == config.optim.lr_warmup == 0.0


def test_typed_flags_replace_conflicting_ones_of_the_preset() -> None:
    preset, defaults = flat_vae.FAMILY.recipe(["--preset", "frey", "--beta-norm", "0.1"])
    assert preset.objective.beta_pixel_mean == 1e-3
    assert defaults.objective.typed() == {}
    assert flat_vae.FAMILY.recipe(["--preset", "mlp-beta5", "--objective", "factor"])[1].objective.typed() == {}
    assert flat_vae.FAMILY.recipe(["--preset", "mlp-beta5"])[1].objective.beta == 5.0
    assert flat_vae.FAMILY.recipe(["--dataset", "frey"])[1].preset == "frey"
    assert flat_vae.FAMILY.recipe(["--preset", "tiny"])[1].run.max_steps == 600
    assert flat_vae.FAMILY.recipe(["--preset", "tiny", "--epochs", "4"])[1].run.max_steps is None


def test_own_images_of_any_size_are_trained_for_thousands_of_steps(tmp_path: Path) -> None:
    """A few hundred images give few steps in 30 epochs, and photographs are of many sizes."""
    running.draw(tmp_path / "small", {"train": 9, "valid": 1})
    running.draw(tmp_path / "small" / "train" / "large", {"train": 3}, height=70, width=40)
    typed = ["--dataset", "folder", "--data-root", tmp_path / "small", "--run-dir", tmp_path / "run", "--dry-run"]
    result = running.call("train_flat_vae", *typed)
    assert result.code == 0, result.err
    assert "preset photos" in result.out
    assert "12 training images 64x64x3" in result.out
    assert "2,000 steps" in result.out


def test_a_folder_that_holds_a_run_is_refused_before_images_are_decoded(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    result = running.call("train_flat_vae", *flags(tmp_path / "nowhere", tmp_path / "run"))
    running.assert_one_error(result, str(tmp_path / "run"), "--resume auto", "--run-dir")


def test_runs_on_two_folders_of_images_have_two_folders() -> None:
    preset = flat_vae.FLAT_PRESETS["photos"].build()
    configs = [replace(preset, data=replace(preset.data, data_root=Path(f"data/{name}"))) for name in ("cats", "dogs")]
    assert [str(start.default_run_dir(config)) for config in configs] == [
        "runs/cats-flat-vae-photos-vae-seed0",
        "runs/dogs-flat-vae-photos-vae-seed0",
    ]
    assert start.default_run_dir(preset) == Path("runs/folder-flat-vae-photos-vae-seed0")


@pytest.mark.parametrize(
    "objective",
    [
        ["--objective", "factor"],
        ["--objective", "capacity", "--capacity-warmup", "1"],
        ["--objective", "beta", "--beta-warmup", "1"],
        ["--objective", "tc"],
        ["--objective", "denoising"],
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    objective: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adversary, "HIDDEN_UNITS", 20)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert running.call("train_flat_vae", *flags(images, whole, *objective)).code == 0
    assert running.call("train_flat_vae", *flags(images, torn, *objective, "--stop-at-step", "3")).code == 0
    result = running.call("train_flat_vae", *flags(images, torn, *objective, "--resume", "auto"))
    assert result.code == 0, result.err
    running.assert_same(running.newest(torn), running.newest(whole))
    assert running.records(torn) == running.records(whole)


def test_a_run_leaves_its_pictures_and_a_model_that_loads(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = running.call(
        "train_flat_vae", *flags(images, run, "--objective", "beta", "--beta-norm", "0.5", "--latent-dim", "2")
    )
    assert result.code == 0, result.err
    # 576 pixels and channels, 2 latents: .5 * 576 / 2
    assert "beta 144 = beta-norm 0.5 = beta-pixel-mean 0.25" in result.out
    drawn = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"traversal", "kl_per_latent", "aggregate_posterior", "manifold", "reconstruction", "samples_t1.0"} <= drawn
    record = json.loads((run / "config.json").read_text())
    assert record["family"] == "flat_vae"
    assert record["config"]["objective"]["beta_norm"] == 0.5
    assert record["config"]["objective"]["beta_warmup"] == 0.0  # resolved
    saved = open_run(run)
    assert isinstance(saved.config, FlatTrainConfig)
    assert saved.new_model().group_shapes == [(2,)]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--beta", "2", "--beta-norm", "1"], "--beta and --beta-norm are forms of one weight"),
        (["--objective", "vae", "--gamma", "2"], "--gamma does nothing for objective vae"),
        (["--network", "burgess"], "choose network mlp or frey or conv"),
        (["--objective", "grouped", "--latent-groups", "3", "2"], "latent groups (3, 2) for 3 latents"),
        (["--objective", "tc", "--batch-size", "1"], "give a --batch-size from 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(typed: list[str], said: str, images: Path, tmp_path: Path) -> None:
    result = running.call("train_flat_vae", *flags(images, tmp_path / "run", *typed))
    assert result.code == 2
    assert said.replace("; ", "\n  fix: ") in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_help_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train_flat_vae.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in flat_vae.FLAT_PRESETS)
