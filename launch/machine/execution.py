"""Execution on the device: full float32, compiled parts, and steps captured once and replayed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import torch

from metrics.model import VAE


def full_float32() -> None:
    """Compute float32 in full precision on GPUs too.

    By default PyTorch convolves float32 in TF32, whose mantissa has only the 10 bits of half precision. Results of
    training, evaluation and encoding then differ by 1e-3 from a CPU's. For speed, use bf16.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def leave_dynamo_unloaded() -> None:
    """Keep optimisers from loading torch.compile's front end, which takes two seconds of every start.

    PyTorch wraps four methods of its optimisers to keep them out of compiled code, and loads ``torch._dynamo`` in the
    first call of each. Here only parts of models are compiled. The attribute is where PyTorch stores the result.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None:
            setattr(method, "__dynamo_disable", method)


def compile_parts(model: VAE, device: torch.device) -> None:
    """Compile a model's parts in place; the compiler itself runs during the first steps.

    Raises:
        ValueError: the compiler or triton is missing.
    """
    compilers = [os.environ.get("CXX", "g++"), "clang++", "c++"]
    if not any(shutil.which(name) for name in compilers):
        raise ValueError(
            f"--compile needs a C++ compiler and there is none ({', '.join(compilers)}); "
            "install one (Debian: apt install g++) or leave out --compile"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("--compile needs triton on a GPU; pip install triton or leave out --compile")
    model.compile_parts()


def failed(error: RuntimeError) -> bool:
    """True if the compiler itself raised this, not the compiled code."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(error, dynamo.exc.TorchDynamoException)


def compiler_fault(error: RuntimeError) -> str:
    """One line with the compiler's error and the remedy.

    A compiler that was killed leaves a truncated file in its cache, and every later run fails when it loads that file.
    """
    reason = " ".join(str(error).split("\n\n")[0].split())[:200].replace("; ", ", ")
    remedy = "leave out --compile, or see --debug"
    if "ImportError" in reason:
        remedy = "delete the compiler's cache, which is damaged if a compiler was killed, or leave out --compile"
    return f"torch.compile failed ({reason}); {remedy}"


T = TypeVar("T")

WARM_UP = 3  # calls before the recording, in which libraries choose algorithms and optimisers create their state


class Graph(Protocol):
    """A recording of work on a device."""

    def record(self, work: Callable[[], Any]) -> Any:
        """Run ``work``, or only record it; return its result, whose tensors every replay overwrites."""

    def replay(self) -> None:
        """Run the recording again on the same memory."""


class CudaGraph:
    """A recording as a CUDA graph."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Any]) -> Any:
        """Record ``work`` without running it, then run it once."""
        torch.cuda.synchronize()
        # thread_local: the thread that loads images may pin memory meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            result = work()
        self._graph.replay()
        return result

    def replay(self) -> None:
        """Launch all recorded kernels."""
        self._graph.replay()


class Captured(Generic[T]):
    """Work that runs eagerly a few times, is then recorded, and from then on is replayed.

    Changing inputs must be tensors at fixed addresses, because no host code runs in a replay. The work may take several
    paths, each with its own recording.

    Args:
        graph: creates an empty recording.
    """

    def __init__(self, graph: Callable[[], Graph] = CudaGraph) -> None:
        self._new = graph
        self._calls: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[Graph, T]] = {}

    def __call__(self, path: Hashable, work: Callable[[], T]) -> T:
        """The result of ``work`` along ``path``; its tensors are overwritten by the next call."""
        if path in self._recorded:
            graph, result = self._recorded[path]
            graph.replay()
            return result
        self._calls[path] += 1
        if self._calls[path] <= WARM_UP:
            return self._beside(work)
        graph = self._new()
        result = graph.record(work)
        self._recorded[path] = graph, result
        return result

    @staticmethod
    def _beside(work: Callable[[], T]) -> T:
        """On a GPU, run on a side stream, as a recording does."""
        if not torch.cuda.is_available():
            return work()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = work()
        torch.cuda.current_stream().wait_stream(side)
        return result

    def forget(self) -> None:
        """Drop the recordings, because memory has moved."""
        self._calls.clear()
        self._recorded.clear()
