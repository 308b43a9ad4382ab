"""One meta-step beside learn2learn's own loop: `python -m metazoo.benchmarks.speed.meta_step`.

Both sides run second-order MAML with five inner steps on the same tensors and the same initial weights, in one process,
alternating. learn2learn's side is its published recipe, one clone a task; it adapts every parameter of a module, so
ours adapts every role too. Its network is the same four blocks, written with torch's own modules in the usual order
(`--network plain`); with `--network ours` it runs on our Conv4, which leaves the learners alone to compare.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.hardware import describe, peak_memory_mb, versions
from metazoo.learner import learn2learn

STEPS, LR = 5, 0.01

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """An episode's shape as the benchmark of that name has it."""

    name: str
    channels: int
    size: int
    filters: int
    shots: int
    ways: int = 5
    queries: int = 15


SHAPES = (
    Shape("omniglot", 1, 28, 64, 1),
    Shape("cifar_fs", 3, 32, 48, 1),
    Shape("cifar_fs", 3, 32, 48, 5),
    Shape("miniimagenet", 3, 84, 48, 1),
    Shape("miniimagenet", 3, 84, 48, 5),
)


@dataclass(frozen=True)
class Timing:
    """Medians over the repetitions; `ratio` is learn2learn's time over ours, above 1 when ours is faster."""

    shape: Shape
    tasks: int
    tasks_per_pass: int
    ours_tasks_per_second: float
    learn2learn_tasks_per_second: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    ours_peak_mb: float
    learn2learn_peak_mb: float


def episodes_of(shape: Shape, tasks: int, device: torch.device) -> Episodes:
    """Seeded noise in the shape of real episodes."""
    generator = torch.Generator().manual_seed(0)

    def draw(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.rand(tasks, shape.ways * each, shape.channels, shape.size, shape.size, generator=generator)
        return images.to(device), torch.arange(shape.ways).repeat(each).expand(tasks, -1).contiguous().to(device)

    support_x, support_y = draw(shape.shots)
    query_x, query_y = draw(shape.queries)
    return Episodes(support_x, support_y, query_x, query_y, shape.ways)


def learn2learn_step(maml: Any, episodes: Episodes) -> None:
    """learn2learn's loop over the tasks of a meta-batch, gradients accumulated."""
    for task in range(len(episodes)):
        clone = maml.clone()
        for _ in range(STEPS):
            clone.adapt(F.cross_entropy(clone(episodes.support_x[task]), episodes.support_y[task]))
        loss = F.cross_entropy(clone(episodes.query_x[task]), episodes.query_y[task])
        (loss / len(episodes)).backward()


def our_step(algorithm: Algorithm, episodes: Episodes, tasks_per_pass: int) -> None:
    """The same meta-gradient by the stacked learner."""
    for chunk in episodes.chunks(tasks_per_pass):
        (algorithm.learn(chunk).losses.sum() / len(episodes)).backward()


def plain(network: Conv4) -> nn.Module:
    """The same network with the same weights, written with torch's own modules."""
    body = nn.Sequential()
    for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        norm = nn.BatchNorm2d(conv.out_channels, track_running_stats=False)
        body.extend([copy.deepcopy(conv), norm, nn.LeakyReLU(), nn.MaxPool2d(2)])
    return nn.Sequential(body, nn.Flatten(), copy.deepcopy(network.head))


def two_sides(shape: Shape, tasks: int, tasks_per_pass: int, device: torch.device, same_network: bool) -> list[Step]:
    """One meta-step by us and one by learn2learn, on the same episodes and initial weights."""
    torch.manual_seed(0)
    network = Conv4((shape.channels, shape.size, shape.size), shape.ways, Conv4.Settings(filters=shape.filters))
    method: Any = registry.algorithm("maml")
    rates = {"body": LR, "norm": LR, "head": LR}
    algorithm = method(copy.deepcopy(network), method.Settings(inner_lr=rates)).to(device)
    theirs = network if same_network else plain(network)
    maml = learn2learn.algorithms.MAML(theirs.to(device), lr=LR)
    episodes = episodes_of(shape, tasks, device)
    return [
        lambda: our_step(algorithm, episodes, tasks_per_pass),
        lambda: learn2learn_step(maml, episodes),
    ]


def compare(
    shape: Shape, tasks: int, tasks_per_pass: int, repetitions: int, device: torch.device, same_network: bool
) -> Timing:
    """Time both sides in alternation; the first round warms up and is not counted."""
    sides = two_sides(shape, tasks, tasks_per_pass, device, same_network)
    seconds: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        order = (0, 1) if repetition % 2 else (1, 0)
        for side in order:
            elapsed = _timed(sides[side], device)
            if repetition:
                seconds[side].append(elapsed)
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    ours_mb, learn2learn_mb = (
        _in_fresh_process(peak_mb, side, shape, tasks, tasks_per_pass, str(device), same_network) for side in range(2)
    )
    return Timing(
        shape,
        tasks,
        tasks_per_pass,
        tasks / statistics.median(seconds[0]),
        tasks / statistics.median(seconds[1]),
        statistics.median(ratios),
        (quartiles[0], quartiles[2]),
        ours_mb,
        learn2learn_mb,
    )


def peak_mb(side: int, shape: Shape, tasks: int, tasks_per_pass: int, device: str, same_network: bool) -> float:
    """Memory a meta-step needs above what is held before it: resident memory on a CPU, the allocator's on a GPU."""
    place = torch.device(device)
    step = two_sides(shape, tasks, tasks_per_pass, place, same_network)[side]
    if place.type == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    held_mb = peak_memory_mb(place)
    step()
    return peak_memory_mb(place) - held_mb


def _in_fresh_process(function: Callable[..., float], *arguments: Any) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _timed(step: Step, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tasks", type=int, default=4, help="tasks of a meta-batch")
    parser.add_argument("--tasks-per-pass", type=int, help="stacked tasks; 1 on a CPU, all on a GPU by default")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--network", choices=("plain", "ours"), default="plain", help="what learn2learn's side runs on")
    parser.add_argument("--json", type=Path, help="also write the timings here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    per_pass = arguments.tasks_per_pass or (1 if device.type == "cpu" else arguments.tasks)
    print(f"{describe(device)}; {versions()}")
    print("second-order MAML, 5 inner steps, all tensors adapted; ratio above 1: ours is faster (median, quartiles)")
    timings = []
    for shape in SHAPES:
        same_network = arguments.network == "ours"
        timing = compare(shape, arguments.tasks, per_pass, arguments.repetitions, device, same_network)
        timings.append(timing)
        low, high = timing.ratio_quartiles
        print(
            f"{shape.name:13} {shape.ways}-way {shape.shots}-shot  tasks/s: ours {timing.ours_tasks_per_second:.2f}, "
            f"learn2learn {timing.learn2learn_tasks_per_second:.2f}; "
            f"ratio {timing.ratio:.2f} ({low:.2f} to {high:.2f}); "
            f"peak memory {timing.ours_peak_mb:.0f} and {timing.learn2learn_peak_mb:.0f} MB",
            flush=True,
        )
    if arguments.json:
        record = {
            "hardware": describe(device),
            "versions": versions(),
            "arguments": {k: v for k, v in vars(arguments).items() if k != "json"},
            "timings": [asdict(timing) for timing in timings],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
