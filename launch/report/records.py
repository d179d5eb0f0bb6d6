"""The records that a comparison reads; their types are checked, because they may come from other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from launch.machine import files
from launch.results.run import Weights

SCORES_FORMAT = 1  # newest format of scores.json that this version reads


class Record(BaseModel):
    """A JSON object whose listed fields have the right type; other fields are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Protocol(Record):
    split: str
    images: int | None
    seed: int
    full_grid: bool


class _Named(Record):
    name: str


class _HeldOut(Record):
    elbo: FiniteFloat | None = None
    rate: FiniteFloat | None = None
    distortion: FiniteFloat | None = None
    bits_per_dim: FiniteFloat | None = None
    psnr: FiniteFloat | None = None
    active_units: FiniteFloat | None = None


class _ReducedRow(Record):
    kind: str
    dim: int
    num_latents: int
    mig: FiniteFloat | None


class _Reduced(Record):
    rows: list[_ReducedRow]


class _Groups(Record):
    matrix: list[list[FiniteFloat]]
    conditional_gain: list[list[FiniteFloat]]
    entropy: list[FiniteFloat]
    kept: list[NonNegativeInt]
    threshold: FiniteFloat | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Groups:
        width = len(self.entropy)
        for table in (self.matrix, self.conditional_gain):
            if len(table) != len(self.matrix) or any(len(row) != width for row in table):
                raise ValueError("tables of groups and factors differ in shape")
        if not self.matrix or not width or len(self.kept) != width:
            raise ValueError("the table of groups and factors is empty or its factors are not named")
        return self


class _Uncertainty(Record):
    interval: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
    chance: FiniteFloat


class _NoInterval(Record):
    interval: None
    halves_std: FiniteFloat
    chance: FiniteFloat


class _Score(Record):
    score: FiniteFloat | None = None
    uncertainty: _Uncertainty | _NoInterval | None = None


class _Nearest(Record):
    score: FiniteFloat
    median_distance: FiniteFloat
    within: int
    coverage: list[FiniteFloat] = []


class _Samples(Record):
    samples: _Nearest
    reconstructions: _Nearest


class Scores(Record):
    """Part of scores.json that a comparison reads."""

    format: int = 1
    scores: dict[str, dict[str, Any]]
    untrained: dict[str, dict[str, Any]] | None
    protocol: _Protocol
    held_out: _HeldOut | None
    data: _Named
    num_images: PositiveInt
    code: str
    step: NonNegativeInt
    weights: Weights
    num_parameters: PositiveInt
    factor_names: list[str]
    group_shapes: list[Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]]
    kl_of_units: list[FiniteFloat]
    checkpoint_sha256: str
    samples: _Samples | None = None

    @model_validator(mode="after")
    def _fits(self) -> Scores:
        if not 1 <= self.format <= SCORES_FORMAT:
            raise ValueError(f"format {self.format}, this program reads up to {SCORES_FORMAT}")
        for scores in (self.scores, self.untrained or {}):
            for name, kind in (("reduced", _Reduced), ("groups", _Groups)):
                if name in scores:
                    kind.model_validate(scores[name])
            for score in scores.values():
                _Score.model_validate(score)
        if "groups" in self.scores and len(self.scores["groups"]["matrix"]) != len(self.kl_of_units):
            raise ValueError("groups and their KL differ in number")
        if "groups" in self.scores and len(self.group_shapes) not in (1, len(self.kl_of_units)):
            raise ValueError("groups and their shapes differ in number")
        if self.samples is not None and len(self.samples.samples.coverage) != len(self.factor_names):
            raise ValueError("samples do not cover the factors that the data has")
        if not self.group_shapes:
            raise ValueError("there are no groups")
        return self


class Summary(Record):
    """Part of summary.json that a comparison reads."""

    seconds: FiniteFloat | None = None
    images_seen: FiniteFloat | None = None
    step: NonNegativeInt | None = None


def read(kind: type[Record], path: Path) -> dict[str, Any]:
    """Read a record and check the types of the fields that a comparison uses.

    Raises:
        ValueError: the file is missing or damaged, or a field is missing or of the wrong type (the message names it).
    """
    record = files.read_json(path)
    try:
        kind.model_validate(record)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors()[:3]]
        raise ValueError(f"{path} is damaged ({', '.join(faults)}); score the run again") from error
    return record
