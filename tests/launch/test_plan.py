"""Prediction of a run's needs before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from benchmarks.counting import count_work
from launch import plan
from launch.families.nvae import NVAE_PRESETS
from launch.plan import PlanConfig
from launch.training import memory
from launch.training.memory import GIB, StepMemory
from nvae.config import CellArch


def lines_of(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps({"benchmark": "nvae-step", "hardware": "a card", **row}) + "\n" for row in rows))
    return path


def test_the_whole_answer(tmp_path: Path) -> None:
    row = {
        "preset": "tiny",
        "variant": "bf16",
        "batch_size": 16,
        "images_per_s": 50.0,
        "gflop": 10.0,
        "median_s": 0.32,
    }
    slower = {**row, "images_per_s": 40.0, "variant": "fp32"}
    file = lines_of(tmp_path / "speed.jsonl", slower, row, {**row, "variant": "plain", "images_per_s": 1e9})
    said = "\n".join(plan.plan(PlanConfig(preset="tiny", gpus=2, num_images=360_000, throughput=file)))
    assert "1.00 hours per epoch of 360,000 images" in said
    assert "measured: bf16, batch 16, a card" in said
    assert "images 64x64x3, 8 bits" in said


def test_throughput_of_another_recipe_is_scaled_by_its_work(tmp_path: Path) -> None:
    row = {
        "preset": None,
        "variant": "fp32",
        "batch_size": 8,
        "images_per_s": 4.0,
        "gflop": 100.0,
        "median_s": 2.0,
    }
    file = lines_of(tmp_path / "speed.jsonl", row)
    estimated = memory.throughput(file, "tiny", gflop=5.0)
    assert estimated.images_per_s == pytest.approx(10.0)  # 50 GFLOP/s over 5 GFLOP an image
    assert "estimated from 50 GFLOP/s" in estimated.source


def test_without_a_measurement_it_says_how_to_make_one(tmp_path: Path) -> None:
    assert "benchmarks/run.py nvae-step --preset tiny" in list(plan.plan(PlanConfig(preset="tiny")))[-1]
    with pytest.raises(ValueError, match=r"there is no .*; measure: python benchmarks/run.py nvae-step --preset tiny"):
        memory.throughput(tmp_path / "none.jsonl", "tiny", 1.0)
    other = lines_of(tmp_path / "other.jsonl", {"benchmark": "data", "variant": "cache"})
    with pytest.raises(ValueError, match="holds no training steps of NVAE"):
        memory.throughput(other, "tiny", 1.0)
    with pytest.raises(ValueError, match="give at least 1"):
        PlanConfig(gpus=0)


def test_work_grows_with_the_batch_but_operations_do_not() -> None:
    config = NVAE_PRESETS["tiny"].build()
    one, two = (count_work(config, memory.image_spec(config), batch) for batch in (2, 4))
    assert one.operations == two.operations > 500
    assert two.gflop == pytest.approx(2 * one.gflop)
    assert one.gb_touched < two.gb_touched < 2 * one.gb_touched  # weights are touched once
    assert one.gflop / 2 == pytest.approx(memory.gflop_per_image(config, memory.image_spec(config)))


def test_largest_batch_leaves_a_tenth_free() -> None:
    needs = StepMemory(num_parameters=1, state_bytes=int(4 * GIB), activation_bytes_per_image=int(GIB // 2))
    assert memory.largest_batch(needs, 10.0) == 10  # (9 - 4) GiB of halves
    assert memory.largest_batch(needs, 4.0) == 0


def test_checkpointing_keeps_at_most_15_percent() -> None:
    """Share of the recipe's own activations; a plain port keeps a third more than those."""
    config = NVAE_PRESETS["small"].build()
    spec = memory.image_spec(config)
    without, within = (memory.count(memory.with_checkpointing(config, on), spec) for on in (False, True))
    assert within.num_parameters == without.num_parameters
    assert within.activation_bytes_per_image <= 0.15 * without.activation_bytes_per_image


@pytest.mark.parametrize("arch", get_args(CellArch))
def test_the_memory_of_every_cell_is_counted(arch: CellArch) -> None:
    config = NVAE_PRESETS["tiny"].build()
    config = replace(config, model=replace(config.model, cell_arch=arch))
    assert memory.count(config, memory.image_spec(config)).activation_bytes_per_image > 0


def test_images_of_the_published_recipes() -> None:
    faces = NVAE_PRESETS["celebahq256"].build()
    assert (memory.image_spec(faces).height, memory.image_spec(faces).num_bits) == (256, 5)
    assert memory.num_training_images(faces) == 27_000
    assert memory.num_training_images(NVAE_PRESETS["celebahq256-1gpu"].build()) == 27_000
    assert memory.num_training_images(NVAE_PRESETS["celeba64"].build()) == 162_770


def test_work_of_the_celeba_recipe() -> None:
    """85.6 GFLOP forward were computed for the published model by hand; doubling behind the expansion saves a little."""
    config = NVAE_PRESETS["celeba64"].build()
    assert memory.gflop_per_image(config, memory.image_spec(config)) / 3.0 == pytest.approx(85.6, rel=0.02)


def test_a_trial_scales_its_step_to_the_run() -> None:
    said = memory.says_time(0.5, timed_images=2, images=16, total_steps=900)
    assert "4 s per step" in said
    assert "times 8" in said
    assert "1 h 0 min for 900 steps" in said


def test_a_trial_of_a_large_model_takes_few_images_on_a_cpu() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for name, size in (("celeba64", 2), ("tiny", NVAE_PRESETS["tiny"].build().run.batch_size)):
        config = NVAE_PRESETS[name].build()
        spec = memory.image_spec(config)
        assert memory.shortened(config, spec, cpu).run.batch_size == size
        assert memory.shortened(config, spec, cuda).run.batch_size == config.run.batch_size


def test_a_step_fits_with_a_tenth_of_the_memory_left() -> None:
    cpu = torch.device("cpu")
    assert memory.fits(90, 100)
    assert not memory.fits(91, 100)
    assert memory.fits(91, None)
    assert "does not fit" in memory.says_memory(4 * 2**30, 2**30, cpu)
    assert "4.0 GiB" in memory.says_memory(4 * 2**30, 2**30, cpu)
    assert "unknown" in memory.says_memory(4 * 2**30, None, cpu)
    free = memory.free_bytes(cpu)
    assert free is None or free > 0
