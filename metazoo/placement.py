"""Where the images of a run lie while it uses them: on its device, in the host's memory, or on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from metazoo.errors import unknown

Placement = Literal["device", "host", "disk"]

PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

SHARE_OF_FREE_MEMORY = 0.5
"""Images may take this share of what is free on a GPU or in the host; the rest is for training."""

_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("bytes", 1))


@dataclass(frozen=True)
class Place:
    """Where `nbytes` bytes of images lie for a network on `device`.

    `device`: copied into the device's memory. `host`: copied into the host's. `disk`: left in the packed file, which is
    mapped into memory; the system keeps of it what there is room for. It decides the speed, and no number.
    """

    placement: Placement
    nbytes: int
    device: torch.device

    @property
    def is_far(self) -> bool:
        """Whether a batch has a way to go, so that it is better gathered while the one before it is in use."""
        if self.device.type == "cuda":
            return self.placement != "device"
        return self.placement == "disk" and self.nbytes > SHARE_OF_FREE_MEMORY * free_host_memory()

    @property
    def goes_without_saying(self) -> bool:
        """Whether it is what a CPU always does, a file that is mapped and soon read, and worth no line."""
        return self.device.type != "cuda" and self.placement == "disk" and not self.is_far

    @property
    def text(self) -> str:
        """Such as `images: 1.2 GB on the GPU`."""
        where = {
            "device": "on the GPU" if self.device.type == "cuda" else "in memory",
            "host": "in the host's memory" if self.device.type == "cuda" else "in memory",
            "disk": "mapped from disk",
        }[self.placement]
        unit, divisor = next((unit, size) for unit, size in _UNITS if self.nbytes >= size or size == 1)
        ahead = ", batches fetched ahead" if self.is_far else ""
        return f"images: {self.nbytes / divisor:.{0 if divisor == 1 else 1}f} {unit} {where}{ahead}"


def known_placement(name: str) -> Placement | None:
    """The placement called `name`, None for `auto`; a UserError for any other name."""
    for placement in PLACEMENTS:
        if name == placement:
            return placement
    if name == "auto":
        return None
    raise unknown("placement of images", name, ("auto", *PLACEMENTS))


def choose(nbytes: int, device: torch.device, asked: Placement | None = None) -> Place:
    """As asked; else for a GPU the nearest place whose free memory is at least twice `nbytes`, and the disk last.

    On a CPU the mapped file is as near as a copy of it: what was read once is in memory, and processes share it.
    """
    if asked is not None:
        return Place(asked, nbytes, device)
    if device.type != "cuda":
        return Place("disk", nbytes, device)
    if nbytes <= SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]:
        return Place("device", nbytes, device)
    return Place("host" if nbytes <= SHARE_OF_FREE_MEMORY * free_host_memory() else "disk", nbytes, device)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; to a GPU through pinned memory, without waiting for the work queued there."""
    if tensor.device.type == device.type:
        return tensor
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def free_host_memory() -> int:
    """Bytes that this process can still have: what Linux calls available, within a container's limit."""
    found = [_available(), _left_in_container()]
    return min(nbytes for nbytes in found if nbytes is not None)


def _available() -> int:
    try:
        return 1024 * int(re.findall(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[0])
    except (OSError, IndexError):  # not Linux: half of what there is, for want of something better
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves, file cache not counted as used; None where there is no limit."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", (group / "memory.stat").read_text(), re.M)))
    except (OSError, ValueError):
        return None
    return max(0, limit - used + cached)
