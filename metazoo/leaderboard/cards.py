"""What the card of one cell says: its result and how to read it, its runs, its method, its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.config import RunConfig, describe
from metazoo.leaderboard.facts import RULES
from metazoo.leaderboard.histories import Histories, Portrait, portrait
from metazoo.leaderboard.standings import Cell, Leaderboard
from metazoo.leaderboard.suite import Column
from metazoo.leaderboard.tables import Document, duration, heading, sentence_case
from metazoo.measures import Measure
from metazoo.records import Record, Rule
from metazoo.schema import parse


@dataclass(frozen=True)
class RunCard:
    """One training that a cell's result comes from, or that ended without one."""

    name: str
    facts: Mapping[str, str]
    portrait: Portrait | None


@dataclass(frozen=True)
class MethodCard:
    """What the code says of a method."""

    title: str
    name: str
    paper: str
    remarks: Sequence[str]
    deviations: Sequence[str]


@dataclass(frozen=True)
class Card:
    """All that is known of one cell."""

    id: str
    title: str
    result: str
    """As the table has it, or why there is none."""
    measured: str
    """What the result is, with its unit."""
    remarks: Sequence[str]
    readings: Mapping[str, str]
    """The same cell by other rules and intervals, each with the name of what it is."""
    published: Sequence[str]
    methods: Sequence[MethodCard]
    runs: Sequence[RunCard]
    config: str
    """YAML that `metazoo train --config` takes."""


def cards(board: Leaderboard, document: Document, histories: Histories) -> dict[tuple[str, Column], Card]:
    """The cards of all cells, by row label and column."""
    main = document.tables[0]
    places = {column: main.header.index(heading(board.suite, column)) for column in board.suite.columns}
    made = {}
    for number, (row, entries) in enumerate(zip(board.suite.rows, main.rows, strict=False), start=1):
        for place, column in enumerate(board.suite.columns, start=1):
            notes = [document.notes[note - 1] for note in entries[places[column]].notes]
            made[row.label, column] = _card(board, (row.label, column), notes, histories, f"cell-{number}-{place}")
    return made


def _card(board: Leaderboard, key: tuple[str, Column], notes: Sequence[str], histories: Histories, name: str) -> Card:
    cell, suite, measure = board.cells[key], board.suite, board.suite.measure
    result = cell.result()
    config = cell.row.config(cell.column.shots, next(iter(cell.seeds)))
    records = [record for record in cell.seeds.values() if record]
    return Card(
        id=name,
        title=f"{cell.row.label}, {heading(suite, cell.column)}",
        result=measure.cell(*result) if result else "missing" if cell.status == "done" else cell.status,
        measured=f"{sentence_case(measure.heading)}, ± half-width of its {board.over.title}; {RULES[cell.rule]}"
        if result
        else "",
        remarks=[*_standing(board, key), *notes],
        readings=_readings(board, cell),
        published=[f"{beside.number.printed}, {beside.number.cited}" for beside in board.beside[key]],
        methods=_methods(config),
        runs=[_run(record, cell.rule, measure, histories) for record in records],
        config=yaml.safe_dump(dict(describe(config)), sort_keys=False, default_flow_style=None, width=88),
    )


def _standing(board: Leaderboard, key: tuple[str, Column]) -> list[str]:
    standing = board.standings.get(key)
    if standing is None:
        return []
    others = sum(column == key[1] for _, column in board.standings)
    best = " No other is told to be better by the paired tests." if standing.best else ""
    return [f"Rank {standing.rank} of {others}.{best}"]


def _readings(board: Leaderboard, cell: Cell) -> dict[str, str]:
    """The result by every rule, and its other plus-minuses, each under a name that says which it is."""
    measure, result = board.suite.measure, cell.result()
    by_rule = {rule: cell.result(rule) for rule in board.suite.evaluation.rules if rule != cell.rule}
    over = f"± over {board.over.name}"
    readings = {f"{RULES[rule]}, {over}": measure.cell(*found) for rule, found in by_rule.items() if found}
    if result and cell.over_queries is not None:
        readings["± over queries (binomial)"] = measure.cell(result[0], cell.over_queries)
    if cell.over_seeds is not None:
        readings["standard deviation over seeds"] = measure.cell(cell.over_seeds)
    return readings


def _methods(config: RunConfig) -> list[MethodCard]:
    """The method of a config, and those that it is made of."""
    method = registry.algorithm(config.algorithm)
    parts = method.written_in(parse(method.Settings, config.settings, f"settings of {config.algorithm}"))
    return [_method(part) for part in (method, *sorted(parts - {method}, key=lambda part: part.name))]


def _method(method: type[Algorithm]) -> MethodCard:
    remarks = []
    if method.transductive:
        remarks.append("A prediction depends on the other query examples of its episode (transductive).")
    if method.stops_gradient:
        remarks.append(f"Held constant in the meta-gradient: {method.stops_gradient}.")
    return MethodCard(method.title or method.name, method.name, method.paper, remarks, method.deviations)


def _run(record: Record, rule: Rule, measure: Measure, histories: Histories) -> RunCard:
    chosen = record.evaluations[rule].epochs if rule in record.evaluations else []
    per_second = f", {record.tasks_per_second:.1f} tasks/s" if record.tasks_per_second else ""
    facts = {
        "Seed": str(record.config.get("seed", "")),
        "State": f"{record.status}: {record.reason}" if record.reason else record.status,
        "Epochs tested": ", ".join(map(str, chosen)),
        "Training": duration(record.training_seconds) + per_second if record.training_seconds else "",
        "Test": duration(record.evaluation_seconds) if record.evaluation_seconds else "",
        "Peak memory": f"{record.peak_memory_mb:,.0f} MiB" if record.peak_memory_mb else "",
        "Meta-parameters": f"{record.parameters:,}" if record.parameters else "",
        "Batch norm": record.batch_norm,
        "Command": record.command,
        "Hardware": record.hardware,
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Code": record.code,
        "Data": ", ".join(f"{role} {identity[:12]}" for role, identity in record.data.items()),
        "Made": record.created,
    }
    drawn = portrait(histories.of(record), measure, chosen)
    return RunCard(record.run, {name: text for name, text in facts.items() if text}, drawn)
