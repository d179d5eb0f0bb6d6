"""Fuzzed files that our scripts write and read again, and files of other frameworks: codes, records, containers, weights."""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import ImageSpec, labels
from flat_vae import FlatVAE, FlatVAEConfig
from launch import compare
from launch.machine import files
from launch.report.runs import read_runs
from launch.results import bits_back, container, encoding, importing, score_codes
from launch.training import jobs, memory, records
from metrics import inception
from nvae import official
from tests.conftest import ROOT
from tests.fuzz import mutate
from tests.fuzz.ends import Target, refused


def _npz(arrays: dict[str, Any]) -> list[bytes]:
    """Stored and deflated."""
    raws = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        raws.append(file.getvalue())
    return raws


def _odd_arrays(arrays: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """One or two arrays lost, renamed, or of another type or shape, in an archive without damage."""
    odd = dict(arrays)
    for _ in range(chance.randint(1, 2)):
        name = chance.choice(list(odd) or ["codes"])
        value = np.asarray(odd.pop(name, 0))
        match chance.randrange(5):
            case 0:
                pass
            case 1:
                odd[mutate.word(chance).replace("/", "") or "x"] = value
            case 2:
                kept = value if value.dtype.kind in "iufb" else np.zeros(3)
                odd[name] = kept.astype(chance.choice(["float16", "int8", "complex64", "U3", "bool", "uint64", "S2"]))
            case 3:
                odd[name] = value.reshape(-1)[: chance.randrange(4)].reshape(
                    chance.choice([(-1,), (1, -1), (-1, 1, 1)])
                )
            case _:
                fill = chance.choice([np.nan, np.inf, -1, 2**62, 1e300])
                odd[name] = np.full(value.shape, fill, chance.choice(["float64", "float32"]))
    return {key.encode("utf-8", "replace").decode() or "x": value for key, value in odd.items()}


def _arrays_target(path: Path, arrays: dict[str, Any], read: Callable[[Path], bool]) -> Target:
    raws = _npz(arrays)

    def one(chance: random.Random) -> bool:
        if chance.random() < 0.5:
            path.write_bytes(mutate.damage(chance.choice(raws), chance))
        else:
            path.write_bytes(chance.choice(_npz(_odd_arrays(arrays, chance))))
        return read(path)

    return one


def codes(home: Path) -> Target:
    """Codes of another framework."""
    drawn = np.random.default_rng(0)
    arrays = {"codes": drawn.normal(size=(20, 3)), "factors": np.arange(40).reshape(20, 2) % 4}
    return _arrays_target(home / "codes.npz", arrays, lambda path: not refused(lambda: score_codes.read_codes(path)))


def encoded(home: Path) -> Target:
    """Damage cached codes: unusable ones are encoded again, so there is never an error."""
    drawn, path = np.random.default_rng(0), home / "encoded.npz"
    maps = [drawn.normal(size=(6, 2, side, side)).astype(np.float32) for side in (1, 2)]
    kl = drawn.random((6, 2)).astype(np.float32)
    variance = drawn.random((6, 2)).astype(np.float32)
    whole = encoding.Encoded(maps, maps, variance, kl, [kl[0], kl[1]], [1, 2], np.arange(6), 4)
    encoding.save(path, whole)
    arrays = dict(np.load(path))

    def read(path: Path) -> bool:
        found = encoding.load(path)
        if found is None:
            return False
        assert found.kl.shape[0] == len(found.rows) == len(found.means[0])
        assert found.active_latents >= 0
        assert found.kl_of_units is not None
        return True

    return _arrays_target(path, arrays, read)


def metrics_lines(home: Path) -> Target:
    """metrics.jsonl of a run that goes on: nothing is refused, no good line of an earlier step is lost."""
    good = [{"step": step, "seconds": 0.1, "cpu_seconds": 0.1, "train/loss": 1.0 / step} for step in range(1, 9)]
    text = "".join(json.dumps(record) + "\n" for record in good)
    path = home / records.NAME

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage_text(text, chance))
        before = [
            line.rstrip(b"\n") for line, record in records.read(path) if record is not None and record["step"] <= 4
        ]
        monitor = object.__new__(records.Monitor)
        monitor._path, monitor._first_step, monitor._total_steps, monitor._recorded = path, 4, 8, set()
        monitor._began = dict.fromkeys(records.CLOCKS, 0.0)
        monitor._drop_lost_future()
        after = [line.rstrip(b"\n") for line, record in records.read(path) if record is not None]
        assert after == before, "a record was lost or kept against the rule"
        return len(before) == 4

    return one


