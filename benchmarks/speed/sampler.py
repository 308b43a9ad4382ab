"""Episodes per second, side by side with learn2learn's task sampler: `python -m metazoo.benchmarks.speed.sampler`.

Both draw from the same images in the same process and take turns, because a shared machine is faster in one minute than
in the next: every round times one after the other and gives one ratio, and the median of the ratios is the result. Each
comparison has its own learn2learn side:

- images: from the uint8 images that metazoo also reads, to normalised support and query tensors;
- images, collector off: the same without Python's garbage collector. A learn2learn task of 5 classes with 600 images
  makes 3,000 Python objects on its way, so that full collections, long in a process with PyTorch in it, come often;
- images, float store: learn2learn reads images that were normalised beforehand, at four times the memory;
- images, tasks drawn before: as the last one, but learn2learn only loads, from the descriptions that a finite task set
  keeps after the first time around, while metazoo draws new episodes: not the same work, but a usual way to use it;
- rows only: which images and labels, without the images (learn2learn: `NWays` and `KShots`).

The learn2learn side is spared what it can be: its samples are not stacked into a meta-batch.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from metazoo import files, hardware
from metazoo.data.store import Split
from metazoo.episodes import EpisodeSampler, EpisodeStream, ImageTable
from metazoo.learner import learn2learn

MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Shape:
    """What is sampled from (images [classes * images, channels, size, size]), and how."""

    classes: int = 64
    images: int = 600
    channels: int = 3
    size: int = 32
    ways: int = 5
    shots: int = 1
    queries: int = 15
    meta_batch: int = 4


@dataclass(frozen=True)
class Comparison:
    """Episodes per second of both sides (medians over rounds) and the ratios of the rounds."""

    name: str
    metazoo: float
    learn2learn: float
    ratios: tuple[float, ...]

    def line(self) -> str:
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        return (
            f"{self.name:<27} {self.metazoo:>12,.0f} {self.learn2learn:>12,.0f} {middle:>9.1f}x"
            f"   {low:.1f} to {high:.1f} ({min(self.ratios):.1f} to {max(self.ratios):.1f})"
        )


def random_split(shape: Shape) -> Split:
    """A split of random pixels: the time of a gather does not depend on what is in the images."""
    rows = shape.classes * shape.images
    pixels = np.random.default_rng(0).integers(0, 256, (rows, shape.channels, shape.size, shape.size), dtype=np.uint8)
    sizes = np.full(shape.classes, shape.images)
    names = tuple(f"class {number}" for number in range(shape.classes))
    return Split("random", "train", pixels, names, np.cumsum(sizes) - sizes, sizes)


def task_set(images: torch.Tensor, shape: Shape, tasks: int = -1, load: bool = True) -> Any:
    """learn2learn's sampler over `images`, with its usual transforms; `tasks` -1 draws a new task every time."""
    transforms = learn2learn.data.transforms
    labels = torch.arange(shape.classes).repeat_interleave(shape.images)
    rows_of = {c: list(range(c * shape.images, (c + 1) * shape.images)) for c in range(shape.classes)}
    data = learn2learn.data.MetaDataset(TensorDataset(images, labels), labels_to_indices=rows_of)
    steps = [transforms.NWays(data, shape.ways), transforms.KShots(data, shape.shots + shape.queries)]
    if load:
        steps += [transforms.LoadData(data), transforms.RemapLabels(data), transforms.ConsecutiveLabels(data)]
    return learn2learn.data.Taskset(data, task_transforms=steps, num_tasks=tasks)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as metazoo's table gives them, by the cheapest means there are."""
    return pixels.to(torch.float32).mul_(1 / (255 * STD)).sub_(MEAN / STD)


