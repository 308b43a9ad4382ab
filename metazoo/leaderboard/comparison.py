"""Pairs of methods compared on the episodes they share, straight from records."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metazoo import registry
from metazoo.errors import UserError
from metazoo.leaderboard.tested import population
from metazoo.measures import Measure
from metazoo.populations import TRAININGS, Over, Population
from metazoo.records import Record, Rule, read
from metazoo.schema import leaves
from metazoo.statistics import compare, detectable, episodes_needed, holm


@dataclass(frozen=True)
class Contender:
    """One method at one setting, with its records by seed."""

    label: str
    records: Mapping[int, Record]
    values: NDArray[np.float64]
    """What each seed measured in each episode [S, E]."""


@dataclass(frozen=True)
class Pair:
    """Two contenders; the first measured the higher value. Differences are in the measure's natural unit."""

    first: str
    second: str
    difference: float
    half_width: float
    p_value: float
    """By Holm's correction over all pairs of the field."""
    needed: int | None
    """Episodes that would tell a true difference of this size with a chance of 80 %; None where there is none."""
    detectable: float
    """The smallest true difference that the episodes here tell with that chance."""


@dataclass(frozen=True)
class Field:
    """Contenders tested on the same episodes, the best first, and all their pairs."""

    title: str
    measure: Measure
    population: Population
    episodes: int
    contenders: Sequence[Contender]
    pairs: Sequence[Pair]


def gathered(paths: Iterable[Path]) -> list[Record]:
    """The records of runs' folders and of records files; a UserError for a path that is neither."""
    files = []
    for path in paths:
        files.append(path / "records.jsonl" if path.is_dir() else path)
        if path.is_dir() and not files[-1].is_file():
            raise UserError(f"{path} holds no records.jsonl; test the run with: metazoo evaluate {path}")
    return read(files)


def fields(records: Iterable[Record], rule: Rule, names: Sequence[str] = (), over: Over = "episodes") -> list[Field]:
    """What can be compared among records, by the episodes they were tested on.

    `names` are labels or methods to keep, all by default. Raises UserError where nothing can be compared.
    """
    tested: dict[str, dict[str, dict[int, Record]]] = {}
    for record in records:
        if record.status == "done" and rule in record.evaluations:
            method = {key: value for key, value in record.config.items() if key != "seed"}
            of_method = tested.setdefault(_test(record), {}).setdefault(json.dumps(method, sort_keys=True), {})
            of_method[record.config["seed"]] = record
    found = [_field(list(methods.values()), rule, names, over) for methods in tested.values()]
    filled = [field for field in found if field is not None]
    if not filled:
        wanted = f" of {', '.join(names)}" if names else ""
        raise UserError(
            f"There are no two records{wanted} with a result by the rule '{rule}' on the same test episodes; name "
            "records of two methods at least, tested on the same data, ways, shots, queries and episodes."
        )
    return filled


def _test(record: Record) -> str:
    """What two records must have in common to be of the same episodes."""
    asked = [record.config[key] for key in ("ways", "shots", "queries")]
    left_out = record.leak.left_out if record.leak else ()
    return json.dumps(
        [record.target, record.data.get("target"), *asked, record.episodes, record.episode_seed, left_out]
    )


def _field(methods: Sequence[Mapping[int, Record]], rule: Rule, names: Sequence[str], over: Over) -> Field | None:
    contenders = []
    for label, records in zip(_labels(methods), methods, strict=True):
        first = next(iter(records.values()))
        if not names or {label, first.config["algorithm"]} & set(names):
            found = [(record.evaluations[rule], record.queries_per_episode) for record in records.values()]
            values = np.stack([result.measure.values(result.scores, queries) for result, queries in found])
            contenders.append(Contender(label, records, values))
    if len(contenders) < 2:
        return None
    record = next(iter(contenders[0].records.values()))
    measure = record.evaluations[rule].measure
    contenders.sort(key=lambda each: -measure.sign * float(each.values.mean()))
    chosen = population(over, record)
    config = record.config
    title = f"{record.target}, {config['ways']}-way {config['shots']}-shot, {record.episodes} test episodes"
    return Field(title, measure, chosen, record.episodes, contenders, _pairs(contenders, chosen))


def _pairs(contenders: Sequence[Contender], chosen: Population) -> list[Pair]:
    found = []
    for one, other in itertools.combinations(contenders, 2):
        first, second = _matched(one, other, chosen)
        result = compare(first, second, population=chosen)
        deviation = float((first.mean(axis=0) - second.mean(axis=0)).std(ddof=1))
        episodes = first.shape[-1]
        needed = episodes_needed(result.difference, deviation)
        found.append((one.label, other.label, result, needed, detectable(deviation, episodes)))
    adjusted = holm([result.p_value for _, _, result, _, _ in found])
    return [
        Pair(first, second, result.difference, result.half_width, float(p_value), needed, least)
        for (first, second, result, needed, least), p_value in zip(found, adjusted, strict=True)
    ]


def _matched(one: Contender, other: Contender, chosen: Population) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values [S, E] of both: seed by seed over trainings, and else the means over each one's seeds."""
    if chosen is not TRAININGS:
        return one.values.mean(axis=0, keepdims=True), other.values.mean(axis=0, keepdims=True)
    shared = sorted(one.records.keys() & other.records.keys())
    if len(shared) < 2:
        raise UserError(
            f"{one.label} and {other.label} have {len(shared)} seeds in common, and an interval over trainings needs "
            "2; train more seeds, or use the interval over episodes."
        )
    first, second = (each.values[[list(each.records).index(seed) for seed in shared]] for each in (one, other))
    return first, second


def _labels(methods: Sequence[Mapping[int, Record]]) -> list[str]:
    """Titles of the methods, with the settings that tell two of the same title apart."""
    configs = [next(iter(records.values())).config for records in methods]
    titles = [_title(config) for config in configs]
    again = Counter(titles)
    labels = []
    for title, config in zip(titles, configs, strict=True):
        namesakes = [leaves(other) for other, name in zip(configs, titles, strict=True) if name == title]
        own, keys = leaves(config), dict.fromkeys(key for other in namesakes for key in other if key != "seed")
        told = {
            key: own.get(key, "default") for key in keys if any(other.get(key) != own.get(key) for other in namesakes)
        }
        details = ", ".join(f"{key.removeprefix('settings.')} {value}" for key, value in told.items())
        labels.append(f"{title} ({details})" if again[title] > 1 else title)
    return labels


def _title(config: Mapping[str, Any]) -> str:
    name = str(config["algorithm"])
    known = registry.algorithms()
    return known[name].title or name if name in known else name
