"""Compiled cells: the same numbers, the same names, and as many graphs as there are kinds of cells."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.counting import saved_bytes
from nvae.cells import Cell, compile_cells
from nvae.sharing import use_weights
from tests.nvae.small import small

pytestmark = pytest.mark.filterwarnings("default")  # the compiler warns about its own insides

SWISH = ("res_bnswish", "res_bnswish")


def tower(*, checkpointing: bool = False, count: int = 4) -> nn.Sequential:
    """``count`` cells of a kind, one that halves, and two more; with a count of 1, that one alone."""
    torch.manual_seed(0)
    more = {"squeeze_excite": True, "checkpointing": checkpointing}
    cells = [Cell(SWISH, 8, 8, **more) for _ in range(count)]
    if count == 1:
        return nn.Sequential(*cells)
    return nn.Sequential(*cells, Cell(SWISH, 8, 16, "down", **more), *(Cell(SWISH, 16, 16, **more) for _ in range(2)))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    with use_weights({}):
        y = model(x)
    y.float().square().mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(("backend", "count"), [("aot_eager", 4), ("inductor", 1)])
def test_compiled_cells_compute_the_same_in_a_graph_for_each_kind(backend: str, count: int) -> None:
    """There are three kinds, and a fourth graph because the input of the first cell needs no gradient.

    Inductor takes ten seconds per kind, so it compiles only one.
    """
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    eager = tower(count=count)
    compiled = copy.deepcopy(eager)
    compile_cells(compiled.children(), backend)  # type: ignore[arg-type]
    x = torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)
    for _ in range(2):
        for mine, theirs in zip(gradients(compiled, x), gradients(eager, x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == (1 if count == 1 else 4)
    assert not counters["graph_break"]
    assert list(compiled.state_dict()) == list(eager.state_dict())
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def test_compiled_cells_in_half_precision_and_their_copies() -> None:
    eager = tower(count=2)
    compiled = copy.deepcopy(eager)
    compile_cells(compiled.children(), "aot_eager")  # type: ignore[arg-type]
    x = torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = compiled(x), eager(x)
    assert mine.dtype == theirs.dtype
    torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)  # 8 bits, several layers
    graphs = counters["stats"]["unique_graphs"]
    copy.deepcopy(compiled).eval()(x)  # averaged weights are evaluated as they are
    assert counters["stats"]["unique_graphs"] == graphs


def test_the_compiler_recomputes_where_cells_are_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps little more than a cell's input, and the running statistics move once."""
    monkeypatch.setattr(torch._functorch.config, "activation_memory_budget", 1.0)
    eager = tower(checkpointing=True, count=1)
    compiled = copy.deepcopy(eager)
    compile_cells(compiled.children(), "aot_eager_decomp_partition")  # type: ignore[arg-type]
    x = torch.randn(2, 8, 8, 8)
    for mine, theirs in zip(gradients(compiled, x), gradients(eager, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    kept = [
        saved_bytes(lambda model=model: model(x).mean(), list(model.parameters()))
        for model in (compiled, tower(count=1))
    ]
    assert kept[0] < 0.5 * kept[1]


def test_a_compiled_model_normalises_weights_cell_by_cell() -> None:
    model = small()
    names = list(model.state_dict())
    model.compile_parts("eager")
    assert model.is_compiled
    assert list(model.state_dict()) == names
