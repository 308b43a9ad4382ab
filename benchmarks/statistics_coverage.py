"""Check every statistical procedure on worlds whose truth is known: coverage, false differences, ranks, power.

    python -m metazoo.benchmarks.statistics_coverage --out benchmarks/results/statistics_coverage.json

A world has C test classes with images. A query's chance of being classified rightly is 1/2 plus the effects of its
class, of the other classes of its episode (confusable pairs), of the support image and of the query image, all uniform
around 0 unless skewed, and small enough together that every chance lies in [0, 1]. So the true mean is 1/2 over new
classes, and over new episodes of the same classes it is 1/2 plus the means of that world's effects.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metazoo import statistics
from metazoo.episodes import distinct
from metazoo.files import write_text
from metazoo.populations import EPISODES, TRAININGS, Classes

Values = NDArray[np.float64]

EPISODE_COUNT = 600
RESAMPLES = 400
"""Of the bootstrap."""


@dataclass(frozen=True)
class World:
    """The size of a test split and the standard deviations of the effects, as shares of 1."""

    title: str
    classes: int
    images: int
    queries: int
    of_class: float
    of_pairs: float
    of_support: float
    of_query: float
    skewed: bool = False
    ways: int = 5


WORLDS = (
    World("20 classes of 600 images, like CIFAR-FS", 20, 600, 15, 0.16, 0.02, 0.05, 0.05),
    World("the same, skewed class effects", 20, 600, 15, 0.16, 0.02, 0.05, 0.05, skewed=True),
    World("20 classes, strongly confusable pairs", 20, 600, 15, 0.10, 0.08, 0.05, 0.05),
    World("20 classes of 20 images", 20, 20, 15, 0.10, 0.02, 0.10, 0.05),
    World("160 classes of 600 images, like tieredImageNet", 160, 600, 15, 0.16, 0.02, 0.05, 0.05),
    World("459 classes of 20 images, like glyphs", 459, 20, 5, 0.10, 0.02, 0.08, 0.08),
    World("20 classes, small class effects", 20, 600, 15, 0.04, 0.02, 0.08, 0.05),
    World("20 classes that do not differ", 20, 600, 15, 0.0, 0.0, 0.08, 0.05),
)


@dataclass(frozen=True)
class Draw:
    """The test of one network: which classes its episodes have [E, N], their accuracies [E], and the two truths."""

    sets: NDArray[np.int64]
    accuracies: Values
    over_classes: float
    over_episodes: float


def uniform(rng: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> Values:
    """Numbers of that standard deviation around 0."""
    return rng.uniform(-1.0, 1.0, shape) * deviation * np.sqrt(3.0)


def skewed(rng: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> Values:
    """The same with most a little below 0 and few far above: Beta(1, 3), skewness 0.86."""
    return np.asarray((rng.beta(1.0, 3.0, shape) - 0.25) * deviation / np.sqrt(3.0 / 80.0))


def draw(world: World, rng: np.random.Generator, episodes: int = EPISODE_COUNT) -> Draw:
    """A new world of that kind, and one network's 1-shot test in it."""
    c, n, ways = world.classes, world.images, world.ways
    of_class = (skewed if world.skewed else uniform)(rng, world.of_class, (c,))
    upper = np.triu(uniform(rng, world.of_pairs, (c, c)), k=1)
    of_pairs = upper + upper.T
    of_support, of_query = uniform(rng, world.of_support, (c, n)), uniform(rng, world.of_query, (c, n))
    sets = rng.random((episodes, c)).argsort(axis=1)[:, :ways]
    each, columns = 1 + world.queries, episodes * ways
    random = rng.integers(0, 2**64, (each, columns), dtype=np.uint64)
    images = distinct(random, np.full(columns, n))
    # Any of them may be the support image: draws come in no uniform order.
    chosen, at = rng.integers(0, each, columns), np.arange(columns)
    support = images[chosen, at].copy()
    images[chosen, at] = images[0]
    owner = sets.ravel()
    confusion = of_pairs[sets[:, :, None], sets[:, None, :]].sum(axis=2) / (ways - 1)
    chance = 0.5 + of_class[owner] + confusion.ravel() + of_support[owner, support] + of_query[owner, images[1:]]
    correct = rng.random(chance.shape) < chance
    accuracies = correct.mean(axis=0).reshape(episodes, ways).mean(axis=1)
    pairs = float(upper.sum()) / (c * (c - 1) / 2)
    here = 0.5 + float(of_class.mean()) + pairs + float(of_support.mean()) + float(of_query.mean())
    return Draw(sets, accuracies, 0.5, here)


