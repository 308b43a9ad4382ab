"""The test of a model as `metazoo evaluate` makes it, beside the plain loop on the same episodes, on a CPU.

    python -m metazoo.benchmarks.speed.evaluation cifar_fs-5w1s cifar_fs-5w5s --data cifar_fs --json evaluation.json

Ours draws the episodes, gathers their images from the packed data set, adapts, predicts and scores; the plain loop is
handed the same episodes and only adapts and predicts. The two alternate, block by block, in one process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from metazoo import hardware, registry
from metazoo.backbones import Conv4
from metazoo.benchmarks.speed.bench import keep_freed_memory, matrix_gflops, shape_called, shapes
from metazoo.benchmarks.speed.plain import SETTINGS, baseline
from metazoo.benchmarks.speed.shapes import Shape
from metazoo.data.store import Split, open_store
from metazoo.episodes import Episodes, EpisodeSampler, EpisodeStream
from metazoo.evaluation import episode_scores
from metazoo.files import write_text
from metazoo.images import ImageTable

CPU = torch.device("cpu")

WARM_UP = 3
"""Episodes before the clock runs."""

CLASSES, IMAGES = 20, 100
"""Of the noise that stands in for a data set, and images of each class."""


@dataclass
class Side:
    """Ours or the plain loop's: what its blocks took, and what it predicted."""

    seconds: list[float] = field(default_factory=list)
    """Of the thread's own clock: with one thread, all the work that there is, and no other work on the machine."""
    wall_seconds: list[float] = field(default_factory=list)
    correct: int = 0
    """Predictions of a model that has not learned anything: the same on both sides but for rounding."""

    def run(self, work: Callable[[], float]) -> None:
        wall, start = time.perf_counter(), time.thread_time()
        self.correct += int(work())
        self.seconds.append(time.thread_time() - start)
        self.wall_seconds.append(time.perf_counter() - wall)


@dataclass(frozen=True)
class Measured:
    """One method on one shape of episodes."""

    method: str
    shape: str
    filters: int
    images: str
    episodes: int
    predictions: int
    ours: Side
    plain: Side

    @property
    def ratio(self) -> float:
        """The plain loop's time over ours, of all blocks together."""
        return sum(self.plain.seconds) / sum(self.ours.seconds)

    @property
    def wall_ratio(self) -> float:
        return sum(self.plain.wall_seconds) / sum(self.ours.wall_seconds)

    @property
    def ratios(self) -> list[float]:
        """Block by block."""
        return [theirs / ours for ours, theirs in zip(self.ours.seconds, self.plain.seconds, strict=True)]

    def as_json(self) -> dict[str, object]:
        found = {"ratio": self.ratio, "ratio_by_block": self.ratios, "wall_ratio": self.wall_ratio}
        return asdict(self) | found

    def __str__(self) -> str:
        ours, theirs = (self.episodes / sum(side.seconds) for side in (self.ours, self.plain))
        return (
            f"{self.method:8}{self.shape:18}{self.episodes:6}{ours:10.2f}{theirs:10.2f}{self.ratio:8.2f}  "
            f"{f'{min(self.ratios):.2f} to {max(self.ratios):.2f}':14}{self.wall_ratio:8.2f}"
            f"{self.ours.correct / self.predictions:10.2%}{self.plain.correct / self.predictions:10.2%}"
        )


class Block(EpisodeStream):
    """The episodes of a stream from `first` on."""

    def __init__(self, stream: EpisodeStream, first: int):
        super().__init__(stream.sampler, stream.table)
        self.first = first

    def batch(self, start: int, count: int) -> Episodes:
        return super().batch(self.first + start, count)


def measure(method: str, shape_name: str, data: str | None = None, episodes: int = 600, blocks: int = 10) -> Measured:
    """Time `episodes` test episodes of the data set, or of noise, in `blocks` blocks."""
    shape = shape_called(shape_name)
    torch.manual_seed(0)
    network = Conv4((shape.channels, shape.size, shape.size), shape.ways, Conv4.Settings(filters=shape.filters))
    algorithm = registry.create(method, network, SETTINGS[method])
    loops = baseline(method, algorithm)
    assert loops is not None
    predict = loops[1]
    split = open_store(data, shape.size).split("test") if data else noise(shape)
    # One each: a stream remembers what it has drawn.
    ours_stream, plain_stream = (
        EpisodeStream(EpisodeSampler(split, shape.ways, shape.shots, shape.queries, seed=0), ImageTable(split, CPU))
        for _ in range(2)
    )
    size = episodes // blocks

    def take(first: int, count: int, ours: Side, plain: Side, ours_first: bool) -> None:
        ready, block = plain_stream.batch(first, count), Block(ours_stream, first)
        work: list[tuple[Side, Callable[[], float]]] = [
            (ours, lambda: sum(episode_scores({"it": [algorithm]}, block, count, CPU)["it"])),
            (plain, lambda: (predict(ready) == ready.query_y).sum().item()),
        ]
        for side, function in work if ours_first else reversed(work):
            side.run(function)

    take(episodes, WARM_UP, Side(), Side(), True)
    ours, plain = Side(), Side()
    for number in range(blocks):
        take(number * size, size, ours, plain, number % 2 == 0)
    images = f"{split.dataset}, {split.name} split" if data else "noise"
    count = size * blocks
    return Measured(method, shape_name, shape.filters, images, count, count * ours_stream.queries, ours, plain)


def noise(shape: Shape) -> Split:
    """Random pixels in the form of a packed split."""
    pixels = np.random.default_rng(0).integers(
        0, 256, (CLASSES * IMAGES, shape.channels, shape.size, shape.size), dtype=np.uint8
    )
    names = tuple(f"class{number:02}" for number in range(CLASSES))
    return Split("noise", "test", pixels, names, np.arange(CLASSES) * IMAGES, np.full(CLASSES, IMAGES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=shapes(), metavar="SHAPE", help=", ".join(shapes()))
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--data", help="a prepared data set of such images; noise by default")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-freed-memory", action="store_true", help="as that of metazoo bench")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file, after every row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_freed_memory:
        keep_freed_memory()
    record = {
        "hardware": hardware.describe(CPU),
        "versions": hardware.versions(),
        "matrix_gflops": matrix_gflops(CPU),
        "threads": arguments.threads,
        "keep_freed_memory": arguments.keep_freed_memory,
        "measured": (rows := []),
    }
    print(f"{record['hardware']}; matrix product {record['matrix_gflops']:.0f} Gflop/s")
    print(
        f"{'':32}{'tasks/s':>10}{'plain':>10}{'ratio':>8}  {'of the blocks':14}{'by wall':>8}"
        f"{'correct':>10}{'plain':>10}"
    )
    for shape in arguments.shapes:
        for method in arguments.methods:
            found = measure(method, shape, arguments.data, arguments.episodes, arguments.blocks)
            rows.append(found.as_json())
            print(found, flush=True)
            if arguments.json:
                write_text(arguments.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
