"""Suites: the YAML that says what one leaderboard holds, and the trainings and cells that follow from it."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from metazoo import registry
from metazoo.config import Normalisation, RunConfig, resolve
from metazoo.data.dataset import FactSheet, dataset
from metazoo.errors import UserError, unknown
from metazoo.measures import Measure
from metazoo.presets import Preset, preset
from metazoo.records import Rule
from metazoo.schema import Strict, parse, read_yaml

OWN = ("preset", "size", "normalisation", "backbone", "training", "rule")
"""What a method may have of its own in an as-published suite, and no method in a common one."""


class MethodEntry(Strict):
    """One row of the table: a method, and what it has of its own."""

    method: str
    label: str = ""
    """What the row is called; the method's title by default."""
    preset: str = ""
    """Settings as a paper or its code has them, from which the keys below depart."""
    settings: dict[str, Any] = {}
    size: PositiveInt | None = None
    normalisation: Normalisation | None = None
    backbone: dict[str, Any] = {}
    training: dict[str, Any] = {}
    rule: Rule | None = None

    @field_validator("label")
    @classmethod
    def _on_one_line(cls, label: str) -> str:
        return " ".join(label.split())


class EvaluationPlan(Strict):
    """How every cell is tested, and which selection rule the table prints."""

    episodes: int = Field(default=600, ge=2)
    seed: NonNegativeInt = 0
    """Names the fixed list of test episodes."""
    rules: tuple[Rule, ...] = Field(default=("last", "best", "ensemble"), min_length=1)
    printed: Rule = "best"
    drop_leaking: bool = False
    """Leave out the test classes that the source trains on (`metazoo.leaks`)."""


class Suite(Strict):
    """The cells of one table, all measured in one protocol.

    In the `common` protocol all methods share everything but their own hyper-parameters (`settings`). In `as published`
    each may have the backbone, training, pixels and selection rule of its paper or official code.
    """

    name: str
    title: str
    about: str = ""
    """What the table is for and what limits it, printed below it."""
    protocol: Literal["common", "as published"]
    source: str
    targets: tuple[str, ...] = ()
    """Data sets tested on; the source by default, any other makes a cross-domain column."""
    ways: PositiveInt = 5
    shots: tuple[PositiveInt, ...] = (1,)
    seeds: tuple[NonNegativeInt, ...] = (0,)
    queries: PositiveInt = 15
    size: PositiveInt | None = None
    normalisation: Normalisation = "none"
    backbone: dict[str, Any] = {}
    training: dict[str, Any] = {}
    per_shots: dict[PositiveInt, dict[str, Any]] = {}
    """Training settings that depend on the shots, as in `{5: {meta_batch: 2}}`; a method's own go before them."""
    evaluation: EvaluationPlan = EvaluationPlan()
    methods: tuple[MethodEntry, ...] = Field(min_length=1)

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_entries(cls, methods: Any) -> Any:
        if not isinstance(methods, (list, tuple)):
            return methods
        return [{"method": entry} if isinstance(entry, str) else entry for entry in methods]

    @property
    def sheet(self) -> FactSheet:
        """The fact sheet of the source."""
        return dataset(self.source)

    @property
    def measure(self) -> Measure:
        """What every cell is judged by."""
        return self.sheet.measure

    @property
    def columns(self) -> list[Column]:
        """The columns of the table, target by target."""
        return [Column(target, shots) for target in self.targets or (self.source,) for shots in self.shots]

    @property
    def rows(self) -> list[Row]:
        """The rows of the table; every config in them is resolved, so a mistake in one is found here."""
        return [self._row(entry) for entry in self.methods]

    @property
    def trainings(self) -> list[Training]:
        """Every training the suite needs, once each, also where two rows need the same one."""
        needed: dict[str, Training] = {}
        for row in self.rows:
            for config in row.configs.values():
                training = Training(row.label, config, self.targets or (self.source,))
                needed.setdefault(config.model_dump_json(), training)
        return list(needed.values())

    @property
    def names(self) -> set[str]:
        """What rows are called: their labels and their methods."""
        return {name for row in self.rows for name in (row.label, row.entry.method)}

    def named_in(self, text: str) -> list[str]:
        """The names in a list with commas between them, `MAML, 1 step, boil`: some labels have commas of their own.

        From the left, the longest one that a row has counts.
        """
        known = {tuple(_between_commas(name)): name for name in self.names}
        pieces, found = _between_commas(text), []
        while pieces:
            lengths = (length for length in range(len(pieces), 0, -1) if tuple(pieces[:length]) in known)
            length = next(lengths, 1)
            found.append(known.get(tuple(pieces[:length]), pieces[0]))
            pieces = pieces[length:]
        return found

    def restricted(self, names: Sequence[str]) -> Suite:
        """The same suite with the rows whose label or method is among `names`; a UserError for a name without a row."""
        known = self.names
        for name in names:
            if name not in known:
                raise unknown(f"row of the suite {self.name}", name, known)
        kept = [row.entry for row in self.rows if {row.label, row.entry.method} & set(names)]
        return self.model_copy(update={"methods": tuple(kept)})

    def extended(self, names: Sequence[str]) -> Suite:
        """The same suite with a row more for each of these methods, as it is by default; a UserError for one it has."""
        labels = {row.label for row in self.rows}
        larger = self.model_copy(update={"methods": (*self.methods, *(MethodEntry(method=name) for name in names))})
        for row in larger.rows[len(self.methods) :]:
            if row.label in labels:
                raise UserError(f"The suite {self.name} has a row called '{row.label}' already.")
            labels.add(row.label)
        return larger

    def _row(self, entry: MethodEntry) -> Row:
        label = entry.label or registry.algorithm(entry.method).title or entry.method
        cells = itertools.product(self.shots, self.seeds)
        configs = {(shots, seed): self._config(entry, label, shots, seed) for shots, seed in cells}
        rule = entry.rule or (_preset(entry).rule if entry.preset else None) or self.evaluation.printed
        return Row(label, entry, rule, configs)

    def _config(self, entry: MethodEntry, label: str, shots: int, seed: int) -> RunConfig:
        given = _preset(entry).values(shots) if entry.preset else {}
        values = {
            "algorithm": entry.method,
            "settings": {**given.get("settings", {}), **entry.settings},
            "source": self.source,
            "size": entry.size or given.get("size") or self.size,
            "normalisation": entry.normalisation or given.get("normalisation") or self.normalisation,
            "ways": self.ways,
            "shots": shots,
            "queries": self.queries,
            "backbone": _backbone(self.backbone, given.get("backbone", {}), entry.backbone),
            "training": {
                **self.training,
                **self.per_shots.get(shots, {}),
                **given.get("training", {}),
                **entry.training,
            },
            "seed": seed,
        }
        where = f"suite {self.name}, {label}" if entry.backbone or entry.training else f"suite {self.name}"
        return resolve(parse(RunConfig, values, where), dataset(self.source).pixels)


