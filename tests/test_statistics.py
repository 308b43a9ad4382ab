from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from metazoo import statistics
from metazoo.errors import UserError
from metazoo.populations import Population, Spread


def episodes(rng: np.random.Generator, methods: int, count: int = 60, gaps: float | np.ndarray = 0.0) -> np.ndarray:
    """Accuracies [methods, episodes] that share each episode's difficulty, with true means 0.5 + gaps."""
    difficulty = rng.normal(0.0, 0.1, count)
    means = 0.5 + np.broadcast_to(gaps, methods)[:, None]
    return means + difficulty + rng.normal(0.0, 0.05, (methods, count))


def ranks(table: np.ndarray) -> list[str]:
    return [str(rank) for rank in statistics.ranks(statistics.better(table))]


def best(table: np.ndarray) -> list[bool]:
    return statistics.among_the_best(statistics.better(table)).tolist()


def test_episode_interval_equals_scipys_t_interval():
    values = np.random.default_rng(0).normal(0.6, 0.1, 40)
    low, high = stats.t.interval(0.95, 39, loc=values.mean(), scale=stats.sem(values))
    assert statistics.episode_interval(values) == pytest.approx((high - low) / 2, rel=1e-12)


def test_episode_interval_covers_the_true_mean_in_95_percent_of_samples():
    """Episodes as they are in practice: skill differs between episodes, and an episode has 75 queries."""
    rng = np.random.default_rng(1)
    skill = rng.beta(12.0, 8.0, (4000, 100))
    accuracies = rng.binomial(75, skill) / 75
    covered = [abs(row.mean() - 0.6) <= statistics.episode_interval(row) for row in accuracies]
    assert 0.94 <= np.mean(covered) <= 0.96


def test_query_interval_is_what_cxgrad_prints_and_too_narrow_for_episodes():
    # 69.82 +- 0.42 and 51.80 +- 0.46, Table 1 of the CxGrad paper, over 600 episodes of 75 queries.
    assert round(100 * statistics.query_interval(0.6982, 45_000), 2) == 0.42
    assert round(100 * statistics.query_interval(0.5180, 45_000), 2) == 0.46
    rng = np.random.default_rng(2)
    accuracies = rng.binomial(75, rng.beta(12.0, 8.0, (2000, 100))) / 75
    covered = [abs(row.mean() - 0.6) <= statistics.query_interval(float(row.mean()), 7500) for row in accuracies]
    assert np.mean(covered) < 0.75


@pytest.mark.parametrize("p, n", [(-0.1, 10), (1.1, 10), (0.5, 0)])
def test_query_interval_refuses_what_is_no_accuracy(p, n):
    with pytest.raises(ValueError):
        statistics.query_interval(p, n)


def test_one_episode_has_no_interval():
    with pytest.raises(UserError, match="at least 2 episodes, not 1"):
        statistics.episode_interval([0.5])


def test_compare_equals_scipys_paired_t_test():
    first, second = episodes(np.random.default_rng(3), 2, gaps=np.array([0.01, 0.0]))
    comparison = statistics.compare(first, second)
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert comparison.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert comparison.difference - comparison.half_width == pytest.approx(interval.low, rel=1e-10)
    assert comparison.difference + comparison.half_width == pytest.approx(interval.high, rel=1e-10)


def test_paired_interval_covers_the_true_difference_and_is_narrower_than_unpaired_ones():
    rng = np.random.default_rng(4)
    covered, narrower = [], []
    for _ in range(2000):
        first, second = episodes(rng, 2, gaps=np.array([0.02, 0.0]))
        comparison = statistics.compare(first, second)
        covered.append(abs(comparison.difference - 0.02) <= comparison.half_width)
        narrower.append(comparison.half_width < statistics.episode_interval(first))
    assert 0.94 <= np.mean(covered) <= 0.96
    assert np.mean(narrower) > 0.95


def test_compare_of_equal_and_of_shifted_accuracies_needs_no_spread():
    values = np.random.default_rng(5).uniform(0.2, 0.9, 30)
    assert statistics.compare(values, values) == statistics.Comparison(0.0, 0.0, 1.0)
    shifted = statistics.compare(values + 0.1, values)
    assert shifted.p_value == 0.0 and shifted.difference == pytest.approx(0.1)


