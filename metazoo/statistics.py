"""Intervals, paired comparisons and ranks over the test episodes that all methods share (see docs/protocol.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metazoo.errors import UserError
from metazoo.populations import EPISODES, LEVEL, Population

ALPHA = 0.05
"""Chance, over a whole column, of telling apart two methods that are equal."""

POWER = 0.8
"""Chance of telling apart two methods that differ, which the numbers of episodes needed are for."""


def interval(values: ArrayLike, population: Population = EPISODES, level: float = LEVEL) -> float:
    """Half-width of the interval for the mean of `values`, in their own unit.

    `values` has one an episode [E], at least two; or [S, E] for S trainings tested on the same episodes. What the
    interval speaks of is the population's to say.
    """
    return population.spread(_trainings(values)).half_width(level)


def episode_interval(accuracies: ArrayLike, level: float = LEVEL) -> float:
    """Half-width of Student's t interval for the mean of per-episode accuracies [E], in their own unit.

    Its meaning: the mean accuracy over all episodes that could be drawn from the same classes, for this network.
    """
    return EPISODES.spread(_episodes(accuracies)[None]).half_width(level)


def query_interval(p: float, n: int) -> float:
    """Half-width 1.96 sqrt(p (1 - p) / n) for an accuracy `p` in [0, 1] over `n` query predictions.

    What the code of CxGrad prints beside its accuracies. It takes queries for independent although those of one episode
    share their support set and classes, so it is comparable with published widths only, never with `episode_interval`.
    """
    if not 0.0 <= p <= 1.0 or n < 1:
        raise ValueError(f"an accuracy of {p} over {n} predictions has no interval")
    return 1.96 * math.sqrt(p * (1.0 - p) / n)


@dataclass(frozen=True)
class Comparison:
    """Mean paired difference of two methods, its interval's half-width, and the two-sided p-value of no difference."""

    difference: float
    half_width: float
    p_value: float


def compare(first: ArrayLike, second: ArrayLike, level: float = LEVEL, population: Population = EPISODES) -> Comparison:
    """Paired t-test of `first` - `second`: two methods' values [E] or [S, E] on the same episodes in the same order."""
    one, other = _trainings(first), _trainings(second)
    if one.shape != other.shape:
        raise ValueError(f"a paired comparison of {one.shape} with {other.shape} values")
    differences = one - other
    mean, spread = float(differences.mean()), population.spread(differences)
    return Comparison(mean, 0.0 if spread.error <= 1e-12 else spread.half_width(level), spread.p_value(mean))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values [m], in the order given; rejecting those <= alpha errs anywhere with chance <= alpha."""
    raw = np.asarray(p_values, dtype=float)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(raw.size, 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def better(values: ArrayLike, alpha: float = ALPHA, population: Population = EPISODES) -> NDArray[np.bool_]:
    """[M, M]: whether a paired test tells the method of the row to be better than that of the column.

    `values` are [M, E] or [M, S, E], the highest the best. Holm's correction runs over all pairs of the column, not
    only the pairs with its best: which method is best was read off the same episodes, and a correction over M - 1
    comparisons finds false differences more often than `alpha` says. What follows from two differences is one, too: if
    all that was told is true, so is what follows from it, so `alpha` holds as before.
    """
    table = _methods(values)
    rows, columns = np.triu_indices(len(table), k=1)
    differences = [_trainings(table[i] - table[j]) for i, j in zip(rows, columns, strict=True)]
    means = np.array([float(pair.mean()) for pair in differences])
    p_values = [population.spread(pair).p_value(mean) for pair, mean in zip(differences, means, strict=True)]
    told, above = holm(p_values) <= alpha, means > 0
    result = np.zeros((len(table), len(table)), dtype=bool)
    result[rows, columns] = told & above
    result[columns, rows] = told & ~above
    for between in range(len(table)):
        result |= np.outer(result[:, between], result[between])
    return result


@dataclass(frozen=True)
class Rank:
    """The ranks a method may have, from 1: what it would be if every test not passed were decided for, or against, it.

    Two methods that the test cannot tell apart always have a rank in common, and with the chance of `better`'s alpha
    all true ranks of a column lie within these.
    """

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def ranks(above: NDArray[np.bool_]) -> list[Rank]:
    """The ranks of M methods from `better` [M, M]."""
    return [
        Rank(1 + int(over), len(above) - int(under))
        for over, under in zip(above.sum(axis=0), above.sum(axis=1), strict=True)
    ]


def among_the_best(above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which methods [M] nobody is told to be better than, from `better` [M, M]."""
    return np.asarray(~above.any(axis=0))


def seed_spread(means: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) of the mean accuracies of trainings that differ in their seed; None below two."""
    return float(np.std(np.asarray(means, dtype=float), ddof=1)) if len(means) > 1 else None


def power(difference: float, deviation: float, episodes: int, alpha: float = ALPHA) -> float:
    """Chance that a paired t-test at `alpha` tells apart methods whose true mean difference is `difference`.

    `deviation` is the standard deviation of the per-episode differences, in the same unit.
    """
    freedom = episodes - 1
    critical = float(stats.t.ppf(1.0 - alpha / 2.0, freedom))
    shift = abs(difference) / deviation * math.sqrt(episodes)
    if shift > 30.0:  # where scipy's noncentral t has no digits left
        return 1.0
    wrong_way = float(stats.nct.cdf(-critical, freedom, shift)) if shift < 3.0 else 0.0
    return float(stats.nct.sf(critical, freedom, shift)) + wrong_way


def episodes_needed(difference: float, deviation: float, alpha: float = ALPHA, wanted: float = POWER) -> int | None:
    """The fewest episodes that tell a true `difference` with that power; None where there is nothing to tell.

    At least 2; 10 million where it would be more.
    """
    if deviation <= 0.0 or abs(difference) <= 1e-9 * deviation:
        return None
    fewest, enough = 2, 2
    while power(difference, deviation, enough, alpha) < wanted:
        fewest, enough = enough, 2 * enough
        if enough > 10_000_000:
            return 10_000_000
    while fewest < enough:
        middle = (fewest + enough) // 2
        if power(difference, deviation, middle, alpha) < wanted:
            fewest = middle + 1
        else:
            enough = middle
    return enough


def detectable(deviation: float, episodes: int, alpha: float = ALPHA, wanted: float = POWER) -> float:
    """The smallest true difference that so many episodes tell with that power, in the unit of `deviation`."""
    from scipy.optimize import brentq

    if deviation <= 0.0:
        return 0.0
    high = 2.0 * deviation * float(stats.t.ppf(1.0 - alpha / 2.0, episodes - 1) + 3.0) / math.sqrt(episodes)
    return float(brentq(lambda gap: power(gap, deviation, episodes, alpha) - wanted, 0.0, high))


def _episodes(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1:
        raise ValueError(f"expected one value an episode, not shape {found.shape}")
    if found.size < 2:
        raise UserError(f"An interval over episodes needs at least 2 episodes, not {found.size}.")
    return found


def _trainings(values: ArrayLike) -> NDArray[np.float64]:
    """[S, E], also of one training's [E]."""
    found = np.asarray(values, dtype=float)
    if found.ndim not in (1, 2):
        raise ValueError(f"expected values [episodes] or [trainings, episodes], not shape {found.shape}")
    table = np.atleast_2d(found)
    for row in table:
        _episodes(row)
    return table


def _methods(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=float)
    if table.ndim not in (2, 3) or len(table) < 1:
        raise ValueError(f"expected values [methods, episodes], not shape {table.shape}")
    return table
