"""Learning rate, averaged weights, and the optimisers by name, against calculations by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from launch.console.config import OptimConfig
from launch.training import optim
from launch.training.optim import ExponentialMovingAverage


def test_learning_rate_has_known_values() -> None:
    config = OptimConfig(lr=1.0, lr_min=0.1, lr_warmup=0.1)
    total = 101  # warm-up: 10.1 steps; the cosine runs from there to step 100
    assert optim.learning_rate(config, 0, total) == 0.0
    assert optim.learning_rate(config, 5, total) == pytest.approx(5 / 10.1)
    halfway = 0.5 * (10.1 + 100)
    below, above = (optim.learning_rate(config, math.floor(halfway) + i, total) for i in (0, 1))
    assert above < 0.55 < below
    assert optim.learning_rate(config, 100, total) == pytest.approx(0.1)
    values = [optim.learning_rate(config, step, total) for step in range(total)]
    peak = values.index(max(values))
    assert peak == 11
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_learning_rate_at_a_quarter_of_the_cosine() -> None:
    config = OptimConfig(lr=2.0, lr_min=1.0, lr_warmup=0.0)
    assert optim.learning_rate(config, 25, 101) == pytest.approx(1.0 + 0.5 * (1.0 + math.cos(math.pi / 4)))


def test_constant_learning_rate_and_short_runs() -> None:
    constant = OptimConfig(lr=0.5, lr_schedule="constant", lr_warmup=0.5)
    assert [optim.learning_rate(constant, step, 4) for step in range(4)] == [0.0, 0.25, 0.5, 0.5]
    assert optim.learning_rate(OptimConfig(lr=0.5, lr_warmup=0.0), 0, 1) == 0.5
    assert optim.learning_rate(OptimConfig(lr=1e-5, lr_min=1e-4), 10, 10) == pytest.approx(
        1e-5
    )  # never rises at the end


def test_averaged_weights_are_those_of_a_naive_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = ExponentialMovingAverage(model, decay=0.6)
    naive = [p.detach().double().clone() for p in model.parameters()]
    for step in range(12):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        average.update(model, step)
        decay = min(0.6, (1 + step) / (10 + step))
        naive = [decay * a + (1 - decay) * p.detach().double() for a, p in zip(naive, model.parameters(), strict=True)]
    for mine, theirs in zip(average.model.parameters(), naive, strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)  # 12 roundings of float32
    assert (1 + 5) / (10 + 5) < 0.6 < (1 + 11) / (10 + 11) + 0.1  # both branches of the decay were taken


def test_averaged_weights_take_over_the_statistics_of_batch_norm() -> None:
    model = nn.BatchNorm1d(2)
    average = ExponentialMovingAverage(model, decay=0.9)
    model(torch.randn(8, 2))
    assert not torch.equal(average.model.running_mean, model.running_mean)  # type: ignore[arg-type]
    average.copy_buffers(model)
    assert torch.equal(average.model.running_mean, model.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adamax", "adam", "adamw", "rmsprop"])
def test_optimisers_of_torch_are_built_with_what_was_typed(name: str) -> None:
    parameter = nn.Parameter(torch.ones(2))
    config = OptimConfig(optimizer=name, lr=0.3, weight_decay=0.1, optimizer_eps=1e-5)  # type: ignore[arg-type]
    built = optim.build(config, [parameter])
    assert type(built).__name__.lower() == name
    assert built.defaults["lr"] == 0.3
    assert built.defaults["weight_decay"] == 0.1
    assert built.defaults["eps"] == 1e-5


def test_adamax_is_the_published_rule() -> None:
    """Epsilon inside the infinity norm, L2 weight decay: twelve steps by hand in float64."""
    torch.manual_seed(0)
    target = torch.randn(4)
    weight = nn.Parameter(torch.zeros(4))
    optimizer = optim.build(OptimConfig(lr=0.1, weight_decay=0.01, optimizer_eps=1e-3), [weight])
    w, m, u = torch.zeros(4).double(), torch.zeros(4).double(), torch.zeros(4).double()
    for t in range(1, 13):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
        grad = 2.0 * (w - target.double()) + 0.01 * w
        m = 0.9 * m + 0.1 * grad
        u = torch.maximum(0.999 * u, grad.abs() + 1e-3)
        w = w - 0.1 / (1 - 0.9**t) * m / u
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-5, atol=1e-6)  # float32 against float64


def _fake_apex(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    for name in ("apex", "apex.optimizers", "amp_C"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def no_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide apex, even where it is installed."""
    for name in ("apex", "apex.optimizers", "amp_C"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


@pytest.fixture
def forget_apex() -> object:
    """Remove the fake apex, so that later tests do not see it."""
    yield
    for name in [n for n in sys.modules if n.split(".")[0] in {"apex", "amp_C"}]:
        del sys.modules[name]


@pytest.mark.usefixtures("no_apex")
def test_apex_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"not installed; use --optimizer adam, torch's own"):
        optim.build(OptimConfig(optimizer="fused_adam"), [nn.Parameter(torch.ones(1))])


@pytest.mark.usefixtures("forget_apex")
@pytest.mark.parametrize("files", [{"apex.py": "x = 1"}, {"apex/__init__.py": "", "apex/lib.py": ""}])
def test_apex_of_another_project(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_apex(tmp_path, monkeypatch, files)
    with pytest.raises(ModuleNotFoundError, match=r"is not NVIDIA's; use --optimizer adamw, torch's own"):
        optim.build(OptimConfig(optimizer="fused_lamb"), [nn.Parameter(torch.ones(1))])


@pytest.mark.usefixtures("forget_apex")
def test_apex_of_another_project_that_does_not_even_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of that name on the index fails with an ImportError of its own: it is there, and is the wrong one."""
    _fake_apex(tmp_path, monkeypatch, {"apex/__init__.py": "import a_module_that_nobody_has"})
    with pytest.raises(ModuleNotFoundError, match=r"is not NVIDIA's; use --optimizer adam, torch's own"):
        optim.build(OptimConfig(optimizer="fused_adam"), [nn.Parameter(torch.ones(1))])


@pytest.mark.usefixtures("forget_apex")
def test_apex_without_its_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_apex(tmp_path, monkeypatch, {"apex/__init__.py": "", "apex/optimizers/__init__.py": ""})
    with pytest.raises(ModuleNotFoundError, match=r"without its CUDA extensions \(amp_C\); use --optimizer adam"):
        optim.build(OptimConfig(optimizer="fused_adam"), [nn.Parameter(torch.ones(1))])


@pytest.mark.usefixtures("forget_apex")
def test_apex_as_it_should_be_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = "import torch\nclass FusedAdam(torch.optim.Adam):\n    pass\n"
    _fake_apex(tmp_path, monkeypatch, {"apex/__init__.py": "", "apex/optimizers/__init__.py": fused, "amp_C.py": ""})
    built = optim.build(OptimConfig(optimizer="fused_adam", lr=0.2), [nn.Parameter(torch.ones(1))])
    assert type(built).__name__ == "FusedAdam"
    assert built.defaults["lr"] == 0.2
