"""What is fuzzed: each target damages a genuine input and reads it as the project does.

A target returns True where the damaged input was read as something, False where it was refused with a ValueError whose
message is one line; every other end is a finding. Where the right result is known, a wrong one is a finding too.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.io
import torch
from PIL import Image

from datasets import cache, celeba, dsprites, folder, frey
from launch import checkpoint, evaluate, plan, presets, runs, sample
from launch.config import differences, parse, to_json, typed_preset
from launch.families import NVAETrainConfig
from tests.fuzz import mutate

Target = Callable[[random.Random], bool]


def refused(read: Callable[[], object], *, most_lines: int = 1) -> bool:
    """Whether ``read`` refuses in one line; lets every other exception through."""
    try:
        read()
    except ValueError as error:
        text = str(error)
        if not text or text.count("\n") >= most_lines or len(text) > 20_000:
            raise AssertionError(f"a message of {len(text)} characters, {text.count(chr(10))} line ends") from error
        if type(error) in (UnicodeDecodeError, UnicodeEncodeError, json.JSONDecodeError):
            raise AssertionError(f"a {type(error).__name__} of Python's own: {text[:80]}") from error
        return True
    return False


# --- Data sets -------------------------------------------------------------------------------------------------------


def _npz() -> bytes:
    classes = np.stack(np.unravel_index(np.arange(64), (1, *dsprites.FACTOR_SIZES)), axis=1).astype(np.int64)
    packed = io.BytesIO()
    images = dsprites.render(classes[:, 1:])
    np.savez_compressed(packed, imgs=images, latents_classes=classes, latents_values=classes.astype(np.float64))
    return packed.getvalue()


def dsprites_npz(home: Path) -> Target:
    """The whole file is hashed first, so every damaged one must be refused, whatever it would do to the reader."""
    raw, path = _npz(), home / "d.npz"

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage(raw, chance))
        assert refused(lambda: dsprites.check_official(path)), "a file that is not the official one was taken"
        return False

    return one


def frey_mat(home: Path) -> Target:
    frames = np.random.default_rng(0).integers(0, 256, (560, 1965), dtype=np.uint8)
    raws = []
    for compress in (False, True):
        file = io.BytesIO()
        scipy.io.savemat(cast(Any, file), {"ff": frames // 32, "other": np.arange(3.0)}, do_compression=compress)
        raws.append(file.getvalue())

    def one(chance: random.Random) -> bool:
        (home / frey.FILE_NAME).write_bytes(mutate.damage(chance.choice(raws), chance))
        return not refused(lambda: frey.open_frey(home, "all").images([0, 1964]))

    return one


def celeba_partition(home: Path) -> Target:
    text = "".join(f"{i:06d}.jpg {i % 3}\n" for i in range(1, 20))

    def one(chance: random.Random) -> bool:
        path = home / "p.txt"
        path.write_bytes(mutate.damage_text(text, chance))

        def read() -> None:
            assert set(celeba.read_partition(path).values()) <= {0, 1, 2}

        return not refused(read)

    return one


def celeba_attributes(home: Path) -> Target:
    names = [f"{i:06d}.jpg" for i in range(1, 20)]
    rows = "".join(f"{n} {' '.join('1' if (i >> k) & 1 else '-1' for k in range(5))}\n" for i, n in enumerate(names))
    text = f"19\nBald Smiling Young Male Hat\n{rows}"

    def one(chance: random.Random) -> bool:
        path = home / "a.txt"
        path.write_bytes(mutate.damage_text(text, chance))

        def read() -> None:
            table = celeba.read_attributes(path, names)
            assert table.shape[0] == 19
            assert set(np.unique(table)) <= {0, 1}

        return not refused(read)

    return one


def images(home: Path) -> Target:
    """Two damaged files among three good ones, decoded as a user's folder."""
    chance = random.Random(0)
    raws: list[tuple[str, bytes]] = []
    for kind in ("jpeg", "png", "webp", "bmp"):
        for mode in ("RGB", "L") if kind != "png" else ("RGB", "L", "RGBA", "P", "LA", "I;16"):
            file = io.BytesIO()
            pixels = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).convert("L") if mode == "I;16" else Image.fromarray(pixels)
            exif = Image.Exif()
            exif[0x0112] = 6
            more: dict[str, Any] = {} if kind == "bmp" else {"exif": exif.tobytes()}
            picture.convert(mode).save(file, format=kind, **more)
            raws.append((kind, file.getvalue()))
    good = chance.choice([raw for kind, raw in raws if kind == "png"])

    def one(chance: random.Random) -> bool:
        where = home / "images"
        shutil.rmtree(where, ignore_errors=True)
        (where / "train").mkdir(parents=True)
        for i in range(3):
            (where / "train" / f"good{i}.png").write_bytes(good)
        for i in range(2):
            kind, raw = chance.choice(raws)
            (where / "train" / f"bad{i}.{kind}").write_bytes(mutate.damage(raw, chance))
        bad = 0

        def read() -> None:
            nonlocal bad
            data = folder.open_folder(where, "train", size=8, channels=3, skip_bad=True)
            bad = 5 - len(data)
            assert data.images([0]).shape == (1, 3, 8, 8)

        assert not refused(read), "three good images were refused for two bad ones"
        return bad == 0

    return one


