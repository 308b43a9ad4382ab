"""Standings: what records say of the cells of a suite, and how cells compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metazoo.config import describe
from metazoo.errors import UserError
from metazoo.leaderboard.published import Literature, Number, literature
from metazoo.leaderboard.shelf import Shelf
from metazoo.leaderboard.suite import Column, Row, Suite
from metazoo.leaderboard.tested import POPULATIONS, population
from metazoo.leaks import Leak
from metazoo.populations import EPISODES, TRAININGS, Episodes, Over, Population, training_spread
from metazoo.records import Record, Rule
from metazoo.statistics import Rank, among_the_best, better, interval, query_interval, ranks, seed_spread


@dataclass(frozen=True)
class Beside:
    """A published number beside a measured one."""

    number: Number
    departures: Sequence[str] | None
    """How the measured one departs from the published protocol (empty: not at all); None where that is not known."""
    difference: float | None
    """Measured minus published, in the published number's unit, where nothing departs."""


@dataclass(frozen=True)
class Cell:
    """What is known of one method in one column; means over seeds where there are several."""

    row: Row
    column: Column
    rule: Rule
    seeds: Mapping[int, Record | None]
    departures: tuple[str, ...] = ()
    """What its records were made with that is not what is here now."""
    population: Population = EPISODES
    """What its interval speaks of."""

    @cached_property
    def measured(self) -> list[Record]:
        """The records that hold a result of the rule."""
        return [record for record in self.seeds.values() if record and self.rule in record.evaluations]

    @property
    def status(self) -> str:
        """`done`, `missing`, or why there is no result."""
        if self.measured:
            return "done"
        return next((record.status for record in self.seeds.values() if record and record.status != "done"), "missing")

    @property
    def reasons(self) -> list[str]:
        """Why seeds have no result, each reason once."""
        lost = [record for record in self.seeds.values() if record and record.status != "done"]
        reasons = [f"{record.status}: {record.reason}" if record.reason else record.status for record in lost]
        done = [record for record in self.seeds.values() if record and record.status == "done"]
        if any(self.rule not in record.evaluations for record in done):
            reasons.append(f"tested, but not by the rule '{self.rule}'")
        if self.measured and not self._has_interval:
            reasons.append("an interval over trainings needs 2 seeds")
        return list(dict.fromkeys(reasons))

    def values(self, rule: Rule) -> NDArray[np.float64] | None:
        """What each seed [S] measured in each episode [S, E] under a rule; None where a seed with a result has none of
        it."""
        if not self.measured or any(rule not in record.evaluations for record in self.measured):
            return None
        found = [(record.evaluations[rule], record.queries_per_episode) for record in self.measured]
        return np.stack([result.measure.values(result.scores, n) for result, n in found])

    def result(self, rule: Rule | None = None) -> tuple[float, float] | None:
        """Mean over seeds and episodes, and the half-width of its interval over the population."""
        values = self.values(rule or self.rule)
        if values is None or not self._has_interval:
            return None
        return float(values.mean()), interval(values, self.population)

    @property
    def over_queries(self) -> float | None:
        """Half-width of the binomial interval over the queries of one seed: more seeds ask the same queries again.

        None where what is measured is no accuracy.
        """
        values = self.values(self.rule)
        if values is None or self.measured[0].evaluations[self.rule].interval.over_queries is None:
            return None
        return query_interval(float(values.mean()), values.shape[1] * self.measured[0].queries_per_episode)

    @property
    def over_seeds(self) -> float | None:
        """Standard deviation of the seeds' means."""
        return seed_spread([record.evaluations[self.rule].interval.mean for record in self.measured])

    @property
    def of_training(self) -> float | None:
        """The same without the part of it that is noise of the test episodes; None below two seeds."""
        values = self.values(self.rule)
        return None if values is None or len(values) < 2 else training_spread(values)

    @property
    def _has_interval(self) -> bool:
        return self.population is not TRAININGS or len(self.measured) > 1

    @property
    def size(self) -> int | None:
        """Image side in pixels."""
        return next(iter(self.row.configs.values())).size

    @property
    def test_data(self) -> tuple[str, ...]:
        """Identity of the data set it was tested on, and the classes of it that were left out."""
        return (self.measured[0].data.get("target", ""), *self.measured[0].left_out) if self.measured else ()

    @property
    def leak(self) -> Leak | None:
        """The test classes that its source trains or selects on."""
        return next((record.leak for record in self.measured if record.leak), None)


@dataclass(frozen=True)
class Standing:
    """How a cell compares with the others of its column."""

    rank: Rank
    best: bool
    """No other is told to be better by the paired tests."""


@dataclass(frozen=True)
class Leaderboard:
    """A suite with what is known of its cells."""

    suite: Suite
    cells: Mapping[tuple[str, Column], Cell]
    """By row label and column."""
    standings: Mapping[tuple[str, Column], Standing]
    beside: Mapping[tuple[str, Column], Sequence[Beside]]
    over: type[Population] = Episodes
    """What the printed intervals, the tests and so the ranks speak of."""

    @property
    def measured(self) -> list[Record]:
        """All records that a printed number comes from."""
        return [record for cell in self.cells.values() for record in cell.measured]

    @property
    def shown(self) -> list[Record]:
        """All records that the table speaks of, those without a result included."""
        return [record for cell in self.cells.values() for record in cell.seeds.values() if record]


