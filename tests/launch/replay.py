"""A CUDA graph emulated on a CPU: the operations of a call are recorded, and repeated on the same memory.

As in the replay of a graph, no host code runs, numbers from the host keep their recorded values, and memory keeps its
addresses. Streams and the reuse of memory by an allocator are not emulated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Notes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "profiler" not in str(func):
            self.operations.append((func, args, kwargs or {}, out))
        return out


class EmulatedGraph:
    """Emulation of :class:`launch.machine.execution.CudaGraph` without a GPU."""

    def __init__(self) -> None:
        self._notes = _Notes()

    def record(self, work: Callable[[], Any]) -> Any:
        """Run the work and note its operations."""
        with self._notes:
            return work()

    @torch.no_grad()
    def replay(self) -> None:
        """Do the operations again; results go where they went before."""
        for func, args, kwargs, out in self._notes.operations:
            if func.is_view:  # aliases of memory that is written anew
                continue
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new and old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