def pigeonhole(sets: NDArray[np.int64], values: Values, rng: np.random.Generator) -> float:
    """Half-width of the pigeonhole bootstrap (Owen, Annals of Applied Statistics 1, 2007) for the mean of `values`.

    Classes are drawn anew with replacement, and an episode counts as often as the product over its classes says.
    """
    classes = int(sets.max()) + 1
    times = rng.multinomial(classes, np.full(classes, 1.0 / classes), RESAMPLES)
    weights = times[:, sets].prod(axis=2, dtype=float)
    total = weights.sum(axis=1)
    means = weights[total > 0] @ values / total[total > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(high - low) / 2.0


def intervals(world: World, repetitions: int, seed: int) -> dict[str, Any]:
    """How often each interval holds the truth of its population, and of the other one; mean half-widths in points."""
    rng = np.random.default_rng(seed)
    bootstraps = max(1, repetitions // 10)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}

    def note(name: str, half_width: float, error: float) -> None:
        held.setdefault(name, []).append(abs(error) <= half_width)
        widths.setdefault(name, []).append(100.0 * half_width)

    for repetition in range(repetitions):
        test = draw(world, rng)
        mean = float(test.accuracies.mean())
        usual = statistics.interval(test.accuracies)
        note("episodes, of the same classes", usual, mean - test.over_episodes)
        note("episodes, of new classes", usual, mean - test.over_classes)
        over = statistics.interval(test.accuracies, Classes(test.sets))
        note("classes, of new classes", over, mean - test.over_classes)
        if repetition < bootstraps and world.classes < 100:
            note("pigeonhole bootstrap, of new classes", pigeonhole(test.sets, test.accuracies, rng), mean - 0.5)
    return {
        "world": asdict(world),
        "repetitions": repetitions,
        "coverage": {name: round(float(np.mean(values)), 4) for name, values in held.items()},
        "half_width": {name: round(float(np.mean(values)), 3) for name, values in widths.items()},
    }


def trainings(seeds: int, repetitions: int, seed: int) -> dict[str, Any]:
    """Coverage of the interval over trainings, and of the usual one of the seeds' mean, for the method's true mean."""
    rng = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {"trainings": [], "episodes": []}
    spreads = []
    for _ in range(repetitions):
        values = crossed(rng, seeds)
        error = abs(float(values.mean()) - 0.5)
        held["trainings"].append(error <= statistics.interval(values, TRAININGS))
        held["episodes"].append(error <= statistics.interval(values, EPISODES))
        spreads.append(TRAININGS.spread(values).half_width())
    return {
        "seeds": seeds,
        "repetitions": repetitions,
        "deviation": {"seeds": SEEDS, "episodes": DIFFICULTY, "both": BOTH},
        "coverage": {name: round(float(np.mean(values)), 4) for name, values in held.items()},
        "half_width": round(100.0 * float(np.mean(spreads)), 3),
    }


SEEDS, DIFFICULTY, BOTH = 0.008, 0.09, 0.05
"""Standard deviations of a training's mean, of an episode's difficulty, and of one episode for one network."""


def crossed(rng: np.random.Generator, seeds: int, episodes: int = EPISODE_COUNT, deviation: float = SEEDS) -> Values:
    """[S, E] of a method whose true mean is 1/2."""
    by_seed, by_episode = rng.normal(0, deviation, (seeds, 1)), rng.normal(0, DIFFICULTY, episodes)
    return np.asarray(0.5 + by_seed + by_episode + rng.normal(0, BOTH, (seeds, episodes)))


def equal_methods(methods: int, repetitions: int, seed: int) -> dict[str, Any]:
    """How often any two of several equal methods are told apart in a column, by the correction used and by less."""
    rng = np.random.default_rng(seed)
    told = with_best_only = 0
    for _ in range(repetitions):
        table = crossed(rng, methods, deviation=0.0)
        told += bool(statistics.better(table).any())
        best = int(table.mean(axis=1).argmax())
        p_values = [statistics.compare(table[best], row).p_value for i, row in enumerate(table) if i != best]
        with_best_only += bool((statistics.holm(p_values) <= statistics.ALPHA).any())
    return {
        "methods": methods,
        "repetitions": repetitions,
        "told_apart": round(told / repetitions, 4),
        "told_with_correction_over_pairs_with_the_best": round(with_best_only / repetitions, 4),
    }


def equal_methods_over_classes(methods: int, repetitions: int, seed: int) -> dict[str, Any]:
    """Methods that are equal over all classes and each have classes that they find easy: told apart on 20 classes?"""
    rng = np.random.default_rng(seed)
    kind = replace(WORLDS[0], of_class=0.04)
    told = {"episodes": 0, "classes": 0}
    for _ in range(repetitions):
        sets = rng.random((EPISODE_COUNT, kind.classes)).argsort(axis=1)[:, : kind.ways]
        effects = rng.normal(0, kind.of_class, (methods, kind.classes))
        table = 0.5 + effects[:, sets].mean(axis=2) + rng.normal(0, BOTH, (methods, EPISODE_COUNT))
        told["episodes"] += bool(statistics.better(table).any())
        told["classes"] += bool(statistics.better(table, population=Classes(sets)).any())
    return {
        "methods": methods,
        "repetitions": repetitions,
        "classes": kind.classes,
        "deviation_of_a_method_between_classes": kind.of_class,
        "told_apart": {name: round(count / repetitions, 4) for name, count in told.items()},
    }


def true_ranks(repetitions: int, seed: int) -> dict[str, Any]:
    """How often all printed rank ranges of a column hold the true ranks: eight methods, 0.4 points apart."""
    rng = np.random.default_rng(seed)
    gaps = -0.004 * np.arange(8.0)
    held, widths = 0, []
    for _ in range(repetitions):
        found = statistics.ranks(statistics.better(crossed(rng, 8, deviation=0.0) + gaps[:, None]))
        held += all(rank.first <= true <= rank.last for true, rank in enumerate(found, start=1))
        widths.append(np.mean([rank.last - rank.first for rank in found]))
    return {
        "repetitions": repetitions,
        "columns_whose_ranges_hold_all_true_ranks": round(held / repetitions, 4),
        "mean_width": round(float(np.mean(widths)), 2),
    }


def power(repetitions: int, seed: int) -> list[dict[str, Any]]:
    """The share of paired tests that tell a true difference, at the number of episodes computed for a power of 80 %."""
    rng = np.random.default_rng(seed)
    deviation = BOTH * np.sqrt(2.0)
    rows = []
    for gap in (0.01, 0.02, 0.005):
        needed = statistics.episodes_needed(gap, deviation)
        assert needed is not None
        told = unpaired = 0
        for _ in range(repetitions):
            first, second = crossed(rng, 2, needed, deviation=0.0)
            told += statistics.compare(first + gap, second).p_value <= statistics.ALPHA
            apart = abs(float(np.mean(first + gap - second)))
            unpaired += apart > statistics.interval(first) + statistics.interval(second)
        rows.append(
            {
                "difference": gap,
                "episodes_needed": needed,
                "repetitions": repetitions,
                "told_apart": round(told / repetitions, 4),
                "intervals_that_do_not_overlap": round(unpaired / repetitions, 4),
            }
        )
    return rows


def everything(repetitions: int, progress: Callable[[str], object] = print) -> dict[str, Any]:
    """All checks, with their settings."""
    few = max(1, repetitions // 4)
    found: dict[str, Any] = {"episodes": EPISODE_COUNT, "level": statistics.LEVEL, "intervals": []}
    for number, world in enumerate(WORLDS):
        found["intervals"].append(intervals(world, repetitions, seed=number))
        progress(f"{world.title}: {found['intervals'][-1]['coverage']}")
    found["trainings"] = [trainings(seeds, repetitions, seed=100 + seeds) for seeds in (2, 3, 5, 10)]
    progress(f"trainings: {[(row['seeds'], row['coverage']) for row in found['trainings']]}")
    found["equal_methods"] = [equal_methods(methods, few, seed=200 + methods) for methods in (2, 6, 12, 25)]
    progress(f"equal methods: {[(row['methods'], row['told_apart']) for row in found['equal_methods']]}")
    found["equal_methods_over_classes"] = [equal_methods_over_classes(methods, few, seed=300) for methods in (2, 6)]
    progress(f"over classes: {[row['told_apart'] for row in found['equal_methods_over_classes']]}")
    found["ranks"] = true_ranks(few, seed=400)
    found["power"] = power(repetitions, seed=500)
    progress(f"ranks: {found['ranks']}, power: {[row['told_apart'] for row in found['power']]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repetitions", type=int, default=4000, help="of the cheap checks; the others take a quarter")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    asked = parser.parse_args()
    found = everything(asked.repetitions)
    if asked.out:
        write_text(asked.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
