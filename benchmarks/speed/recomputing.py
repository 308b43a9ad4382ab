"""What `--recompute` saves and costs: `python -m metazoo.benchmarks.speed.recomputing`.

Passes of one task on a CPU with one thread, each combination in a process of its own. Memory is what they add to the
process's peak, time the median of that thread's. `kernels` says whether Conv4's blocks run the kernels for CPUs or
torch's modules, as they do elsewhere; the modules keep more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from metazoo import hardware, registry
from metazoo.backbones import Conv4
from metazoo.benchmarks.speed.bench import in_fresh_process, shape_called
from metazoo.benchmarks.speed.plain import SETTINGS
from metazoo.benchmarks.speed.shapes import episodes_of
from metazoo.fast import native
from metazoo.files import write_text
from metazoo.meta_pass import MetaPass
from metazoo.outer_step import OuterStep
from metazoo.recomputing import Recomputing

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Measured:
    method: str
    shape: str
    kernels: bool
    recomputed: bool
    peak_mb: float
    seconds: float


def measure(method: str, shape_name: str, kernels: bool, recomputed: bool, rounds: int) -> Measured:
    """To be called in a fresh process: its peak cannot be reset."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = shape_called(shape_name)
    network = Conv4((shape.channels, shape.size, shape.size), shape.ways, Conv4.Settings(filters=shape.filters))
    algorithm = registry.create(method, network, SETTINGS.get(method, {}))
    network.recomputing = Recomputing() if recomputed else None
    parameters = [parameter for group in algorithm.outer_groups() for parameter in group.parameters]
    work, episodes = MetaPass(algorithm, parameters, 1.0), episodes_of(shape, 1, CPU)
    times = []
    with contextlib.nullcontext() if kernels else native.set_aside():
        if kernels:
            native.usable(torch.float32)  # compiles them, if need be
        before = hardware.peak_memory_mb(CPU)
        for _ in range(rounds):
            start = time.thread_time()
            work(episodes, OuterStep())
            times.append(time.thread_time() - start)
    peak = hardware.peak_memory_mb(CPU) - before
    return Measured(method, shape_name, kernels, recomputed, round(peak, 1), round(statistics.median(times), 3))


def main() -> None:
    parser = argparse.ArgumentParser(description="What --recompute saves and costs.")
    parser.add_argument("methods", nargs="*", default=["maml", "cxgrad"])
    parser.add_argument("--shape", default="miniimagenet-5w5s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[Measured] = []
    for method in arguments.methods:
        for kernels in (False, True):
            for recomputed in (False, True):
                row = in_fresh_process(measure, method, arguments.shape, kernels, recomputed, arguments.rounds)
                found.append(row)
                print(json.dumps(asdict(row)), flush=True)
    if arguments.json:
        record = {
            "hardware": hardware.describe(CPU),
            "versions": hardware.versions(),
            "measured": [asdict(row) for row in found],
        }
        write_text(arguments.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
