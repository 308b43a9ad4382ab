"""Intervals, paired comparisons and ranks over the test episodes that all methods share (see docs/protocol.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metazoo.errors import UserError

LEVEL = 0.95
"""Confidence level of every interval that is printed."""

ALPHA = 0.05
"""Chance, over a whole column, of telling apart two methods that are equal."""


def episode_interval(accuracies: ArrayLike, level: float = LEVEL) -> float:
    """Half-width of Student's t interval for the mean of per-episode accuracies, in their own unit.

    `accuracies` has one value an episode, at least two. Its meaning: the mean accuracy over all episodes that could be
    drawn, for this trained network.
    """
    values = _episodes(accuracies)
    return float(_quantile(level, values.size) * values.std(ddof=1) / math.sqrt(values.size))


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


def compare(first: ArrayLike, second: ArrayLike, level: float = LEVEL) -> Comparison:
    """Paired t-test of `first` - `second`, the accuracies [E] of two methods on the same episodes in the same order."""
    one, other = _episodes(first), _episodes(second)
    if one.shape != other.shape:
        raise ValueError(f"a paired comparison of {one.size} with {other.size} episodes")
    differences = one - other
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    # A constant difference leaves only rounding as its spread.
    if error <= 1e-12:
        return Comparison(mean, 0.0, 1.0 if abs(mean) <= 1e-12 else 0.0)
    p_value = 2.0 * float(stats.t.sf(abs(mean) / error, differences.size - 1))
    return Comparison(mean, _quantile(level, differences.size) * error, p_value)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values [m], in the order given; rejecting those <= alpha errs anywhere with chance <= alpha."""
    raw = np.asarray(p_values, dtype=float)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(raw.size, 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def told_apart(accuracies: ArrayLike, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Which methods a paired test tells apart, symmetric [M, M], from per-episode accuracies [M, E].

    Holm's correction runs over all pairs of the column, not only the pairs with its best: which method is best was read
    off the same episodes, and a correction over M - 1 comparisons finds false differences more often than `alpha` says.
    """
    table = _methods(accuracies)
    rows, columns = np.triu_indices(len(table), k=1)
    p_values = [compare(table[row], table[column]).p_value for row, column in zip(rows, columns, strict=True)]
    apart = np.zeros((len(table), len(table)), dtype=bool)
    apart[rows, columns] = holm(p_values) <= alpha
    return apart | apart.T


def indistinguishable_from_best(accuracies: ArrayLike, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Which methods [M] are the best of per-episode accuracies [M, E], or cannot be told from it (`told_apart`)."""
    table = _methods(accuracies)
    return np.asarray(~told_apart(table, alpha)[int(table.mean(axis=1).argmax())])


def ranks(accuracies: ArrayLike, alpha: float = ALPHA) -> NDArray[np.int64]:
    """Ranks [M] from 1: one more than the number of methods that are better and told apart, so ties share a rank."""
    table = _methods(accuracies)
    means = table.mean(axis=1)
    better = told_apart(table, alpha) & (means[None, :] > means[:, None])
    return np.asarray(1 + better.sum(axis=1), dtype=np.int64)


def seed_spread(means: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) of the mean accuracies of trainings that differ in their seed; None below two."""
    return float(np.std(np.asarray(means, dtype=float), ddof=1)) if len(means) > 1 else None


def _quantile(level: float, episodes: int) -> float:
    return float(stats.t.ppf(0.5 + level / 2.0, episodes - 1))


def _episodes(accuracies: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(accuracies, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"expected one accuracy an episode, not shape {values.shape}")
    if values.size < 2:
        raise UserError(f"An interval over episodes needs at least 2 episodes, not {values.size}.")
    return values


def _methods(accuracies: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(accuracies, dtype=float)
    if table.ndim != 2 or len(table) < 1:
        raise ValueError(f"expected accuracies [methods, episodes], not shape {table.shape}")
    return table
