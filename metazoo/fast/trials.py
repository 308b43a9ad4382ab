"""Choosing between equal ways to compute by a short timed trial on the GPU, once and for all.

What is fastest depends on the card, its libraries, the type and the shapes. The answers are kept in the user's cache
with what was measured; delete `trials.json` there to have them measured anew. Where nothing can be measured, on a CPU
or while a CUDA graph is being captured, or shall not be, the answer is the default, unless it is known. The environment
variable `METAZOO_<SUBJECT>` fixes the answer to all questions of a subject.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from metazoo.errors import unknown
from metazoo.files import cache_folder, write_text

WARM_UP, TIMED = 3, 7
"""Runs of each way, the last of which are timed; the first compile, load and choose kernels of their own."""

Fact = str | int | float | bool | tuple[int, ...]

_known: dict[tuple[Any, ...], str] = {}
"""Answers that this process has given."""


def asked_for(subject: str, ways: Collection[str]) -> str | None:
    """The way that the environment fixes, None where it fixes none; a UserError for one that does not exist."""
    name = os.environ.get(f"METAZOO_{subject.upper()}")
    if name and name not in ways:
        raise unknown(f"way to compute a {subject} (METAZOO_{subject.upper()})", name, ways)
    return name or None


def choose(
    subject: str, facts: tuple[Fact, ...], ways: Mapping[str, Callable[[], object]], default: str, device: torch.device
) -> str:
    """The name of the fastest of `ways` to do one thing on `device`; `facts` say what its speed depends on.

    Each way is a function that does the thing. One that fails or finds no memory is out of the question; if all do, the
    answer is the default in this process. Call it without an active `torch.func` transform.
    """
    if device.type != "cuda":
        return default
    question = subject, str(device), *facts
    if question not in _known:
        key = json.dumps([*_machine(device), subject, *facts])
        chosen = _read().get(key, {}).get("chosen")
        if chosen not in ways:
            if _postponed or is_capturing(device):
                return default
            times = {name: _milliseconds(way, device) for name, way in ways.items()}
            chosen = min(times, key=lambda name: times[name])
            if math.isfinite(times[chosen]):
                measured = {name: round(time, 4) if math.isfinite(time) else None for name, time in times.items()}
                _keep(key, {"chosen": chosen, "milliseconds": measured})
            else:
                chosen = default
        _known[question] = chosen
    return _known[question]


_postponed = False


@contextmanager
def postponed() -> Iterator[None]:
    """While the block runs nothing is tried, as in passes of a shape that will not come again."""
    global _postponed
    before, _postponed = _postponed, True
    try:
        yield
    finally:
        _postponed = before


def is_capturing(device: torch.device) -> bool:
    """Whether what is computed on the device is being recorded in a CUDA graph, so that nothing may be waited for."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def layout(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of a tensor and the order of its axes in memory, as facts."""
    strides = tensor.stride()
    return *tensor.shape, *sorted(range(tensor.dim()), key=lambda axis: -strides[axis])


def forget() -> None:
    """Give every answer of this process anew, from the cache on disk or by a trial."""
    _known.clear()


def _milliseconds(way: Callable[[], object], device: torch.device) -> float:
    """The median time of a way on the current stream; infinite where it fails."""
    times = []
    try:
        with torch.cuda.device(device):  # whose stream it is that events are recorded on
            for _ in range(WARM_UP):
                way()
            for _ in range(TIMED):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                way()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
    except Exception:  # of every kind: no memory, no such kernel, no compiler; another way will do
        return math.inf
    return statistics.median(times)


@functools.cache
def _machine(device: torch.device) -> tuple[str, ...]:
    """What the answers of one machine hold for: the card and the libraries."""
    libraries = torch.__version__, str(torch.version.cuda or torch.version.hip), str(torch.backends.cudnn.version())
    return torch.cuda.get_device_name(device), *libraries


def _read() -> dict[str, Any]:
    """The trials on disk; none where there is no file or it is damaged."""
    try:
        trials = json.loads((cache_folder() / "trials.json").read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(trials, dict) and all(isinstance(trial, dict) for trial in trials.values())
    return trials if whole else {}


def _keep(key: str, trial: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # no room or no right to write: the next process measures again
        write_text(cache_folder() / "trials.json", json.dumps({**_read(), key: trial}, indent=1) + "\n")