def test_compare_refuses_different_episode_counts():
    with pytest.raises(ValueError, match=r"30.* with .*20"):
        statistics.compare(np.zeros(30), np.zeros(20))


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then never decreasing.
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]).size == 0


def test_equal_methods_are_told_apart_in_at_most_five_percent_of_columns():
    """Against the best of six equal methods; correcting only for the comparisons with the best errs twice as often."""
    rng = np.random.default_rng(6)
    told, told_naively, columns = 0, 0, 600
    for _ in range(columns):
        table = episodes(rng, 6)
        told += bool(statistics.better(table).any())
        best = int(table.mean(axis=1).argmax())
        p_values = [statistics.compare(table[best], row).p_value for i, row in enumerate(table) if i != best]
        told_naively += bool((statistics.holm(p_values) <= 0.05).any())
    assert told / columns <= 0.05
    assert told_naively / columns >= 0.08


def test_a_method_one_point_better_at_2000_episodes_is_told_apart_though_unpaired_intervals_overlap():
    rng = np.random.default_rng(7)
    table = np.array([0.61, 0.60])[:, None] + rng.normal(0.0, 0.12, 2000) + rng.normal(0.0, 0.05, (2, 2000))
    first, second = table
    overlap = statistics.episode_interval(first) + statistics.episode_interval(second)
    assert abs(first.mean() - second.mean()) < overlap
    assert best(table) == [True, False]
    assert ranks(table) == ["1", "2"]


def test_ranks_are_shared_unless_the_test_tells():
    first, second, third = episodes(np.random.default_rng(8), 3, count=600, gaps=np.array([0.0, 0.05, 0.1]))
    table = np.stack([first, third, second, third.copy()])
    assert ranks(table) == ["4", "1-2", "3", "1-2"]
    assert best(table) == [False, True, False, True]


def test_what_follows_from_two_differences_is_a_difference():
    """Where standard errors are estimated pair by pair, first and last may fail a test that both pass with a third."""

    class Doubtful(Population):
        def spread(self, values: np.ndarray) -> Spread:
            return Spread(error=0.001 if abs(values.mean()) < 0.03 else 1.0, freedom=100)

    table = np.array([0.54, 0.52, 0.50])[:, None] + np.zeros((3, 50))
    above = statistics.better(table, population=Doubtful())
    assert above.tolist() == [[False, True, True], [False, False, True], [False, False, False]]


def test_two_methods_that_are_not_told_apart_have_a_rank_in_common():
    """A chain in which only its ends differ: nobody may be called second."""
    table = episodes(np.random.default_rng(11), 3, count=300, gaps=np.array([0.01, 0.005, 0.0]))
    assert statistics.better(table).tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert ranks(table) == ["1-2", "1-3", "2-3"]
    assert best(table) == [True, True, False]


def test_one_method_alone_is_the_best():
    table = episodes(np.random.default_rng(9), 1)
    assert best(table) == [True]
    assert ranks(table) == ["1"]


def test_seed_spread_is_the_sample_standard_deviation():
    assert statistics.seed_spread([0.5]) is None
    assert statistics.seed_spread([0.4, 0.6]) == pytest.approx(math.sqrt(0.02))


def test_power_is_scipys_for_a_paired_t_test():
    assert statistics.power(0.5, 1.0, 34) == pytest.approx(0.8077775, abs=1e-6)  # G*Power, two-sided, dz 0.5, n 34
    assert statistics.power(0.0, 1.0, 50) == pytest.approx(0.05, abs=1e-9)
    assert statistics.power(5.0, 1.0, 600) == 1.0


def test_episodes_needed_is_the_first_number_with_the_power():
    needed = statistics.episodes_needed(0.01, 0.07)
    assert needed is not None
    assert statistics.power(0.01, 0.07, needed) >= 0.8 > statistics.power(0.01, 0.07, needed - 1)
    assert statistics.episodes_needed(0.0, 0.07) is None and statistics.episodes_needed(0.0, 0.0) is None
    assert statistics.episodes_needed(1e-6, 0.1) == 10_000_000
    assert statistics.episodes_needed(1.0, 0.1) == 3


def test_detectable_is_the_difference_that_needs_so_many_episodes():
    gap = statistics.detectable(0.07, 600)
    assert statistics.episodes_needed(gap, 0.07) in (600, 601)
