"""Steps that are skipped: decided where the numbers are, so that the host need not wait for the device to know."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Findings(NamedTuple):
    """What was found in a step on some rank."""

    bad_loss: bool
    bad_gradient: bool
    too_long: bool
    """A finite gradient longer than what was allowed."""
    stop: bool
    """Somebody asked for the run to stop; no reason to skip."""

    @property
    def skips(self) -> bool:
        """Whether the weights must not move."""
        return self.bad_loss or self.bad_gradient or self.too_long


class Verdict:
    """Findings of a step as a tensor on the device, and a copy of them for the host.

    Args:
        flags: 0 or 1 for each of :class:`Findings`, in their order, the same on all ranks; float32 [4].
    """

    def __init__(self, flags: Tensor) -> None:
        self.flags = flags
        self._copy, self._copied = flags, None
        if flags.is_cuda:  # leaves for pinned memory behind the work that is queued; nobody waits
            self._copy = torch.empty(flags.shape, pin_memory=True).copy_(flags, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(flags.device))  # the current device may be another one

    @property
    def skips(self) -> Tensor:
        """Whether the weights must not move: a bool on the device."""
        return self.flags[:3].any()

    def read(self) -> Findings:
        """The findings on the host; waits only if the device is not that far yet."""
        if self._copied is not None:
            self._copied.synchronize()
        return Findings(*(value > 0.0 for value in self._copy.tolist()))
