"""What it gives on a CPU to evaluate an ensemble in stacked passes: `python -m metazoo.benchmarks.speed.committee`.

Sinusoid regression, whose perceptron's tasks are stacked on a CPU as well, and 32-pixel images, whose are not. Each way
is timed on the same tasks in alternation, by the clock of one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from metazoo import hardware, registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Backbone, Conv4, Mlp
from metazoo.benchmarks.speed.shapes import Shape, episodes_of
from metazoo.committee import Committee
from metazoo.episodes import Episodes
from metazoo.files import write_text

CPU = torch.device("cpu")
IMAGES = Shape("cifar_fs", 3, 32, 48, 1)


def sinusoids(tasks: int) -> Episodes:
    """Points of as many curves: ten to adapt to and ten to predict."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.rand(2, 2, tasks, 10, 1, generator=generator)
    return Episodes(inputs[0], targets[0], inputs[1], targets[1], 1)


def images(tasks: int) -> Episodes:
    return episodes_of(IMAGES, tasks, CPU)


def perceptron() -> Backbone:
    return Mlp((1,), 1, Mlp.Settings())


def conv4() -> Backbone:
    return Conv4((IMAGES.channels, IMAGES.size, IMAGES.size), IMAGES.ways, Conv4.Settings(filters=IMAGES.filters))


CASES: dict[str, tuple[Callable[[], Backbone], Callable[[int], Episodes], int]] = {
    "sinusoid": (perceptron, sinusoids, 32),
    "cifar_fs-5w1s": (conv4, images, 4),
}
"""Network, tasks, and how many of them go into a pass, of one model or of each."""


def measure(case: str, method: str, members: int, rounds: int) -> dict[str, float]:
    """Microseconds for each task of each member, the median over the rounds."""
    network, tasks, count = CASES[case]
    torch.manual_seed(0)
    models: list[Algorithm] = [registry.create(method, network()) for _ in range(members)]
    committee, episodes, more = Committee(models), tasks(count), tasks(members * count)
    committee.predict(episodes, members * count)
    assert committee.is_stacked, f"{method} is not stacked, so there is nothing to compare"
    ways: dict[str, Callable[[], object]] = {
        "all members in one pass": lambda: committee.predict(episodes, members * count),
        "a pass for each member": lambda: [model.predict(episodes) for model in models],
        "as many tasks of one member in one pass": lambda: models[0].predict(more),
        "a pass for each task": lambda: [model.predict(part) for model in models for part in episodes.chunks(1)],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.thread_time()
            work()
            times[name].append(1e6 * (time.thread_time() - start) / (members * count))
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["maml", "l2f"])
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {"hardware": hardware.describe(CPU), "versions": hardware.versions(), "members": arguments.members}
    record["microseconds"] = found = {}
    for case in CASES:
        for method in arguments.methods:
            found[f"{case} {method}"] = measure(case, method, arguments.members, arguments.rounds)
            print(case, method)
            for name, time_of_task in found[f"{case} {method}"].items():
                print(f"  {name:42}{time_of_task:10.0f} us a task and member")
    if arguments.json:
        write_text(arguments.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