def event_files(home: Path) -> Target:
    """Names of TensorBoard's files written under a wrong clock, and names that only resemble them."""

    def one(chance: random.Random) -> bool:
        for old in home.iterdir():
            old.unlink()
        for number in range(4):
            stamp = chance.choice(
                ["0000000001", "9999999999", "", "-1", "99999999999999999999", str(chance.randrange(2**34))]
            )
            name = f"events.out.tfevents.{stamp}.{chance.choice(['host', 'a.b', ''])}.{number}"
            (home / name[:200]).touch()
        count = len(list(home.iterdir()))
        records._sort_before_now(home)
        assert len(list(home.iterdir())) == count, "a file was lost"
        return True

    return one


def _small_model() -> FlatVAE:
    torch.manual_seed(0)
    config = FlatVAEConfig(latent_dim=2, conv_channels=1)
    return FlatVAE(config, ImageSpec(channels=1, height=64, width=64, num_bits=1)).eval()


def compressed(home: Path) -> Target:
    """A compressed file: damaged bytes, and headers that say other things with a checksum that fits."""
    model = _small_model()
    coded = bits_back.encode(
        bits_back.BitsBack(model, [[3, 3]], 0),
        [np.zeros((1, 64, 64), np.int32)] * 2,  # type: ignore[arg-type]
    )
    payload = coded.words.astype("<u4").tobytes()
    digest = "0" * container.DIGEST_CHARACTERS
    header = {
        **{
            "checkpoint": digest,
            "weights": "auto",
            "arithmetic": container.arithmetic(model),
            "torch": "2",
            "processor": "x",
        },  # type: ignore[arg-type]
        **{"data": "dsprites", "count": 2, "halvings": [[3, 3]], "seed": 0, "num_initial": coded.num_initial},
        **{"num_words": len(coded.words), "words": container._digest(payload), "pixels": digest},
    }

    def packed(said: Any, words: bytes) -> bytes:
        text = json.dumps(said).encode("utf-8", "surrogatepass")
        return container.MAGIC + struct.pack("<II", container.FORMAT, len(text)) + text + words

    whole = packed(header, payload)

    def one(chance: random.Random) -> bool:
        if chance.random() < 0.3:
            content = mutate.damage(whole, chance)
        else:
            said = mutate.damage_tree(header, chance)
            words = mutate.damage(payload, chance) if chance.random() < 0.3 else payload
            words = words[: len(words) // 4 * 4]
            if isinstance(said, dict) and chance.random() < 0.8:
                said |= {"words": container._digest(words), "num_words": len(words) // 4}
            content = packed(said, words)
        return not refused(lambda: container.unpack(content, model, "file"))  # type: ignore[arg-type]

    return one


def published_weights(home: Path) -> Target:
    """Damage a published checkpoint or change its arguments."""
    args = {
        "dataset": "mnist",
        "num_latent_scales": 1,
        "num_groups_per_scale": 1,
        "num_latent_per_group": 1,
        "ada_groups": False,
    }
    args |= {"min_groups_per_scale": 1, "num_channels_enc": 2, "num_channels_dec": 2, "num_preprocess_blocks": 1}
    args |= {
        "num_preprocess_cells": 1,
        "num_cell_per_cond_enc": 1,
        "num_postprocess_blocks": 1,
        "num_postprocess_cells": 1,
    }
    args |= {
        "num_cell_per_cond_dec": 1,
        "num_mixture_dec": 2,
        "use_se": False,
        "res_dist": True,
        "num_nf": 0,
        "num_x_bits": 8,
    }
    content = {
        "state_dict": {"weight": torch.zeros(2)},
        "args": argparse.Namespace(**args),
        "epoch": 1,
        "global_step": 2,
    }
    path, file = home / "official.pt", io.BytesIO()
    torch.save(content, file)
    raw = file.getvalue()

    def one(chance: random.Random) -> bool:
        if chance.random() < 0.5:
            path.write_bytes(mutate.damage(raw, chance))
        else:
            odd = mutate.damage_tree(args, chance)
            torch.save({**content, "args": odd}, path)

        def read() -> None:
            found = importing.read(path)
            known = {k: v for k, v in found.args.items() if k not in official.unknown_arguments(found.args)}
            official.load(found.state_dict, known, legacy=False)

        return not refused(read)

    return one


def json_records(home: Path) -> Target:
    """Any record that a script reads again: sweep.json, summary.json, a study's."""
    record = {"step": 3, "valid": {"elbo": -1.5, "kl_group": [1.0, 2.0]}, "names": ["a", "b"], "ok": True, "none": None}
    path, text = home / "record.json", json.dumps(record, indent=1)

    def one(chance: random.Random) -> bool:
        if chance.random() < 0.6:
            path.write_bytes(mutate.damage_text(text, chance))
        else:
            path.write_text(json.dumps(mutate.damage_tree(record, chance)), errors="surrogatepass")
        return not refused(lambda: json.dumps(files.read_json(path)))

    return one


def throughput(home: Path) -> Target:
    """Lines of a benchmark that plan.py reads."""
    row = {
        "benchmark": "nvae-step",
        "variant": "a",
        "gflop": 2.0,
        "median_s": 0.5,
        "images_per_s": 9.0,
        "batch_size": 4,
    }
    row |= {"preset": "tiny", "hardware": "cpu"}
    path, text = home / "steps.jsonl", 2 * (json.dumps(row) + "\n")

    def one(chance: random.Random) -> bool:
        if chance.random() < 0.6:
            path.write_bytes(mutate.damage_text(text, chance))
        else:
            path.write_text(json.dumps(mutate.damage_tree(row, chance)), errors="surrogatepass")
        return not refused(lambda: memory.throughput(path, "tiny", 1.0))

    return one


def script_log(home: Path) -> Target:
    """Log of a sweep's run, of which the last error is quoted."""
    path, text = home / "log.txt", "step 1\nerror: wrong\n  fix: that\n" * 3

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage_text(text, chance))
        said = jobs.fault(2, path)
        assert said is not None
        assert "\n" not in said
        return True

    return one


def run_scores(home: Path) -> Target:
    """scores.json, scores.npz, summary.json and config.json of a run that a comparison reads."""
    run = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "runs" / "flat", home / "run"))
    raws = {name: (run / name).read_bytes() for name in ("scores.json", "scores.npz", "summary.json", "config.json")}

    def one(chance: random.Random) -> bool:
        name = chance.choice(list(raws))
        if name.endswith(".json") and chance.random() < 0.6:
            damaged = json.dumps(mutate.damage_tree(json.loads(raws[name]), chance)).encode("utf-8", "surrogatepass")
        else:
            damaged = mutate.damage(raws[name], chance)
        (run / name).write_bytes(damaged)
        try:
            found, skipped = read_runs([run], None)
            assert len(found) + len(skipped) == 1
            assert all(line.isprintable() for line in skipped)
            comparison = compare._scoring(compare.CompareConfig(runs=(run,), out=home / "out"))
            assert comparison is not None
        finally:
            (run / name).write_bytes(raws[name])
        return bool(found)

    return one