def build(
    suite: Suite,
    shelf: Shelf,
    rule: Rule | None = None,
    papers: Literature | None = None,
    over: Over = "episodes",
    data_home: Path | None = None,
) -> Leaderboard:
    """The leaderboard of a suite from records, printed by `rule` where one is given and by the suite's otherwise.

    Intervals and tests speak of the population `over`; that of classes asks for the packed images of the targets.
    """
    rules = suite.evaluation.rules
    if over == "trainings" and len(suite.seeds) < 2:
        raise UserError(f"The suite {suite.name} has one seed, which says nothing of other trainings; add to 'seeds'.")
    if rule is not None and rule not in rules:
        raise UserError(f"The suite {suite.name} does not evaluate the rule '{rule}'; its rules: {', '.join(rules)}.")
    cells = {
        (row.label, column): _cell(suite, shelf, row, column, rule or row.rule, over, data_home)
        for row in suite.rows
        for column in suite.columns
    }
    standings: dict[tuple[str, Column], Standing] = {}
    for column in suite.columns:
        standings |= _standings([cell for (_, other), cell in cells.items() if other == column])
    beside = {key: _beside(cell, suite, papers or literature()) for key, cell in cells.items()}
    return Leaderboard(suite, cells, standings, beside, POPULATIONS[over])


def _cell(suite: Suite, shelf: Shelf, row: Row, column: Column, rule: Rule, over: Over, data_home: Path | None) -> Cell:
    configs = {seed: row.config(column.shots, seed) for seed in suite.seeds}
    seeds = {seed: shelf.find(suite, describe(config), column.target) for seed, config in configs.items()}
    # Seeds of different code or images would make a mean of nothing: those made with what is here now count, or else
    # the largest group that was made alike.
    done = {seed: record for seed, record in seeds.items() if record and record.status == "done"}
    made = {seed: (record.code, *record.data.values()) for seed, record in done.items()}
    current = [made[seed] for seed, record in done.items() if not shelf.identities.departures(record)]
    kept = Counter(current or made.values()).most_common(1)
    seeds |= {seed: None for seed in done if made[seed] != kept[0][0]}
    departures = {what: None for record in seeds.values() if record for what in shelf.identities.departures(record)}
    cell = Cell(row, column, rule, seeds, tuple(departures))
    return replace(cell, population=population(over, cell.measured[0], data_home)) if cell.measured else cell


def _standings(column: Sequence[Cell]) -> dict[tuple[str, Column], Standing]:
    """Ranks among the cells tested on the same images: on what most were, should records of one image size disagree."""
    tested: dict[int | None, Counter[tuple[str, ...]]] = {}
    for cell in column:
        if cell.measured:
            tested.setdefault(cell.size, Counter())[cell.test_data] += 1
    alike = [cell for cell in column if cell.measured and cell.test_data == tested[cell.size].most_common(1)[0][0]]
    compared = [cell for cell in alike if cell.result()]
    if not compared:
        return {}
    sign = compared[0].measured[0].evaluations[compared[0].rule].measure.sign  # so that the highest is the best
    tables = [values for cell in compared if (values := cell.values(cell.rule)) is not None]
    if compared[0].population is TRAININGS:
        shared = set.intersection(*({record.config["seed"] for record in cell.measured} for cell in compared))
        kept = [[record.config["seed"] in shared for record in cell.measured] for cell in compared]
        if len(shared) < 2:
            return {}
        table = np.stack([values[seeds] for values, seeds in zip(tables, kept, strict=True)])
    else:
        table = np.stack([values.mean(axis=0) for values in tables])
    above = better(sign * table, population=compared[0].population)
    found = zip(compared, ranks(above), among_the_best(above), strict=True)
    return {(cell.row.label, cell.column): Standing(rank, bool(best)) for cell, rank, best in found}


def _beside(cell: Cell, suite: Suite, papers: Literature) -> list[Beside]:
    """The published numbers of a cell, those made in the same protocol first."""
    config = describe(next(iter(cell.row.configs[cell.column.shots, seed] for seed in suite.seeds)))
    result, scale, found = cell.result(), suite.measure.scale, []
    for number in papers.of(cell.row.entry.method, config, cell.column.target):
        departures = papers.departures(number, config, cell.rule, suite.evaluation.episodes)
        if departures is not None and cell.leak and cell.leak.left_out:
            departures = [*departures, f"{len(cell.leak.left_out)} test classes left out"]
        same = departures is not None and not departures
        found.append(Beside(number, departures, scale * result[0] - number.value if result and same else None))
    return sorted(found, key=lambda beside: beside.departures is None or len(beside.departures) > 0)
