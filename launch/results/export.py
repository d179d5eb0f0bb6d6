"""Export of a trained run: the evaluated weights and the records, without paths of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.machine import files
from launch.results.run import SavedRun
from launch.training import checkpoint, records
from launch.training.folder import RunFolder

CHECK = "check.json"
CHECKED_SAMPLES = 8
PLACES = {"data": ("data_root", "cache_dir"), "run": ("run_dir",)}


def without_places(record: dict[str, Any]) -> dict[str, Any]:
    """A run's config.json without its folders and without the command that named them."""
    config = {
        part: {**values, **dict.fromkeys(PLACES[part])} if part in PLACES else values
        for part, values in record["config"].items()
    }
    return {name: value for name, value in record.items() if name != "argv"} | {"config": config}


def _means(run: SavedRun) -> list[float]:
    """Mean pixel of a few samples, for comparison with those of a copy elsewhere."""
    return [float(mean) for mean in run.sample(CHECKED_SAMPLES, seed=0).mean(dim=(1, 2, 3))]


def export(run: SavedRun, out: Path) -> RunFolder:
    """Write ``run`` to ``out``: a run folder with one checkpoint, of the averaged weights if there are any.

    ``check.json`` holds the mean pixel of a few samples, to check a copy on another machine. Every script reads the
    export like the run, but training can't be resumed from it: it has no optimiser state.

    Args:
        run: run, opened with the weights and the checkpoint to share.
        out: folder that does not exist yet or holds no run.

    Returns:
        The new folder.

    Raises:
        ValueError: ``out`` holds a run.
    """
    folder = RunFolder(out)
    if folder.config_path.exists():
        raise ValueError(f"{out} already holds a run; choose another --out")
    model, step = run.model, run.step  # read before anything is written
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json("config.json", without_places(run.record))
    content = {"model": {name: value.cpu() for name, value in model.state_dict().items()}, "ema": None}
    path = checkpoint.save(folder.checkpoints, step, content, keep=1)
    for name in ("summary.json", "scores.json"):
        if (run.folder / name).is_file():
            record = run.files.read_json(name)
            if name == "scores.json":  # the scores belong to these weights, whose file has changed
                record |= {"checkpoint": path.name, "checkpoint_sha256": checkpoint.recorded_sha256(path)}
            folder.write_json(name, record)
    folder.write_json(CHECK, {"seed": 0, "mean_of_samples": _means(run)})
    held_out = records.held_out(run.folder)
    if held_out:
        files.write_text(out / records.NAME, "".join(held_out))
    return folder
