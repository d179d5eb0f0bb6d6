"""Configurations: flags, presets and JSON agree, and mistakes are named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from datasets import ImageSpec
from launch.console import flags
from launch.console.config import DataConfig, OptimConfig, RunConfig, SharedConfig, differences, from_json, to_json
from launch.families import FAMILIES, family_of, nvae
from launch.families.flat_vae import FLAT_PRESETS
from launch.families.nvae import NVAETrainConfig
from launch.training.folder import changed_keys, with_defaults
from tests.launch import running

ALL_PRESETS = {
    **{f"nvae {name}": preset for name, preset in nvae.NVAE_PRESETS.items()},
    **{f"flat {name}": preset for name, preset in FLAT_PRESETS.items()},
}
SMALL = NVAETrainConfig(preset="tiny")


def typed(*arguments: str) -> NVAETrainConfig:
    """Configuration that train_nvae.py parses from a command line."""
    preset = nvae.FAMILY.recipe(arguments)[0]
    return flags.parse(NVAETrainConfig, preset, list(arguments), prog="train_nvae.py", description="")


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    config = ALL_PRESETS[name].build()
    assert config.preset == name.split(" ", 1)[1]
    text = json.dumps(to_json(config))
    back = from_json(type(config), json.loads(text), "config.json")
    assert back == config
    assert differences(back, config) == []
    assert type(back.model) is type(config.model)


def test_json_keeps_what_was_typed() -> None:
    config = typed("--preset", "tiny", "--dataset", "folder", "--image-size", "12", "16", "--data-root", "some/where")
    assert from_json(NVAETrainConfig, json.loads(json.dumps(to_json(config))), "x") == config


def test_flags_beat_the_preset_which_beats_the_defaults() -> None:
    assert RunConfig().batch_size != 200
    assert typed("--preset", "mnist").run.batch_size == 200
    assert typed("--preset", "mnist", "--batch-size", "7").run.batch_size == 7
    assert typed("--batch-size", "7", "--preset=mnist").run.batch_size == 7
    for word in ("200", "16"):  # also where the flag repeats the default
        assert typed("--preset", "mnist", "--batch-size", word).run.batch_size == int(word)
    assert typed("--preset", "mnist", "--batch-size", "7").run.epochs == 400  # the rest of the preset stays


def test_the_data_set_chooses_its_recipe() -> None:
    assert typed().preset == "celeba64"
    assert typed("--dataset", "celeba").preset == "celeba64"
    assert typed("--dataset", "mnist").preset == "mnist"
    assert typed("--dataset", "folder").preset == "small"
    assert typed("--dataset", "mnist", "--preset", "tiny").preset == "tiny"
    assert typed("--dataset", "mnist", "--preset", "tiny").data.dataset == "mnist"
    assert typed("--dataset=mnist").data == DataConfig(dataset="mnist")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"run": None}, ["run"]),
        ({"extra": 1}, ["extra"]),
        ({"model": {"num_scales": "three"}}, ["model.num_scales"]),
        ({"optim": {"lr": None, "leraning_rate": 1}}, ["optim.lr", "optim.leraning_rate"]),
        ({"optim": {"lr": -1.0}}, ["optim", "--lr -1.0"]),
    ],
)
def test_a_damaged_configuration_names_its_fields(change: dict[str, Any], names: list[str]) -> None:
    data = to_json(SMALL)
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=r"config\.json .*NVAETrainConfig .*; restore it") as caught:
        from_json(NVAETrainConfig, data, "config.json")
    for name in names:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_configuration_of_another_kind_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="NVAETrainConfig"):
        from_json(NVAETrainConfig, data, "config.json")


def test_differences_name_what_was_changed() -> None:
    other = replace(SMALL, optim=replace(SMALL.optim, lr=0.5), data=DataConfig(dataset="frey"))
    assert differences(other, SMALL) == [("data.dataset", "frey", "celeba"), ("optim.lr", 0.5, 1e-2)]
    assert differences(SMALL, SMALL) == []


def test_a_setting_added_later_does_not_keep_an_older_run_from_resuming() -> None:
    defaults = to_json(type(SMALL)())
    saved = to_json(replace(SMALL, optim=replace(SMALL.optim, lr=0.5)))
    del saved["optim"]["grad_skip"], saved["data"]["split_by"], saved["preset"]
    older = with_defaults(saved, defaults)
    assert changed_keys(older, defaults | {"optim": {**defaults["optim"], "lr": 0.5}}) == changed_keys(
        to_json(SMALL), defaults
    )
    assert changed_keys(older, to_json(replace(SMALL, optim=replace(SMALL.optim, grad_skip=2.0)))) != []


def test_resuming_compares_what_matters() -> None:
    saved = to_json(SMALL)
    assert changed_keys(saved, to_json(SMALL)) == []
    elsewhere = replace(
        SMALL,
        run=replace(SMALL.run, resume="auto", batch_size=8, stop_at_step=3, checkpoint_every=9),
        optim=replace(SMALL.optim, accumulation=2),
        log=replace(SMALL.log, log_every=1),
        data=replace(SMALL.data, cache_dir="elsewhere"),  # type: ignore[arg-type]
    )
    assert changed_keys(saved, to_json(elsewhere)) == []
    other = replace(
        SMALL,
        run=replace(SMALL.run, seed=5, max_steps=9),
        optim=replace(SMALL.optim, lr=0.5),
        model=replace(SMALL.model, channels_enc=3),
    )
    assert changed_keys(saved, to_json(other)) == [
        "model.channels_enc: 64 -> 3",
        "optim.lr: 0.01 -> 0.5",
        "run.max_steps: None -> 9",
        "run.seed: 0 -> 5",
    ]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr_min", -1.0),
        ("weight_decay", -1.0),
        ("optimizer_eps", 0.0),
        ("grad_clip", -1.0),
        ("grad_skip", float("nan")),
        ("accumulation", 0),
        ("ema_decay", 1.0),
        ("lr_warmup", 1.1),
    ],
)
def test_values_that_make_no_sense_are_refused(flag: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^--{flag.replace('_', '-')} .*; "):
        OptimConfig(**{flag: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["--batch-sze", "--batchsize", "--Batch-size"])
def test_an_unknown_flag_is_answered_with_the_nearest(word: str) -> None:
    with pytest.raises(ValueError, match=rf"{word}.*; did you mean --batch-size\?"):
        typed("--preset", "tiny", word, "4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "fast"], ["--lr", "fast"]),
        (["--optimizer", "adamm"], ["adamm", "adamax"]),
        (["--max-steps", "0"], ["--max-steps 0; give 1 or more"]),
        (["--lr"], ["--lr"]),
        (["--eval-every", "0"], ["--eval-every 0; give 1 or more"]),
        (["--groups-per-scale", "1", "2"], ["groups_per_scale (1, 2)", "; give one positive number per scale"]),
    ],
)
def test_a_bad_value_is_named_in_one_line(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match="; ") as caught:
        typed("--preset", "tiny", *arguments)
    assert "\n" not in str(caught.value)
    assert "--- " not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("name", "near"), [("celebA64", "celeba64"), ("tny", "tiny"), ("ffhq", "ffhq256")])
def test_an_unknown_preset_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"no preset '{name}' \(did you mean '{near}'\?\); choose one of .*tiny"):
        typed("--preset", name)


@pytest.mark.parametrize("script", ["train_nvae", "train_flat_vae", "evaluate", "sample", "prepare_data"])
def test_help_explains_and_ends_well(script: str) -> None:
    result = running.call(script, "--help")
    assert result.code == 0
    assert result.err == ""
    assert f"python launch/{script}.py" in result.out or f"launch/{script}.py" in result.out
    assert len(result.out.splitlines()) > 10


@pytest.mark.parametrize("script", ["train_nvae", "train_flat_vae"])
def test_help_shows_the_flags_that_people_use_and_help_all_the_rest(script: str) -> None:
    short, whole = (running.call(script, flag).out for flag in ("--help", "--help-all"))
    for flag in ("--dataset", "--run-dir", "--max-steps", "--lr", "--help-all"):
        assert flag in short
    assert "--optimizer-eps" not in short
    assert "--optimizer-eps" in whole
    assert len(short.splitlines()) < 75 < len(whole.splitlines())


@pytest.mark.parametrize(
    ("script", "typed", "meant"),
    [
        ("train_nvae", "--learning-rate=1", "--lr"),
        ("train_nvae", "--amp", "--precision"),
        ("train_nvae", "--out", "--run-dir"),
        ("sample", "--runs", "--run"),
        ("compare", "--run", "--runs"),
    ],
)
def test_what_other_programs_call_a_flag_is_understood(script: str, typed: str, meant: str) -> None:
    result = running.call(script, typed, "x")
    assert result.code == 2
    assert typed.partition("=")[0] in result.err
    assert f"did you mean {meant}?" in result.err


def test_two_fields_of_one_name_are_refused_by_name() -> None:
    """A new family's model may not have a field that the data have: one flag cannot set both."""

    @dataclass(frozen=True, kw_only=True)
    class Model:
        channels: int = 8

    @dataclass(frozen=True, kw_only=True)
    class Config(SharedConfig):
        model: Model = field(default_factory=Model)

    for default in (None, Config()):
        with pytest.raises(ValueError, match=r"--channels .*data\.channels and model\.channels"):
            flags.parse(Config, default, [], prog="train_mine.py", description="")


