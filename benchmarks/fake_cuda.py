"""Training steps on fake CUDA tensors: shapes, layouts, devices and kernels without a GPU.

FakeTensorMode computes the shape, layout and device of every result and nothing else. PyTorch's autograd engine insists
on a real device, so a small one in Python takes its place, and CUDA's cross-rank batch norm, which has no fake kernels,
is described here. The number of kernels of an operation is an estimate from ATen's sources.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
FREE = frozenset({"device", "empty", "empty_like", "new_empty", "empty_strided", "resize_", "set_", "wait_tensor"})
FREE |= {"detach", "_reshape_alias", "_unsafe_view", "lift_fresh"}  # operations that launch nothing
FREE |= {"_record_function_enter_new", "_record_function_exit"}
# H100: seconds per small kernel, bytes/s, FLOP/s in half precision
LATENCY, BANDWIDTH, MATRIX_RATE = 2.2e-6, 2.7e12, 400e12


class _Engine:
    """Run backward passes in Python, with the nodes in reverse order of creation as in PyTorch."""

    def __init__(self) -> None:
        self.node = "none"
        self.num_runs = 0

    def run(self, roots: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Differentiate ``roots``; gradients arrive in the leaves' ``grad``."""
        self.num_runs += 1
        buffers: dict[Any, dict[int, Tensor]] = defaultdict(dict)
        starts = []
        for root, grad in zip(roots, grads, strict=True):
            assert root.grad_fn is not None
            self._add(buffers[root.grad_fn], root.output_nr, torch.ones_like(root) if grad is None else grad)
            starts.append(root.grad_fn)
        waiting = self._dependencies(starts)
        ready = [(self._priority(n), i, n) for i, n in enumerate(dict.fromkeys(starts)) if not waiting[n]]
        heapq.heapify(ready)
        count = len(ready)
        with torch.no_grad():
            while ready:
                _, _, node = heapq.heappop(ready)
                outputs = self._call(node, buffers.pop(node, {}))
                for (following, slot), grad in zip(node.next_functions, outputs, strict=False):
                    if following is None:
                        continue
                    waiting[following] -= 1
                    if grad is not None:
                        self._add(buffers[following], slot, self._fitted(grad, following._input_metadata[slot]))
                    if waiting[following] == 0:
                        count += 1
                        heapq.heappush(ready, (self._priority(following), count, following))
        self.node = "none"

    def _priority(self, node: Any) -> int:
        is_leaf = type(node).__name__ == "AccumulateGrad"
        return -(2**62) if is_leaf else -node._sequence_nr()

    def _dependencies(self, starts: Sequence[Any]) -> Counter[Any]:
        counts: Counter[Any] = Counter()
        seen, stack = set(starts), list(dict.fromkeys(starts))
        while stack:
            for following, _ in stack.pop().next_functions:
                if following is None:
                    continue
                counts[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
        return counts

    def _add(self, slots: dict[int, Tensor], slot: int, grad: Tensor) -> None:
        self.node = "sum of gradients"
        slots[slot] = slots[slot] + grad if slot in slots else grad

    def _fitted(self, grad: Tensor, wanted: Any) -> Tensor:
        self.node = "fitting gradients"
        if tuple(grad.shape) != tuple(wanted.shape):
            grad = grad.sum_to_size(tuple(wanted.shape))
        if grad.dtype != wanted.dtype:
            grad = grad.to(wanted.dtype)
        assert grad.device == wanted.device, f"a gradient is on {grad.device}, its input on {wanted.device}"
        return grad

    def _call(self, node: Any, slots: dict[int, Tensor]) -> Sequence[Tensor | None]:
        if type(node).__name__ == "AccumulateGrad":
            self._accumulate(node.variable, slots[0]) if 0 in slots else None
            return ()
        if not slots:
            return (None,) * len(node.next_functions)
        inputs = [slots.get(i) for i in range(len(node._input_metadata))]
        inputs = [
            None if grad is None else self._fitted(grad, wanted)
            for grad, wanted in zip(inputs, node._input_metadata, strict=True)
        ]
        self.node = type(node).__name__
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return self._of_tensors(node, node.apply(*inputs))
        outputs = node(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _of_tensors(self, node: Any, outputs: Any) -> Sequence[Tensor | None]:
        """Gradients of the tensors that one of our functions returns; other arguments have no edge."""
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        spare = len(outputs) - len(node.next_functions)
        for _ in range(spare):
            outputs.remove(None)
        return outputs

    def _accumulate(self, leaf: Tensor, grad: Tensor) -> None:
        self.node = "AccumulateGrad"
        if leaf.grad is not None:
            leaf.grad += grad
            return
        strides = zip(leaf.shape, leaf.stride(), grad.stride(), strict=True)
        keeps = all(size == 1 or mine == theirs for size, mine, theirs in strides)
        leaf.grad = grad.detach() if keeps else torch.empty_like(leaf).copy_(grad)


def _layout_of_cudnn(x: Tensor, weight: Tensor, backend: object) -> torch.memory_format:
    """cuDNN returns channels_last if either argument is; without a GPU, PyTorch would assume another library."""
    layouts = {suggest_memory_format(x), suggest_memory_format(weight)}
    return torch.channels_last if torch.channels_last in layouts else torch.contiguous_format


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape[1], dtype=wide), x.new_empty(x.shape[1], dtype=wide)


def _gather_stats(x: Tensor, means: Tensor, inverse_stds: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    running_mean, running_var, _, _, counts = rest
    # without running statistics CUDA reads the counts as numbers of the input's type
    assert running_mean is not None
    assert running_mean.dtype == running_var.dtype == counts.dtype
    assert means.shape == inverse_stds.shape == (len(counts), x.shape[1])
    return means.new_empty(x.shape[1]), means.new_empty(x.shape[1])


def _elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> Tensor:
    assert weight.dtype == bias.dtype == mean.dtype == inverse_std.dtype
    return torch.empty_like(x)


def _backward_reduce(grad: Tensor, x: Tensor, mean: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    assert grad.stride() == x.stride(), "CUDA takes its slow path for two layouts"
    assert grad.dtype == x.dtype
    return tuple(torch.empty_like(mean) for _ in range(4))


def _backward_elemt(grad: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
    assert rest[-1].dtype == torch.int32, "counts are read as int32"
    return torch.empty_like(x)


CROSS_RANK: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": _stats,
    "batch_norm_gather_stats_with_counts": _gather_stats,
    "batch_norm_elemt": _elemt,
    "batch_norm_backward_reduce": _backward_reduce,
    "batch_norm_backward_elemt": _backward_elemt,
}


def _foreach(name: str, args: Sequence[Any]) -> int:
    """Kernels of a multi-tensor operation: each launch takes at most this many tensors and 320 blocks of 65,536 numbers."""
    lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    tensors, depth = lists[0], len(lists) + (not name.endswith("_"))
    blocks = sum(math.ceil(t.numel() / 65536) for t in tensors)
    table = {1: 110, 2: 64, 3: 48, 4: 36}.get(depth, 30)
    count = max(math.ceil(len(tensors) / table), math.ceil(blocks / 320), 1)
    return count + math.ceil(len(tensors) / table) if name == "_foreach_norm" else count


def _concatenation(tensors: Sequence[Tensor]) -> int:
    """Kernels that concatenate tensors: one per 128 tensors if all are dense in the same layout, else a copy of each."""
    layouts = {suggest_memory_format(t) for t in tensors}
    dense = len(layouts) == 1 and all(t.is_contiguous(memory_format=next(iter(layouts))) for t in tensors)
    return max(1, math.ceil(len(tensors) / 128)) if dense else len(tensors)


def num_kernels(name: str, args: Sequence[Any]) -> int:
    """CUDA kernels that an operation of ATen launches."""
    if name in ("convolution", "cudnn_convolution"):
        return 1 + (args[2] is not None)
    if name == "convolution_backward":
        return sum(map(int, args[-1]))
    if name in ("native_batch_norm", "cudnn_batch_norm", "_batch_norm_with_update"):
        return 4 if args[5] else 3  # statistics and their zeroed counters, their inverse, the result
    if name in ("native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward"):
        return 3 if args[7] else 4
    if name in ("batch_norm_stats", "batch_norm_backward_reduce"):
        return 2  # and zeroed counters
    if name in ("cat", "stack"):
        return _concatenation(args[0])
    if name in ("upsample_bilinear2d_backward", "slice_backward", "select_backward"):
        return 2
    if name == "logsumexp":
        return 6
    return _foreach(name, args) if name.startswith(("_foreach", "_amp_foreach")) else 1


def _flops(name: str, args: Sequence[Any], out: Any) -> float:
    """FLOPs of matrix products and convolutions."""
    if name == "convolution":
        return 2.0 * out.numel() * math.prod(args[1].shape[1:])
    if name == "convolution_backward":
        return 2.0 * args[0].numel() * math.prod(args[2].shape[1:]) * sum(map(int, args[-1][:2]))
    if name in ("bmm", "mm", "addmm", "baddbmm"):
        return 2.0 * out.numel() * args[-2].shape[-1]
    return 0.0


class Launch(NamedTuple):
    """An operation of the step: the kernels that it launches, in which module or gradient, and its modelled seconds."""

    name: str
    where: str
    kernels: int
    seconds: float


class Recorder(TorchDispatchMode):
    """Notes all operations that launch kernels, and refuses those that mix devices or wait for the host."""

    def __init__(self, engine: _Engine) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.engine = engine
        self.modules: list[str] = []
        self.launches: list[Launch] = []
        self.layouts: Counter[str] = Counter()
        """Operations whose large image-shaped result is not in channels_last, by name."""
        self.waits: Counter[str] = Counter()
        """Operations that make the host wait for the device, by name."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_leaves([args, kwargs or {}]) if isinstance(t, Tensor)]
        described = CROSS_RANK.get(name)
        out = func(*args, **(kwargs or {})) if described is None else described(*args)
        if any(t.is_cuda and t.dim() for t in tensors) and any(not t.is_cuda and t.dim() for t in tensors):
            raise AssertionError(f"{name} of tensors on several devices")
        if not (func.is_view or name in FREE or not self._on_device(tensors, out)):
            self._note(name, args, tensors, out)
        return out

    def _on_device(self, tensors: list[Tensor], out: Any) -> bool:
        return any(t.is_cuda for t in tensors) or any(isinstance(t, Tensor) and t.is_cuda for t in tree_leaves(out))

    def _note(self, name: str, args: Any, tensors: list[Tensor], out: Any) -> None:
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.waits[name] += 1
        for t in results:
            is_image = t.dim() == 4 and t.numel() > 20_000 and t.shape[1] > 1 and t.shape[2] * t.shape[3] > 1
            if is_image and not t.is_contiguous(memory_format=torch.channels_last):
                self.layouts[name] += 1
        kernels = num_kernels(name, args)
        num_bytes = sum(t.numel() * t.element_size() for t in (*tensors, *results))
        seconds = max(kernels * LATENCY, num_bytes / BANDWIDTH, _flops(name, args, out) / MATRIX_RATE)
        where = self.modules[-1] if self.modules else self.engine.node
        self.launches.append(Launch(name, where, kernels, seconds))

    @property
    def kernels(self) -> int:
        """All kernels."""
        return sum(launch.kernels for launch in self.launches)

    def watch(self, model: nn.Module) -> None:
        """Record the module in which an operation happens."""
        for module in model.modules():
            name = type(module).__name__
            module.register_forward_pre_hook(lambda *_, name=name: self.modules.append(name))
            module.register_forward_hook(lambda *_: [self.modules.pop(), None][1])


def to_device(module: nn.Module) -> None:
    """Give a module of meta tensors fake CUDA tensors of the same layout instead."""
    for part in module.modules():
        for tensors, wrap in ((part._parameters, nn.Parameter), (part._buffers, lambda t: t)):
            for name, value in tensors.items():
                if value is not None:
                    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
                    tensors[name] = wrap(empty)  # type: ignore[operator, assignment]


def on_meta(build: Callable[[], Any]) -> Any:
    """The result of ``build`` on the meta device, within :func:`fake_cuda`."""
    with unset_fake_temporarily(), torch.device("meta"):
        return build()


@contextlib.contextmanager
def fake_cuda() -> Iterator[Recorder]:
    """Allow CUDA tensors to be created and differentiated in this context; the recorder notes their kernel launches."""
    engine = _Engine()

    def backward(tensors: Any, grad_tensors: Any = None, *_: Any, **__: Any) -> None:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        grads = [None] * len(roots) if grad_tensors is None else list(grad_tensors)
        engine.run(roots, grads)

    patches = [
        mock.patch.object(Tensor, "backward", lambda self, gradient=None, **_: engine.run([self], [gradient])),
        mock.patch.object(torch.autograd, "backward", backward),
        mock.patch.object(torch._C, "_current_graph_task_id", side_effect=lambda: engine.num_runs),
        mock.patch.object(torch._C, "_conv_determine_backend_memory_format", _layout_of_cudnn),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield Recorder(engine)