def cache_meta(home: Path) -> Target:
    """The meta file or the head of the array is damaged: opened with the right rows, or built again."""
    rows = np.arange(60, dtype=np.uint8).reshape(5, 12)

    def build(begin: cache.Begin) -> dict[str, Any]:
        begin(rows.shape)(rows)
        return {}

    def open_it() -> cache.Cached:
        return cache.open_cached(home, "c", {"name": "c"}, "0123456789", build)

    open_it()
    meta, array = next(home.glob("*.json")), next(home.glob("*.npy"))
    text, raw = meta.read_text(), array.read_bytes()
    head = len(raw) - rows.size  # the rows themselves are checked with verify=True only

    def one(chance: random.Random) -> bool:
        meta.write_text(text)
        array.write_bytes(raw)
        kind = chance.random()
        if kind < 0.4:
            meta.write_bytes(mutate.damage_text(text, chance))
        elif kind < 0.7:
            meta.write_text(json.dumps(mutate.damage_tree(json.loads(text), chance)))
        else:
            array.write_bytes(mutate.damage(raw[:head], chance) + raw[head:])
        before = meta.stat().st_ino

        def read() -> None:
            assert np.array_equal(open_it().array, rows), "other rows than were put in"

        assert not refused(read), "a damaged cache was not built again"
        return meta.stat().st_ino == before

    return one


# --- Runs ------------------------------------------------------------------------------------------------------------


def checkpoint_file(home: Path) -> Target:
    """Damage with a checksum that fits, as somebody who wants it read would leave it."""
    content = {
        "model": {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "config": {"run": {"seed": 0, "run_dir": None}},
    }
    path = checkpoint.save(home, 3, content)
    raw = path.read_bytes()

    def one(chance: random.Random) -> bool:
        data = mutate.damage(raw, chance)
        path.write_bytes(data)
        digest = hashlib.sha256(data if chance.random() < 0.9 else raw).hexdigest()
        path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
        return not refused(lambda: checkpoint.load(path))

    return one


def checkpoint_checksum(home: Path) -> Target:
    path = checkpoint.save(home, 3, {"model": {"a": torch.arange(12.0)}})
    beside = path.with_name(path.name + ".sha256")
    text = beside.read_text()

    def one(chance: random.Random) -> bool:
        beside.write_bytes(mutate.damage_text(text, chance))
        return not refused(lambda: checkpoint.load(path))

    return one


def run_config(home: Path) -> Target:
    """config.json of a run; what is read must be written again without loss."""
    config = presets.nvae("tiny", "folder")
    spec = {"channels": 3, "height": 12, "width": 16, "num_bits": 8}
    record = {"format": 1, "family": "nvae", "config": to_json(config), "spec": spec, "argv": [], "commit": None}
    text = json.dumps(record, indent=1)

    def one(chance: random.Random) -> bool:
        if chance.random() < 0.5:
            raw = mutate.damage_text(text, chance)
        else:
            raw = json.dumps(mutate.damage_tree(record, chance)).encode("utf-8", "surrogatepass")
        (home / "config.json").write_bytes(raw)

        def read() -> None:
            run = runs.open_run(home)
            json.dumps(to_json(run.config))

        return not refused(read, most_lines=9)  # keys that hold line ends are named as they are

    return one


def command_line(home: Path) -> Target:
    """Flags of four scripts, parsed as typed; --help ends the program as it should."""
    train = ["--dataset", "folder", "--data-root", str(home), "--preset", "tiny", "--max-steps", "9", "--lr", "0.01"]
    train += ["--groups-per-scale", "1", "1", "--image-size", "12", "16", "--resume", "auto", "--hflip", "--seed", "1"]

    def train_nvae(arguments: list[str]) -> object:
        preset = presets.nvae(*typed_preset(arguments))
        return differences(parse(NVAETrainConfig, preset, arguments, prog="train_nvae.py", description=""), preset)

    def of(kind: Any, prog: str) -> Callable[[list[str]], object]:
        return lambda arguments: parse(kind, None, arguments, prog=prog, description="")

    scripts: list[tuple[list[str], Callable[[list[str]], object]]] = [
        (["--run", str(home), "--images", "9", "--split", "test"], of(evaluate.EvaluateConfig, "evaluate.py")),
        (["--run", str(home), "--num", "9", "--temperature", "0.7"], of(sample.SampleConfig, "sample.py")),
        (["--preset", "celeba64", "--gpus", "8"], of(plan.PlanConfig, "plan.py")),
        (train, train_nvae),
    ]

    def one(chance: random.Random) -> bool:
        genuine, read = scripts[min(chance.randrange(24), 3)] if chance.random() < 0.05 else chance.choice(scripts[:3])
        arguments = list(genuine)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(arguments) + 1)
            match chance.randrange(4):
                case 0:
                    arguments[at:at] = [mutate.word(chance)]
                case 1:
                    arguments[at : at + 1] = [mutate.word(chance)]
                case 2:
                    arguments[at : at + 1] = []
                case _ if arguments:
                    at %= len(arguments)
                    arguments[at] = mutate.damage(arguments[at].encode("utf-8", "surrogatepass"), chance).decode(
                        "utf-8", "surrogateescape"
                    )
        arguments = [a.replace("\x00", "") for a in arguments]  # no kernel passes these
        try:
            return not refused(lambda: read(arguments))
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(f"left with {stop.code}") from stop
            return True

    return one


TARGETS: dict[str, Callable[[Path], Target]] = {
    "dsprites-npz": dsprites_npz,
    "frey-mat": frey_mat,
    "celeba-partition": celeba_partition,
    "celeba-attributes": celeba_attributes,
    "images": images,
    "cache-meta": cache_meta,
    "checkpoint": checkpoint_file,
    "checkpoint-checksum": checkpoint_checksum,
    "run-config": run_config,
    "command-line": command_line,
}