# millions of parameters, from the published checkpoints; channels, height, width, bits of the data set
PUBLISHED = {
    "mnist": (33.36, (1, 28, 28, 1)),
    "cifar10": (130.85, (3, 32, 32, 8)),
    "celeba64": (153.28, (3, 64, 64, 8)),
    "imagenet32": (268.51, (3, 32, 32, 8)),
    "celebahq256": (330.80, (3, 256, 256, 5)),
    "ffhq256": (330.80, (3, 256, 256, 5)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipes_have_the_published_sizes(name: str) -> None:
    millions, (channels, height, width, bits) = PUBLISHED[name]
    spec = ImageSpec(channels=channels, height=height, width=width, num_bits=bits)
    config = nvae.NVAE_PRESETS[name].build()
    with torch.device("meta"):
        model = family_of(config).build_model(config, spec)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    data = config.data
    assert data.image_size in (None, (height,))  # folders are brought to this size; the others have it
    assert (data.num_bits or {"mnist": 1}.get(name, 8)) == bits


@pytest.mark.parametrize("name", [name for name in PUBLISHED if f"{name}-1gpu" in nvae.NVAE_PRESETS])
def test_one_gpu_variants_keep_model_and_global_batch(name: str) -> None:
    gpus = {"mnist": 2, "cifar10": 8, "celeba64": 8, "imagenet32": 24, "celebahq256": 24, "ffhq256": 24}[name]
    published, one = (nvae.NVAE_PRESETS[n].build() for n in (name, f"{name}-1gpu"))
    assert one.run.batch_size * one.optim.accumulation == gpus * published.run.batch_size
    assert replace(one.model, checkpointing=False) == published.model
    assert one.objective == published.objective
    assert one.data == published.data


def test_families_have_configurations_of_their_own() -> None:
    assert len({family.config for family in FAMILIES.values()}) == len(FAMILIES)
    for name, family in FAMILIES.items():
        assert family.name == name
        assert family_of(family.config()) is family