def codes_table(home: Path) -> Target:
    """Codes and factors as a csv."""
    text = "z0,z1,shape\n" + "".join(f"{i / 7},{-i},{i % 3}\n" for i in range(12))
    path = home / "codes.csv"

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage_text(text, chance))
        return not refused(lambda: score_codes.read_codes(path))

    return one


def label_tables(home: Path) -> Target:
    """A table of factors."""
    text = "image,shape,size\n" + "".join(f"{i}.png,{i % 2},{i / 4}\n" for i in range(9))
    path = home / "labels.csv"

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage_text(text, chance))
        return not refused(lambda: labels.read_table(path))

    return one


def inception_weights(home: Path) -> Target:
    """Damage a user's weights of the extractor; none is a complete model, so all are refused."""
    path, file = home / "inception.pt", io.BytesIO()
    torch.save({"weight": torch.zeros(3, 3), "step": 2}, file)
    raw = file.getvalue()

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage(raw, chance))
        return not refused(lambda: inception.load_inception(path))

    return one


def links_and_pipes(home: Path) -> Target:
    """Names behind which there is no file: a reader ends at once."""
    import os

    path = home / "record.json"
    make: list[Callable[[], object]] = [
        lambda: path.mkdir(),
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("/dev/stdin"),
        lambda: path.symlink_to("nowhere"),
    ]
    readers: list[Callable[[], object]] = [
        lambda: files.read_json(path),
        lambda: files.read_npz(path, remedy="x"),
        lambda: files.read_tensors(path, remedy="x"),
        lambda: files.sha256(path),
        lambda: score_codes.read_codes(path),
        lambda: importing.read(path),
    ]

    def one(chance: random.Random) -> bool:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        chance.choice(make)()
        return not refused(chance.choice(readers))

    return one


TARGETS: dict[str, Callable[[Path], Target]] = {
    "codes": codes,
    "encoded-codes": encoded,
    "metrics-lines": metrics_lines,
    "event-files": event_files,
    "container": compressed,
    "published-weights": published_weights,
    "json-records": json_records,
    "throughput": throughput,
    "script-log": script_log,
    "run-scores": run_scores,
    "label-tables": label_tables,
    "codes-table": codes_table,
    "inception-weights": inception_weights,
    "links-and-pipes": links_and_pipes,
}
