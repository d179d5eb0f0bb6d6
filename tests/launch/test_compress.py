"""Code lengths: measured bits against the negative ELBO, bit-exact decoding, and foreign files."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flat_vae import FlatVAE, FlatVAEConfig
from launch.results import bits_back, container
from launch.results.bits_back import BitsBack, Ints
from metrics import elbo
from metrics.model import VAE
from tests.launch import running
from tests.nvae.small import Images, small

pytest.importorskip("constriction", reason="the entropy coder of the dev extra is not installed")


def drawn_images(channels: int, num_bits: int, num: int) -> list[Ints]:
    """Smooth waves of random phase with a little noise, quantised: something to learn."""
    source = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] / 16.0
    images = []
    for _ in range(num):
        phase = source.uniform(0.0, 6.0, (channels, 3))
        waves = [0.5 + 0.4 * np.sin(a + b * y + c * x) for a, b, c in phase]
        noisy = np.clip(np.stack(waves) + source.normal(0.0, 0.02, (channels, 16, 16)), 0.0, 1.0)
        images.append(np.rint(noisy * (2**num_bits - 1)).astype(np.int32))
    return images


def floats(model: VAE, images: list[Ints]) -> Tensor:
    return torch.from_numpy(np.stack(images)).float() / (2**model.spec.num_bits - 1)


def trained(model: nn.Module, images: list[Ints], steps: int) -> Any:
    """Train for a few steps, so that posteriors differ from priors."""
    x = floats(model, images)  # type: ignore[arg-type]
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for step in range(steps):
        batch = x[torch.randperm(len(x))[:16]]
        loss = -elbo.terms(model.train()(batch), batch).elbo.mean() / batch[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss), step
    return model.eval()


@functools.cache
def make(kind: str) -> tuple[VAE, list[Ints]]:
    channels, num_bits = {"nvae": (3, 8), "nvae one bit": (1, 1), "flat": (1, 5), "flat one bit": (1, 1)}[kind]
    spec = Images(channels=channels, num_bits=num_bits)
    images = drawn_images(channels, num_bits, 64 if num_bits == 8 else 192)
    torch.manual_seed(3)
    if kind.startswith("nvae"):
        return trained(small(spec, preprocess_cells=1, postprocess_cells=1), images, 25), images
    settings = FlatVAEConfig(latent_dim=4, network="mlp" if num_bits == 1 else "conv", conv_channels=8)
    return trained(FlatVAE(settings, spec), images, 100), images


def codec_of(model: VAE, images: list[Ints], seed: int = 0) -> BitsBack:
    halvings = bits_back.choose_halvings(model, floats(model, images[:32]), torch.Generator().manual_seed(0))
    return BitsBack(model, halvings, seed)


def negative_elbo_bits(model: VAE, images: list[Ints], draws: int = 8) -> float:
    x = floats(model, images)
    with torch.no_grad():
        values = [float(elbo.terms(model(x), x).elbo.double().mean()) for _ in range(draws)]
    return -float(np.mean(values)) / float(np.log(2.0))


@pytest.mark.parametrize("kind", ["nvae", "nvae one bit", "flat", "flat one bit"])
def test_images_cost_their_negative_elbo_and_come_back_exactly(kind: str) -> None:
    model, images = make(kind)
    # code lengths of 1-bit images are short: one draw of the latents changes those of the flat VAE by 1 %
    seeds = range({"flat one bit": 4, "nvae one bit": 2}.get(kind, 1))
    first = codec_of(model, images)
    codecs = [replace(first, seed=seed) for seed in seeds]
    files = [bits_back.encode(codec, images) for codec in codecs]
    expected = negative_elbo_bits(model, images, 16)
    lengths = [coded.net_bits / len(images) for coded in files]
    assert abs(float(np.mean(lengths)) / expected - 1.0) < 0.02, (lengths, expected)
    assert 0 < files[0].num_initial < len(files[0].words)
    restored = bits_back.decode(codecs[0], files[0], len(images))
    assert all(np.array_equal(a, b) for a, b in zip(restored, images, strict=True))


def test_one_image_needs_all_its_initial_bits() -> None:
    """Bits back saves nothing on a single image, whose total is at least -log p(x, z)."""
    model, images = make("flat one bit")
    coded = bits_back.encode(codec_of(model, images), images[:1])
    assert coded.bits > coded.net_bits
    assert coded.bits >= negative_elbo_bits(model, images[:1], 64)


def test_images_unlike_any_seen_are_still_lossless() -> None:
    model, images = make("nvae")
    odd = [np.full((3, 16, 16), 255, np.int32), np.random.default_rng(1).integers(0, 256, (3, 16, 16)).astype(np.int32)]
    codec = codec_of(model, images)
    restored = bits_back.decode(codec, bits_back.encode(codec, odd), 2)
    assert all(np.array_equal(a, b) for a, b in zip(restored, odd, strict=True))


def test_narrow_posteriors_get_fine_grids() -> None:
    model, images = make("flat")
    assert isinstance(model, FlatVAE)
    model = copy.deepcopy(model)
    x = floats(model, images[:32])
    source = torch.Generator().manual_seed(0)
    before = bits_back.choose_halvings(model, x, source)[0]
    with torch.no_grad():
        model.log_variance.bias -= 2.0 * np.log(16.0)  # standard deviations a sixteenth of what they were
    after = bits_back.choose_halvings(model, x, source)[0]
    narrow = [b - a for a, b in zip(before, after, strict=True) if a > 1]
    assert narrow
    assert all(3 <= gained <= 4 for gained in narrow)


def test_another_seed_or_another_model_does_not_decode() -> None:
    model, images = make("flat one bit")
    coded = bits_back.encode(codec_of(model, images), images[:4])
    with pytest.raises(ValueError, match="decompress"):
        bits_back.decode(codec_of(model, images, seed=1), coded, 4)


def test_models_without_code_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="have flows"):
        bits_back.check_codable(small(num_flows=1))
    normal = FlatVAE(FlatVAEConfig(likelihood="normal", network="conv"), Images())
    with pytest.raises(ValueError, match="Gaussian"):
        bits_back.check_codable(normal)
    grey = FlatVAE(FlatVAEConfig(likelihood="bernoulli", network="conv"), Images())
    with pytest.raises(ValueError, match="likelihood on 8-bit"):
        bits_back.check_codable(grey)


@pytest.fixture(scope="module")
def file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compressed") / "images.strata"
    done = running.call("compress", "--run", trained, "--split", "test", "--out", path)
    assert done.code == 0, done.err
    assert "restores every pixel" in done.out
    return path


def test_command_line_compresses_and_decompresses(trained: Path, file: Path, tmp_path: Path) -> None:
    done = running.call("compress", "--run", trained, "--decompress", file, "--out", tmp_path / "back")
    assert done.code == 0, done.err
    images = np.load(tmp_path / "back" / "images.npy", allow_pickle=False)
    header, words = container.from_bytes(file.read_bytes(), str(file))
    assert images.shape == (7, 3, 12, 16)
    assert images.dtype == np.uint8
    assert (header.count, header.num_words) == (7, len(words))
    assert (tmp_path / "back" / "preview.png").is_file()


def _edit(content: bytes, **changes: Any) -> bytes:
    header, words = container.from_bytes(content, "file")
    return container.to_bytes(container.Header(**{**vars(header), **changes}), words)


DAMAGE: dict[str, tuple[Any, str]] = {
    "empty": (lambda c: b"", "give one that it wrote"),
    "foreign": (lambda c: b"something else altogether, of some length", "give one that it wrote"),
    "version": (lambda c: c[:16] + struct.pack("<I", 9) + c[20:], "has format 9"),
    "header cut": (lambda c: c[:60], "truncated within its header"),
    "header broken": (lambda c: c[:24] + b"?" + c[25:], "damaged header"),
    "cut": (lambda c: c[:-5], "truncated or"),
    "extended": (lambda c: c + b"1234", "truncated or"),
    "flipped": (lambda c: c[:-9] + bytes([c[-9] ^ 1]) + c[-8:], "do not match its checksum"),
    "other checkpoint": (lambda c: _edit(c, checkpoint="0" * 32), "which is not in"),
    "other floats": (lambda c: _edit(c, arithmetic="0" * 32), "floats differ"),
    "other pixels": (lambda c: _edit(c, pixels="0" * 32), "decompress"),
    "other grids": (lambda c: _edit(c, halvings=[[1]]), "does not fit the model"),
    "wrong type": (lambda c: _edit(c, seed="1"), "damaged header (seed"),
    "fine grids": (lambda c: _edit(c, halvings=[[10**6]]), "damaged header (halvings"),
    "negative": (lambda c: _edit(c, num_initial=-1), "damaged header (num_initial"),
    "many images": (lambda c: _edit(c, count=10**12), "damaged header"),
    "more images": (lambda c: _edit(c, count=60), "decompress"),
    "other weights": (lambda c: _edit(c, weights="best"), "damaged header (weights"),
    "other offsets": (lambda c: _edit(c, seed=99), "decompress"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_and_foreign_files_are_refused_in_one_line(
    trained: Path, file: Path, tmp_path: Path, what: str
) -> None:
    damage, message = DAMAGE[what]
    (tmp_path / "bad").write_bytes(damage(file.read_bytes()))
    done = running.call("compress", "--run", trained, "--decompress", tmp_path / "bad", "--out", tmp_path / "out")
    running.assert_one_error(done, message)
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_run_is_refused(trained: Path, data: Path, file: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    for path in (other / "checkpoints").iterdir():
        path.unlink()
    done = running.call("compress", "--run", other, "--decompress", file, "--out", tmp_path / "out")
    running.assert_one_error(done, "was compressed with checkpoint", "give the run that compressed it")


def test_header_is_plain_json(file: Path) -> None:
    content = file.read_bytes()
    _, size = struct.unpack("<II", content[16:24])
    assert json.loads(content[24 : 24 + size])["count"] == 7


def test_a_folder_in_place_of_the_output_file_is_refused(trained: Path, tmp_path: Path) -> None:
    running.assert_one_error(running.call("compress", "--run", trained, "--out", tmp_path), "is a folder")
