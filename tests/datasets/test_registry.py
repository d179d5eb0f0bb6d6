"""Names, options, specs and downloads: the first things that a user gets wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from drawn_data import make_celeba

import datasets
from datasets import download
from datasets.spec import DataError, ImageSpec


@pytest.mark.parametrize(
    ("name", "hint"), [("celebba", "mean celeba"), ("dSprite", "mean dsprites"), ("xyz", "folder for your own")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint) as caught:
        datasets.open_dataset(name)
    assert all(known in str(caught.value) for known in datasets.NAMES)


def test_an_unknown_option_is_answered_with_the_nearest(celeba_root: Path) -> None:
    with pytest.raises(DataError, match=r"celeba has no option 'hflips'; did you mean hflip\? It takes size"):
        datasets.open_dataset("celeba", celeba_root, hflips=True)
    assert "binarise" in datasets.option_names("mnist")


@pytest.mark.parametrize("name", datasets.NAMES)
def test_every_data_set_refuses_an_unknown_split(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name} has no split 'trian'; choose one of train, valid, test"):
        datasets.open_dataset(name, tmp_path, "trian")


def test_prepare_builds_and_verifies_every_split(celeba_root: Path) -> None:
    splits = datasets.prepare("celeba", celeba_root, size=16)
    assert list(splits) == ["train", "valid", "test"]
    (path,) = (celeba_root / ".strata_cache").glob("*.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    again = datasets.prepare("celeba", celeba_root, size=16)
    assert again["train"].recipe == splits["train"].recipe


def test_recipes_are_plain_data_that_tell_runs_apart(celeba_root: Path) -> None:
    options: list[dict[str, object]] = [{}, {"num_bits": 5}, {"size": 16}, {"hflip": True}, {"split": "valid"}]
    recipes = [datasets.open_dataset("celeba", celeba_root, **some).recipe for some in options]  # type: ignore[arg-type]
    texts = [json.dumps(recipe, sort_keys=True) for recipe in recipes]
    assert len(set(texts)) == len(texts)
    assert [json.loads(text) for text in texts] == recipes
    assert not any(str(celeba_root) in text for text in texts)


def test_an_image_spec_counts_and_refuses() -> None:
    spec = ImageSpec(channels=3, height=4, width=5, num_bits=5)
    assert (spec.num_dims, spec.max_value) == (60, 31)
    with pytest.raises(ValueError, match="num_bits is 9; give 1 to 8"):
        ImageSpec(channels=3, height=4, width=5, num_bits=9)
    with pytest.raises(ValueError, match="width is 0"):
        ImageSpec(channels=3, height=4, width=0)


def test_importing_stays_cheap() -> None:
    code = "import sys, datasets; print([name for name in ('scipy', 'torchvision', 'sklearn') if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_download_is_checked_before_it_gets_its_name(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(b"content")

    def refuse(path: Path) -> None:
        assert path.read_bytes() == b"content"
        raise DataError("wrong content")

    with pytest.raises(DataError, match="wrong content"):
        download.fetch(source.as_uri(), target, refuse)
    assert list(target.parent.iterdir()) == []
    download.fetch(source.as_uri(), target, lambda path: None)
    assert target.read_bytes() == b"content"
    with pytest.raises(DataError, match=r"cannot download .*; get it by hand and save it as .*target"):
        download.fetch((tmp_path / "nothing").as_uri(), target, lambda path: None)


def test_celeba_is_downloaded_with_gdown_or_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(DataError, match=r"needs gdown \(pip install gdown\); or get img_align_celeba\.zip"):
        datasets.open_dataset("celeba", tmp_path / "celeba", download=True)

    source = make_celeba(tmp_path / "source", zipped=True)
    names = [path.name for path in source.iterdir()]
    stand = types.SimpleNamespace(download=lambda id, output: Path(output).write_bytes((source / id).read_bytes()))
    monkeypatch.setitem(sys.modules, "gdown", stand)
    from torchvision.datasets import CelebA

    sums = {name: hashlib.md5((source / name).read_bytes()).hexdigest() for name in names}
    monkeypatch.setattr(CelebA, "file_list", [(name, sums[name], name) for name in names] + [("x", "x", "other.txt")])
    assert len(datasets.open_dataset("celeba", tmp_path / "celeba", download=True, size=8)) == 16
    monkeypatch.setattr(CelebA, "file_list", [(name, "0" * 32, name) for name in names])
    with pytest.raises(DataError, match="Google gave no valid"):
        datasets.open_dataset("celeba", tmp_path / "again", download=True)
    assert list((tmp_path / "again").iterdir()) == []


def test_a_download_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(1000))
    monkeypatch.setattr(download, "_MOST_BYTES", 999)
    with pytest.raises(DataError, match="more than 999"):
        download.fetch(source.as_uri(), target, lambda path: None)
    assert not target.exists()


@pytest.mark.parametrize("value", [1.0, True, "3", 0, 2**20])
def test_an_image_spec_takes_whole_numbers_within_bounds_only(value: object) -> None:
    with pytest.raises(ValueError, match="channels"):
        ImageSpec(channels=value, height=4, width=5)  # type: ignore[arg-type]
