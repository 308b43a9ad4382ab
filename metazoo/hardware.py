"""The device a run works on: choosing it, describing it, and saying what to do when its memory is full."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import metazoo
from metazoo.errors import OutOfMemory, UserError

_FULL = re.compile(
    r"out of memory|can't allocate memory|cannot allocate|not enough memory|DefaultCPUAllocator|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def choose(name: str) -> torch.device:
    """The device called `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`; a UserError where there is none."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"There is no device '{name}'; a device is auto, cpu, cuda or cuda:N.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not gpus:
            raise UserError(f"PyTorch sees no GPU here{_why()}; use --device cpu, or auto for whatever there is.")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        if device.index >= gpus:
            raise UserError(f"There is no device '{name}'; PyTorch sees {gpus} of them, counted from cuda:0.")
    return device


def _why() -> str:
    """What keeps PyTorch from seeing a GPU, as far as it can be told."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f": {torch.__version__} is a build for CPUs; install one for your GPU's driver (pytorch.org says how)"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f", although it was built for {built}: see whether the GPU's driver is there (nvidia-smi, rocm-smi)"


def tasks_at_once(tasks_per_pass: int | None, device: torch.device, automatic: int, network: nn.Module) -> int:
    """How many tasks one pass stacks: as asked, else `automatic`; but 1 on a CPU if the network has convolutions.

    Of several tasks they are grouped convolutions, which do not pay there.
    """
    if tasks_per_pass is None:
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in network.modules())
        return 1 if convolves and device.type == "cpu" else automatic
    if tasks_per_pass < 1:
        raise UserError(f"A pass needs at least one task; tasks_per_pass is {tasks_per_pass}.")
    return tasks_per_pass


def versions() -> dict[str, str]:
    """Versions of what decides a number: Python, the libraries, and CUDA and cuDNN where PyTorch has them."""
    found = {"python": platform.python_version(), "metazoo": metazoo.__version__}
    for package in ("torch", "learn2learn", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def describe(device: torch.device) -> str:
    """The device in words: `NVIDIA H200 (140 GiB)`, or the CPU's name with the threads that PyTorch uses."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    threads = torch.get_num_threads()
    return f"{_cpu_name()} ({threads} of {os.cpu_count()} cores, {_memory_gib():.0f} GiB)"


_peaks: dict[torch.device, int] = {}
"""The peaks of GPUs from before PyTorch's count of them was begun anew."""


def reset_peak(device: torch.device) -> None:
    """Begin to measure a GPU's peak memory anew; the peak of a process on a CPU cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _peaks[device] = 0


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """The bytes that work on a GPU adds, at most, to what its tensors take; `peak_memory_mb` takes no notice of it."""
    _peaks[device] = max(_peaks.get(device, 0), torch.cuda.max_memory_allocated(device))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the tensors on a GPU; on a CPU, of the whole process (resident) since it began."""
    if device.type == "cuda":
        return max(_peaks.get(device, 0), torch.cuda.max_memory_allocated(device)) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage hands a process the peak of the one that started it
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@contextmanager
def memory_sentences(device: torch.device, doing: str, remedy: str) -> Iterator[None]:
    """Turn any of the errors for exhausted memory into an OutOfMemory that says what was done and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        place = "The GPU" if device.type == "cuda" else "The machine"
        raise OutOfMemory(f"{place} ran out of memory {doing}; {remedy}.") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory is exhausted, whichever of PyTorch's several ways it says so."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