def compare(
    name: str, ours: Callable[[int], Any], episodes: int, theirs: Callable[[int], Any], tasks: int, rounds: int
) -> Comparison:
    """Time `ours(first)` for `episodes` and `theirs(first)` for `tasks` in turns; the first round is left out."""
    times: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        pair = []
        for work, count in ((ours, episodes), (theirs, tasks)):
            begin = time.perf_counter()
            work(number * count)
            pair.append((time.perf_counter() - begin) / count)
        times.append((pair[0], pair[1]))
    kept = times[1:]
    return Comparison(
        name,
        1 / statistics.median(mine for mine, _ in kept),
        1 / statistics.median(its for _, its in kept),
        tuple(its / mine for mine, its in kept),
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's cyclic garbage collector is off inside."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def comparisons(shape: Shape, device: torch.device, rounds: int, tasks: int) -> list[Comparison]:
    """All comparisons; `tasks` learn2learn tasks and 8 times as many metazoo episodes a round."""
    split = random_split(shape)
    channels = [MEAN] * shape.channels, [STD] * shape.channels
    table = ImageTable(split, device, mean=channels[0], std=channels[1])
    sampler = EpisodeSampler(split, shape.ways, shape.shots, shape.queries, seed=0)
    stream = EpisodeStream(sampler, table)
    episodes = 8 * tasks // shape.meta_batch * shape.meta_batch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def our_images(first: int) -> None:
        batch = None
        for start in range(first, first + episodes, shape.meta_batch):
            batch = stream.batch(start, shape.meta_batch)  # held while the next one is made, as a training loop does
        assert batch is not None
        finish()

    def our_rows(first: int) -> None:
        for start in range(first, first + episodes, shape.meta_batch):
            sampler.rows(start, shape.meta_batch)

    each = shape.shots + shape.queries
    is_support = torch.zeros(shape.ways * each, dtype=torch.bool)
    for way in range(shape.ways):
        is_support[way * each : way * each + shape.shots] = True

    def loading(images: torch.Tensor, sample: Callable[[int], Any]) -> Callable[[int], None]:
        def their_images(first: int) -> None:
            task = None
            for number in range(first, first + tasks):
                x, y = sample(number)
                if images.dtype == torch.uint8:
                    x = normalised(x)
                task = tuple(part.to(device) for part in (x[is_support], y[is_support], x[~is_support], y[~is_support]))
            assert task is not None
            finish()

        return their_images

    pixels = torch.from_numpy(split.images)
    fresh = task_set(pixels, shape)
    theirs = loading(pixels, lambda _: fresh.sample())
    found = [compare("images", our_images, episodes, theirs, tasks, rounds)]
    with uncollected():
        found.append(compare("images, collector off", our_images, episodes, theirs, tasks, rounds))

    floats = normalised(pixels)
    ready = task_set(floats, shape)
    theirs = loading(floats, lambda _: ready.sample())
    found.append(compare("images, float store", our_images, episodes, theirs, tasks, rounds))

    finite = task_set(floats, shape, tasks=tasks)
    theirs = loading(floats, lambda number: finite[number % tasks])
    found.append(compare("images, tasks drawn before", our_images, episodes, theirs, tasks, rounds))

    bare = task_set(pixels, shape, load=False)

    def their_rows(first: int) -> None:
        for _ in range(first, first + tasks):
            bare.sample_task_description()

    found.append(compare("rows only", our_rows, episodes, their_rows, tasks, rounds))
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command; `arguments` are those of the process by default."""
    parser = argparse.ArgumentParser(
        prog="python -m metazoo.benchmarks.speed.sampler", description=__doc__.split("\n")[0]
    )
    for field, default in asdict(Shape()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each comparison (default 15)")
    parser.add_argument("--tasks", type=int, default=100, help="learn2learn tasks a round (default 100)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--device", default="cpu", help="where the tensors are wanted (default cpu)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.tasks * 8 < options.meta_batch:
        parser.error("at least 2 rounds are needed for a spread, and 8 episodes a task for a meta-batch")
    torch.set_num_threads(options.threads)
    shape = Shape(**{field: getattr(options, field) for field in asdict(Shape())})
    device = hardware.choose(options.device)

    found = comparisons(shape, device, options.rounds, options.tasks)
    print(
        f"{shape.ways}-way {shape.shots}-shot, {shape.queries} queries, from {shape.classes} classes of "
        f"{shape.images} images of {shape.channels}x{shape.size}x{shape.size}; "
        f"metazoo in meta-batches of {shape.meta_batch}"
    )
    print(f"{hardware.describe(device)}; " + ", ".join(f"{name} {v}" for name, v in hardware.versions().items()))
    print(f"\nepisodes per second, medians of {options.rounds} rounds; ratio: median, quartiles (extremes)")
    print(f"{'':<27} {'metazoo':>12} {'learn2learn':>12} {'ratio':>10}")
    for comparison in found:
        print(comparison.line())
    if options.json:
        record = {
            "command": "python -m metazoo.benchmarks.speed.sampler",
            "shape": asdict(shape),
            "rounds": options.rounds,
            "tasks": options.tasks,
            "hardware": hardware.describe(device),
            "versions": hardware.versions(),
            "comparisons": [{**asdict(c), "median_ratio": statistics.median(c.ratios)} for c in found],
        }
        files.write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
