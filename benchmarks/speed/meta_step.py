"""One meta-step beside learn2learn's own loop: `python -m metazoo.benchmarks.speed.meta_step [--json PATH]`.

Both sides run second-order MAML with five inner steps on the same tensors and the same initial weights, in one process,
alternating. learn2learn's side is its published recipe, one clone a task; it adapts every parameter of a module, so ours
adapts every role too. The network is our Conv4 for both, except where `--network learn2learn` gives it its own CNN4
(other activation, running statistics, so only the time compares).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.hardware import describe, versions
from metazoo.learner import learn2learn

STEPS, LR = 5, 0.01


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


def learn2learn_step(maml: nn.Module, episodes: Episodes) -> None:
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


def compare(shape: Shape, tasks: int, tasks_per_pass: int, repetitions: int, device: torch.device, own: bool) -> Timing:
    """Time both sides in alternation; the first round warms up and is not counted."""
    torch.manual_seed(0)
    network = Conv4((shape.channels, shape.size, shape.size), shape.ways, Conv4.Settings(filters=shape.filters))
    method = registry.algorithm("maml")
    rates = {"body": LR, "norm": LR, "head": LR}
    algorithm = method(copy.deepcopy(network), method.Settings(inner_lr=rates)).to(device)
    theirs = (
        learn2learn.vision.models.CNN4(
            shape.ways,
            hidden_size=shape.filters,
            channels=shape.channels,
            max_pool=True,
            embedding_size=network.head.in_features,
        )
        if own
        else network
    )
    maml = learn2learn.algorithms.MAML(theirs.to(device), lr=LR)
    episodes = episodes_of(shape, tasks, device)
    sides: tuple[Callable[[], None], ...] = (
        lambda: our_step(algorithm, episodes, tasks_per_pass),
        lambda: learn2learn_step(maml, episodes),
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        order = (0, 1) if repetition % 2 else (1, 0)
        for side in order:
            elapsed = _timed(sides[side], device)
            if repetition:
                seconds[side].append(elapsed)
    ratios = sorted(theirs / ours for ours, theirs in zip(*seconds, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    peaks = [_peak_mb(side, device) for side in sides]
    return Timing(
        shape,
        tasks,
        tasks_per_pass,
        tasks / statistics.median(seconds[0]),
        tasks / statistics.median(seconds[1]),
        statistics.median(ratios),
        (quartiles[0], quartiles[2]),
        *peaks,
    )


def _timed(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_mb(step: Callable[[], None], device: torch.device) -> float:
    """Memory a step needs above what is held before it: the allocator's on a GPU, sampled resident memory on a CPU."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, peak, done = _resident_mb(), 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _resident_mb())

    sampler = threading.Thread(target=sample)
    sampler.start()
    step()
    done.set()
    sampler.join()
    return max(0.0, peak - before)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tasks", type=int, default=4, help="tasks of a meta-batch")
    parser.add_argument("--tasks-per-pass", type=int, help="stacked tasks; 1 on a CPU, all on a GPU by default")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--network", choices=("ours", "learn2learn"), default="ours", help="learn2learn's side's network"
    )
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
        own = arguments.network == "learn2learn"
        timing = compare(shape, arguments.tasks, per_pass, arguments.repetitions, device, own)
        timings.append(timing)
        low, high = timing.ratio_quartiles
        print(
            f"{shape.name:13} {shape.ways}-way {shape.shots}-shot  ours {timing.ours_tasks_per_second:7.2f} tasks/s  "
            f"learn2learn {timing.learn2learn_tasks_per_second:7.2f}  ratio {timing.ratio:.2f} ({low:.2f} to {high:.2f})  "
            f"memory {timing.ours_peak_mb:.0f} and {timing.learn2learn_peak_mb:.0f} MB",
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
