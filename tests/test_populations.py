"""Intervals over new classes and new trainings hold what they say, in worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from metazoo.benchmarks import statistics_coverage as simulation
from metazoo.errors import UserError
from metazoo.populations import EPISODES, TRAININGS, Classes, training_spread
from metazoo.statistics import compare, interval


def sets_of(rng: np.random.Generator, episodes: int, classes: int, ways: int = 5) -> np.ndarray:
    return rng.random((episodes, classes)).argsort(axis=1)[:, :ways]


def coverage(found: list[tuple[float, float]]) -> float:
    return float(np.mean([abs(error) <= width for error, width in found]))


def test_over_episodes_is_students_interval():
    values = np.random.default_rng(0).normal(0.5, 0.1, 30)
    spread = EPISODES.spread(values[None])
    assert spread.error == pytest.approx(stats.sem(values)) and spread.freedom == 29


def test_over_classes_covers_new_classes_where_the_usual_interval_does_not():
    """A small version of benchmarks/statistics_coverage.py: accuracies with class effects, a fixed list of episodes."""
    rng = np.random.default_rng(1)
    sets = sets_of(rng, 600, 20)
    population, usual, over = Classes(sets), [], []
    for _ in range(1500):
        values = 0.5 + rng.normal(0.0, 0.16, 20)[sets].mean(axis=1) + rng.normal(0.0, 0.09, 600)
        error = float(values.mean()) - 0.5
        usual.append((error, interval(values)))
        over.append((error, interval(values, population)))
    assert 0.935 <= coverage(over) <= 0.965
    assert coverage(usual) < 0.3


def test_its_variance_is_unbiased():
    rng = np.random.default_rng(2)
    sets = sets_of(rng, 300, 30)
    population = Classes(sets)
    means, variances = [], []
    for _ in range(3000):
        values = rng.normal(0.0, 0.2, 30)[sets].mean(axis=1) + rng.normal(0.0, 0.05, 300)
        means.append(values.mean())
        variances.append(population.spread(values[None]).error ** 2)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.1)


def test_over_classes_is_never_narrower_than_over_episodes():
    rng = np.random.default_rng(3)
    population = Classes(sets_of(rng, 200, 20))
    for _ in range(50):
        values = rng.normal(0.5, 0.1, 200)
        assert interval(values, population) >= interval(values)


def test_episodes_without_a_class_in_common_are_independent():
    values = np.random.default_rng(4).normal(0.5, 0.1, 20)
    assert interval(values, Classes(np.arange(100).reshape(20, 5))) == interval(values)


def test_the_same_classes_in_every_episode_say_nothing_of_others():
    with pytest.raises(UserError, match="Every test episode has the same 5 classes"):
        Classes(np.tile(np.arange(5), (10, 1)))


def test_classes_of_other_episodes_are_refused():
    with pytest.raises(ValueError, match="classes of 10 episodes and values of 9"):
        interval(np.arange(9.0), Classes(sets_of(np.random.default_rng(5), 10, 20)))


def test_a_constant_has_no_spread_over_classes_either():
    rng = np.random.default_rng(6)
    values, population = rng.normal(0.5, 0.1, 50), Classes(sets_of(rng, 50, 20))
    assert compare(values, values, population=population).p_value == 1.0
    assert compare(values + 0.1, values, population=population).half_width == 0.0


def test_over_trainings_covers_the_method_where_the_usual_interval_does_not():
    rng = np.random.default_rng(7)
    usual, over = [], []
    for _ in range(1500):
        values = simulation.crossed(rng, 5)
        error = float(values.mean()) - 0.5
        usual.append((error, interval(values)))
        over.append((error, interval(values, TRAININGS)))
    assert 0.935 <= coverage(over) <= 0.97
    assert coverage(usual) < 0.92


def test_one_training_has_no_interval_over_trainings():
    with pytest.raises(UserError, match="needs at least 2 seeds"):
        interval(np.arange(10.0), TRAININGS)


def test_the_spread_of_training_is_without_that_of_the_episodes():
    rng = np.random.default_rng(8)
    apart = [training_spread(simulation.crossed(rng, 5, deviation=0.01)) ** 2 for _ in range(400)]
    assert np.mean(apart) == pytest.approx(0.01**2, rel=0.1)
    naive = [np.var(simulation.crossed(rng, 5, 50, deviation=0.0).mean(axis=1), ddof=1) for _ in range(200)]
    assert np.mean(naive) > 0.9 * simulation.BOTH**2 / 50
    assert training_spread(np.tile(rng.normal(0.5, 0.1, 50), (3, 1))) < 1e-12


def test_the_simulated_worlds_have_the_truths_they_say():
    """Over very many episodes the mean is the world's own truth, and over many worlds that is 1/2."""
    rng = np.random.default_rng(9)
    for world in simulation.WORLDS[:6]:
        test = simulation.draw(world, rng, episodes=8000)
        assert test.accuracies.mean() == pytest.approx(test.over_episodes, abs=0.005)
    truths = [simulation.draw(simulation.WORLDS[1], rng, episodes=2).over_episodes for _ in range(1500)]
    assert np.mean(truths) == pytest.approx(0.5, abs=3.5 * np.std(truths) / np.sqrt(1500))


def test_the_whole_simulation_runs_and_says_what_it_did():
    lines: list[str] = []
    found = simulation.everything(8, lines.append)
    assert len(found["intervals"]) == len(simulation.WORLDS) and len(lines) == len(simulation.WORLDS) + 4
    assert set(found["intervals"][0]["coverage"]) == {
        "episodes, of the same classes",
        "episodes, of new classes",
        "classes, of new classes",
        "pigeonhole bootstrap, of new classes",
    }
