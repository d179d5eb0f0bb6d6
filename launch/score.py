"""Score a run's representation, or codes from elsewhere: encode once, print tables, write scores.json.

Examples:
  python launch/score.py --run runs/dsprites-flat-vae-burgess-vae-seed0
  python launch/score.py --run runs/dsprites-nvae-tiny-seed0 --images 2000 --metrics reduced groups --untrained
  python launch/score.py --codes codes.csv --metrics mig mcc       (columns z0, z1, ... and factors; or npz, parquet)
  python launch/score.py --images samples/ --reference photos/ --inception inception_v3.pt
  torchrun --standalone --nproc-per-node=gpu -- launch/score.py --run runs/dsprites-flat-vae-burgess-vae-seed0 --full-grid
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import distributed
from launch.report.tables import describe, describe_folders
from launch.results.run import open_run
from launch.results.score_codes import score_codes
from launch.results.score_run import ScoreConfig, score_folders, score_run


def main(arguments: list[str]) -> None:
    """Parse, score, print, and write the JSON record."""
    config = parse(ScoreConfig, None, arguments, prog="score.py", description=__doc__ or "")
    if [config.run, config.codes, config.reference].count(None) != 2:
        raise ValueError(
            "give one of --run, --codes or --reference; for example: python launch/score.py --run runs/NAME"
        )
    if config.reference is not None:
        assert isinstance(config.images, Path), "the configuration requires both folders"
        print(describe_folders(score_folders(config.images, config.reference, config)))
    if config.codes is not None:
        print(describe(score_codes(config.codes, config)))
    if config.run is not None:
        with distributed.joined(config.device, config.timeout_minutes) as ranks:
            record = score_run(config.run, config, ranks)
        if record is None:  # not rank 0
            return
        split = config.protocol.open_split()
        say(f"{config.run}, step {record['step']:,}, {split} split of {record['data']['name']}")
        run = open_run(config.run)
        print(describe(record, has_rate=run.family.measure(run.config, run.spec).has_rate))
    say(f"written: {config.record_path}")


if __name__ == "__main__":
    errors.main(main)