@dataclass(frozen=True)
class Column:
    """One column of a table: where methods are tested, and with how many shots."""

    target: str
    shots: int


@dataclass(frozen=True)
class Row:
    """One row of a table: a method under a label, with the resolved config of each of its trainings."""

    label: str
    entry: MethodEntry
    rule: Rule
    configs: Mapping[tuple[int, int], RunConfig]
    """By (shots, seed)."""

    def config(self, shots: int, seed: int) -> RunConfig:
        return self.configs[shots, seed]


@dataclass(frozen=True)
class Training:
    """One training of a suite and the data sets it is tested on."""

    label: str
    config: RunConfig
    targets: tuple[str, ...]

    @property
    def title(self) -> str:
        """What it is called while it runs: `MAML 1-shot seed 0`."""
        return f"{self.label} {self.config.shots}-shot seed {self.config.seed}"


def suites() -> dict[str, Path]:
    """The suites that come with metazoo, by name."""
    package = importlib.import_module("metazoo.benchmarks")
    return {path.stem: path for path in sorted(Path(package.__path__[0]).glob("suites/*.yaml"))}


def load(name: str) -> Suite:
    """The suite of that name, or in that YAML file; a UserError that names the mistake where there is one."""
    known = suites()
    if name in known:
        return read(known[name])
    if name.endswith((".yaml", ".yml")) or os.sep in name or Path(name).is_file():
        return read(Path(name))
    raise unknown("suite", name, known)


def read(path: Path) -> Suite:
    """The suite in a YAML file, checked to its last config."""
    suite = parse(Suite, read_yaml(path), str(path))
    for problem in _problems(suite):
        raise UserError(f"{path}: {problem}")
    return suite


def _problems(suite: Suite) -> Iterator[str]:
    if suite.name != "".join(letter for letter in suite.name if letter.isalnum() or letter in "_-") or not suite.name:
        yield f"the name '{suite.name}' may only have letters, digits, _ and -, because it names a folder."
    for name in dict.fromkeys((suite.source, *suite.targets)):
        if dataset(name).kind != suite.sheet.kind:
            yield (
                f"the source {suite.source} is a data set of {suite.sheet.kind} and the target {name} one of "
                f"{dataset(name).kind}; a network trained on one cannot be tested on the other."
            )
    for key in ("targets", "shots", "seeds"):
        values = getattr(suite, key)
        if len(set(values)) < len(values):
            yield f"'{key}' names the same thing twice."
        if not values and key != "targets":
            yield f"'{key}' is empty; name at least one."
    if suite.evaluation.printed not in suite.evaluation.rules:
        yield f"'evaluation.printed' is {suite.evaluation.printed}, which is not among 'evaluation.rules'."
    for shots in suite.per_shots:
        if shots not in suite.shots:
            yield f"'per_shots' has settings for {shots} shots, which 'shots' does not name."
    for entry in suite.methods:
        own = [key for key in OWN if getattr(entry, key)]
        if own and suite.protocol == "common":
            yield (
                f"{entry.label or entry.method} has {' and '.join(own)} of its own, and in the common protocol methods "
                "differ in their settings only; move it to the suite's top level or use protocol: as published."
            )
        if entry.rule and entry.rule not in suite.evaluation.rules:
            yield f"{entry.label or entry.method} is to print {entry.rule}, which is not among 'evaluation.rules'."
    labels = [row.label for row in suite.rows]
    for label in labels:
        if labels.count(label) > 1:
            yield f"{labels.count(label)} rows are called '{label}'; give each a 'label' of its own."


def _between_commas(text: str) -> list[str]:
    return [piece.strip() for piece in text.split(",") if piece.strip()]


def _preset(entry: MethodEntry) -> Preset:
    return preset(entry.method, entry.preset)


def _backbone(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers merged, the last first in rank; one that names another network discards what went before it."""
    merged: dict[str, Any] = {"name": RunConfig.model_fields["backbone"].default.name}
    for layer in layers:
        if layer.get("name", merged["name"]) != merged["name"]:
            merged = {}
        merged |= layer
    return merged
