"""Scores of generated images on feature arrays, and the feature extractor, whose weights come from a user's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torchvision.models import inception_v3

import metrics
from metrics.inception import load_inception

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(400, 5)) @ RNG.normal(size=(5, 5))
FAKE = RNG.normal(size=(300, 5)) @ RNG.normal(size=(5, 5)) + 1.0


def test_frechet_distance_equals_its_definition() -> None:
    one, two = np.cov(REAL, rowvar=False), np.cov(FAKE, rowvar=False)
    shift = REAL.mean(axis=0) - FAKE.mean(axis=0)
    naive = shift @ shift + np.trace(one + two - 2 * scipy.linalg.sqrtm(one @ two).real)
    assert metrics.frechet_distance(REAL, FAKE).score == pytest.approx(naive, rel=1e-9)
    assert metrics.frechet_distance(FAKE, REAL).score == pytest.approx(naive, rel=1e-9)
    assert metrics.frechet_distance(REAL, REAL).score == pytest.approx(0.0, abs=1e-9)
    assert metrics.frechet_distance(REAL, REAL + 2.0).score == pytest.approx(5 * 4.0, rel=1e-9)
    assert "biased" in metrics.frechet_distance(REAL[:4], FAKE).notes[0]


def test_kernel_distance_is_unbiased() -> None:
    same = metrics.kernel_distance(REAL[:200], REAL[200:], seed=0, num_subsets=50, subset_size=100)
    other = metrics.kernel_distance(REAL, FAKE, seed=0, num_subsets=50, subset_size=100)
    assert abs(same.score) < 3 * same.standard_deviation
    assert other.score > 2 * other.standard_deviation
    x, y = REAL[:3], FAKE[:3]
    kernel = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(3) for j in range(3) if i != j) / 6
    between = 2 * np.mean([kernel(a, b) for a in x for b in y])
    whole = metrics.kernel_distance(x, y, seed=0, num_subsets=2)
    assert whole.score == pytest.approx(within - between, rel=1e-9)
    assert "3 rows" in whole.notes[0]


def test_precision_and_recall_of_known_places() -> None:
    same = metrics.precision_recall(REAL, REAL)
    assert same.precision == same.recall == same.coverage == 1.0
    apart = metrics.precision_recall(REAL, REAL + 1e3)
    assert apart.precision == apart.recall == apart.density == apart.coverage == 0.0
    half = metrics.precision_recall(REAL, np.concatenate([REAL[:200], REAL[:200] + 1e3]))
    assert half.precision == 0.5
    assert 0.4 < half.coverage < 1.0


def test_feature_arrays_are_checked() -> None:
    for function in (metrics.frechet_distance, metrics.precision_recall):
        with pytest.raises(ValueError, match=r"\(400, 5\).*\(300, 4\)"):
            function(REAL, FAKE[:, :4])
    with pytest.raises(ValueError, match="NaN"):
        metrics.frechet_distance(REAL, np.full((10, 5), np.nan))
    with pytest.raises(ValueError, match="neighbours=5 needs more rows than 5"):
        metrics.precision_recall(REAL, FAKE[:5])


def test_without_weights_the_score_is_null_with_a_reason() -> None:
    result = metrics.image_scores(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), None, seed=0)
    assert result.score is None
    assert "no extractor weights" in result.notes[0]
    assert metrics.to_plain(result)["score"] is None  # type: ignore[index, call-overload]


class Payload:
    """Would run code if unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are not there"):
        load_inception(tmp_path / "none.pt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save(Payload(), tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("not weights")
    for name in ("other.pt", "code.pt", "text.pt"):
        with pytest.raises(ValueError, match="state dict of torchvision's inception_v3"):
            load_inception(tmp_path / name)


def test_weights_from_a_file_extract_features(tmp_path: Path) -> None:
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), tmp_path / "weights.pt")
    grey = torch.rand(3, 1, 28, 20)
    result = metrics.image_scores(grey, grey, tmp_path / "weights.pt", seed=0)
    assert result.score == pytest.approx(0.0, abs=1e-6)
    assert result.neighbours is None
    assert any("at least 6 images" in note for note in result.notes)
    assert load_inception(tmp_path / "weights.pt")(grey).shape == (3, 2048)
