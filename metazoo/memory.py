"""How many tasks a pass stacks: as many as asked for; on a GPU, by itself, as many as its memory has room for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import nn

from metazoo import hardware
from metazoo.episodes import Episodes
from metazoo.fast import trials

SHARE_OF_FREE_MEMORY = 0.8
"""What passes may take of the memory that is free; the rest is for what differs between measured and later passes."""

Found = TypeVar("Found")


class Gauge(Protocol):
    """What can be read of a device's memory, in bytes."""

    def free(self) -> int:
        """What tensors can still have."""

    def peak(self, work: Callable[[], object]) -> int:
        """The most that work adds to what there is while it goes on."""


class GpuGauge:
    """What PyTorch says of a GPU's memory."""

    def __init__(self, device: torch.device):
        self.device = device

    def free(self) -> int:
        """After PyTorch has given back what it holds and does not use; what it holds for CUDA graphs stays theirs."""
        with contextlib.suppress(RuntimeError):  # after a broken recording not every PyTorch can
            torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def peak(self, work: Callable[[], object]) -> int:
        return hardware.peak_of(work, self.device)


def gauge(device: torch.device) -> Gauge | None:
    """What reads a device's memory; None on a CPU, where nothing says how much one pass needs."""
    return GpuGauge(device) if device.type == "cuda" else None


def tasks_that_fit(work: Callable[[int], object], most: int, gauge: Gauge) -> int:
    """How many tasks, at most `most`, can be in a pass, where `work(n)` is one of n tasks.

    What a pass of one task needs, and of two, says what each needs. If the number is below `most`, it is one by which
    `most` tasks fall into parts that are as equal as can be.
    """
    if most == 1:
        return 1
    with trials.postponed():  # passes of these sizes may not come again
        work(1)  # what is loaded in the first one is not counted
        one = gauge.peak(lambda: work(1))
        try:
            two = gauge.peak(lambda: work(2))
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error):
                raise
            return 1
    each = two - one if two > one else max(one, 1)
    room = SHARE_OF_FREE_MEMORY * gauge.free() - max(one - each, 0)
    fits = min(max(int(room // each), 1), most)
    return -(-most // -(-most // fits))


class PassSize:
    """The number of tasks in a pass, of `most` that there are at once.

    It is as asked; or one on a CPU if the network has convolutions, and all of them otherwise; on a GPU as many as its
    memory has room for, which is measured with the first batch. Where memory does not suffice all the same and nothing
    was asked, it is halved, of which `note` gets one sentence; `what` is what is passed. It changes no result, but for
    rounding.
    """

    def __init__(
        self,
        asked: int | None,
        device: torch.device,
        most: int,
        network: nn.Module,
        what: str = "",
        note: Callable[[str], object] = lambda text: None,
    ):
        self.tasks = hardware.tasks_at_once(asked, device, most, network)
        self.is_fixed = asked is not None
        self.what = what
        self.note: Callable[[str], object] | None = note
        self._gauge = None if self.is_fixed else gauge(device)

    def measure(self, work: Callable[[Episodes], object], batch: Episodes) -> None:
        """On a GPU, once: settle how many tasks fit, by passes over one and two of the batch's; elsewhere nothing."""
        if self._gauge is not None and len(batch) > 1:
            self.tasks = tasks_that_fit(lambda count: work(batch.select(slice(0, count))), self.tasks, self._gauge)
        self._gauge = None

    def run(self, work: Callable[[int], Found]) -> Found:
        """Work with so many tasks in a pass; with half as many once more where memory does not suffice."""
        tried = self.tasks
        while True:
            try:
                found = work(self.tasks)
                break
            except RuntimeError as error:
                if self.is_fixed or self.tasks == 1 or not hardware.is_out_of_memory(error):
                    raise
            self.tasks = -(-self.tasks // 2)
        if self.tasks < tried and self.note:
            self.note(
                f"Memory did not suffice for {self.what} of {tried} tasks; they have {self.tasks} from here on, "
                f"which changes no result (--tasks-per-pass {self.tasks} begins with that)."
            )
            self.note = None
        return found
