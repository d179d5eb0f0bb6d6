"""Importing published checkpoints: files in the published form, inconsistent files, and malicious files."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.results import importing
from launch.results.importing import data_config, import_checkpoint
from launch.results.run import open_run
from nvae import official
from tests.launch import running
from tests.nvae.published import ARGS, published_form, randomised

TRAINING_ARGS = {"root": "somewhere", "batch_size": 4, "epochs": 2, "seed": 1, "num_x_bits": 8}


def save_as_published(path: Path, state: dict[str, Any], args: dict[str, Any], *, zipped: bool = True) -> Path:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adamax(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "global_step": 120,
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict(),
        "grad_scalar": {"scale": 1024.0},
        "args": argparse.Namespace(**args),
        "arch_instance": {"normal_enc": ["res_bnswish", "res_bnswish"]},
        "an_old_files_key": [1, 2],
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return published_form(randomised(ARGS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, torch.Tensor]) -> Path:
    args = {**ARGS, **TRAINING_ARGS, "an_unheard_of_argument": 7}
    path = tmp_path_factory.mktemp("published") / "checkpoint.pt"
    return save_as_published(path, weights, args)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_imported_run_is_the_model_that_was_saved(tmp_path: Path, zipped: bool) -> None:
    model = randomised(ARGS)
    path = save_as_published(tmp_path / "c.pt", published_form(model), {**ARGS, "odd": None}, zipped=zipped)
    assert import_checkpoint(path, tmp_path / "run") == ["odd"]
    run = open_run(tmp_path / "run")
    imported: Any = run.model
    x = torch.randint(256, (2, 3, 32, 32)) / 255
    noise = [torch.randn(2, *shape) for shape in model.group_shapes]
    torch.testing.assert_close(imported(x, noise).likelihood.mean, model(x, noise).likelihood.mean, rtol=0, atol=0)
    assert run.step == 120
    assert imported(x, noise).likelihood.edges == "exact"
    assert not list(tmp_path.glob(".*"))


def test_legacy_edges_are_kept_where_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    import_checkpoint(checkpoint, tmp_path / "run", edges="legacy")
    assert open_run(tmp_path / "run").config.model.likelihood_edges == "legacy"  # type: ignore[attr-defined]


def test_command_line_imports_and_samples(tmp_path: Path, checkpoint: Path) -> None:
    run = tmp_path / "run"
    done = running.call("import_official", checkpoint, "--out", run)
    assert done.code == 0, done.err
    assert "an_unheard_of_argument" in done.err
    drawn = running.call("sample", "--run", run, "--temperature", 0.7, "--num", 2)
    assert drawn.code == 0, drawn.err
    assert list((run / "figures").glob("samples*.png"))


def test_training_does_not_go_on_from_an_imported_run(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    """The message says that the optimiser's state is missing instead of listing every setting that differs."""
    run = tmp_path / "run"
    import_checkpoint(checkpoint, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = running.call("train_nvae", *running.flags(data, run, "--resume", "auto"))
    running.assert_one_error(refused, "weights without an optimiser's state", "choose another --run-dir")
    running.assert_one_error(running.call("train_nvae", *running.flags(data, run)), "already holds a run")
    (run / ".lock").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("case", ["a_mnist", "b_celeba64", "c_celeba64_nf1", "d_bnelu"])
def test_golden_case_imports_with_its_numbers(tmp_path: Path, shared: Path, case: str) -> None:
    golden = torch.load(shared / "golden" / "nvae" / f"{case}.pt", weights_only=True)
    path = save_as_published(tmp_path / "c.pt", golden["state_dict"], golden["args"])
    import_checkpoint(path, tmp_path / "run", edges="legacy")
    model = open_run(tmp_path / "run").model
    x = golden["x"][:, :, 2:30, 2:30] if case == "a_mnist" else golden["x"]
    output = model(x, golden["noise"])
    recon = -output.likelihood.log_prob(x)
    torch.testing.assert_close(recon, golden["eval"]["recon_loss"], rtol=1e-5, atol=0)


class Attack:
    """An object that would run a command if the ordinary loader unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("place", ["args", "state_dict", "extra"])
@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_files_are_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    content: dict[str, Any] = {"state_dict": {}, "args": argparse.Namespace(**ARGS)}
    content[place] = {"args": argparse.Namespace(x=Attack()), "state_dict": {"w": Attack()}, "extra": Attack()}[place]
    torch.save(content, "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"posix\.system.*was not executed"):
        import_checkpoint(Path("bad.pt"), Path("run"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": 3}, "holds no arguments"),
        ({"args": argparse.Namespace(**ARGS, odd=torch.zeros(1))}, r"plain values \(odd\)"),
        ({"state_dict": {"stem.weight": 3}}, "table of tensors"),
        ({"args": argparse.Namespace(dataset="cifar10")}, "arguments lack arch_instance"),
        ({"args": argparse.Namespace(**{**ARGS, "num_channels_enc": "many"})}, "do not describe a model"),
        ({"args": argparse.Namespace(**{**ARGS, "num_latent_scales": 1})}, r"missing \(.*unexpected \("),
        ({"args": argparse.Namespace(**{**ARGS, "dataset": "sounds"})}, "'sounds'"),
        ({"args": None, "state_dict": None}, "table of tensors|no arguments"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(
    tmp_path: Path, weights: dict[str, torch.Tensor], changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "c.pt"
    torch.save({"state_dict": weights, "args": argparse.Namespace(**ARGS), **changes}, path)
    with pytest.raises(ValueError, match=message) as caught:
        import_checkpoint(path, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, 3])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="lacks state_dict or args"):
        importing.read(tmp_path / "c.pt")


@pytest.mark.parametrize("kept", [0, 10, 300, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_are_refused_in_one_line(
    tmp_path: Path, weights: dict[str, torch.Tensor], kept: float, zipped: bool
) -> None:
    whole = save_as_published(tmp_path / "whole.pt", weights, ARGS, zipped=zipped).read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(ValueError, match=r"cut\.pt") as caught:
        importing.read(path)
    assert "\n" not in str(caught.value)


def test_a_bad_file_ends_the_command_with_code_2_and_two_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    done = running.call("import_official", tmp_path / "bad.pt", "--out", tmp_path / "run")
    running.assert_one_error(done, "bad.pt", "damaged")
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="exists; choose another"):
        import_checkpoint(checkpoint, tmp_path / "run")


def test_data_sets_by_their_published_names() -> None:
    named = {name: data_config({**ARGS, "dataset": name}) for name in ("mnist", "cifar10", "celeba_64", "ffhq")}
    assert [named[name].dataset for name in named] == ["mnist", "cifar10", "celeba", "folder"]
    assert (named["ffhq"].image_size, named["ffhq"].num_bits) == ((256,), 8)
    assert official.image_spec({**ARGS, "dataset": "mnist"}).num_bits == 1


def test_a_run_records_the_training_that_the_arguments_tell(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    training = {"epochs": 400, "batch_size": 32, "learning_rate": 0.02, "learning_rate_min": 1e-5, "seed": 3}
    args = {**ARGS, **training, "weight_decay": 1e-3, "warmup_epochs": 5}
    import_checkpoint(save_as_published(tmp_path / "c.pt", weights, args), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert {name: config["run"][name] for name in ("epochs", "batch_size", "seed")} == {
        "epochs": 400,
        "batch_size": 32,
        "seed": 3,
    }
    optim = {"lr": 0.02, "lr_min": 1e-5, "lr_warmup": 5 / 400, "weight_decay": 1e-3, "ema_decay": 0.0}
    assert {name: config["optim"][name] for name in optim} == optim


@pytest.mark.parametrize(
    "args", [{"epochs": 0, "warmup_epochs": 5}, {"batch_size": None, "seed": "x"}, {"epochs": 1e999}]
)
def test_odd_training_arguments_do_not_keep_weights_from_being_read(
    tmp_path: Path, weights: dict[str, torch.Tensor], args: dict[str, Any]
) -> None:
    import_checkpoint(save_as_published(tmp_path / "c.pt", weights, {**ARGS, **args}), tmp_path / "run")
    open_run(tmp_path / "run")


def test_run_records_what_it_came_from(tmp_path: Path, checkpoint: Path) -> None:
    import_checkpoint(checkpoint, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["published"] == {"epoch": 3, "unknown_arguments": ["an_unheard_of_argument"]}
    assert "somewhere" not in json.dumps(record)
