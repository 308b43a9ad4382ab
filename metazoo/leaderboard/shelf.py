"""Which records are there for the cells of a suite, and which of its trainings are missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metazoo.config import RunConfig, code_version, describe, resolve
from metazoo.domains import identity_here
from metazoo.errors import UserError
from metazoo.leaderboard.suite import Suite, Training
from metazoo.records import Record, Status, read
from metazoo.schema import parse

FAILURES = "failures.jsonl"
"""Beside the runs: why cells have no run's folder to say it, or no result in it."""

SETTLED: tuple[Status, ...] = ("done", "diverged", "incompatible")
"""What would end the same way again; every other cell is tried anew."""


@dataclass(frozen=True)
class Identities:
    """What the code of each method and the data sets prepared here are now; a record may be of others."""

    code: Mapping[tuple[str, str], str]
    """By method and the one it wraps, if it does."""
    data: Mapping[tuple[str, int | None], str]
    """By (data set, size); what is not prepared here is missing, and then not compared."""

    @classmethod
    def of(cls, suite: Suite, data_home: Path | None = None) -> Identities:
        """Those of a suite's methods and data sets; nothing is built or prepared for it."""
        code = {written_in(describe(job.config)): code_version(job.config) for job in suite.trainings}
        data: dict[tuple[str, int | None], str] = {}
        for training in suite.trainings:
            for name in {suite.source, *training.targets}:
                size = training.config.size
                if (name, size) not in data and (identity := identity_here(name, size, data_home)):
                    data[name, size] = identity
        return cls(code, data)

    def departures(self, record: Record) -> tuple[str, ...]:
        """What the record was made with that is not what is here: any of code, training data, test data."""
        config = record.config
        there = {
            "code": (record.code, self.code.get(written_in(config))),
            "training data": (record.data.get("source"), self.data.get((config["source"], config["size"]))),
            "test data": (record.data.get("target"), self.data.get((record.target, config["size"]))),
        }
        return tuple(what for what, (made, now) in there.items() if now is not None and made != now)


def written_in(config: Mapping[str, Any]) -> tuple[str, str]:
    """What the code version of a stored config hangs on: its method, and the one that this wraps, if it does."""
    return config["algorithm"], config["settings"].get("base", "")


class Shelf:
    """Records by the cell they are of: config, target, number of test episodes and their seed."""

    def __init__(self, records: Iterable[Record], identities: Identities):
        self.identities = identities
        self._records: dict[str, list[Record]] = {}
        for record in records:
            if record.split == "test":
                key = _key(_completed(record.config), record.target, record.episodes, record.episode_seed)
                self._records.setdefault(key, []).append(record)

    def find(self, suite: Suite, config: Mapping[str, Any], target: str) -> Record | None:
        """The record of one cell and seed: made with what is here now before others, with a result, the latest."""
        key = _key(config, target, suite.evaluation.episodes, suite.evaluation.seed)
        found = [record for record in self._records.get(key, []) if record.answers(suite.evaluation.drop_leaking)]
        ranked = sorted(found, key=lambda record: (not self.identities.departures(record), record.status == "done"))
        return ranked[-1] if ranked else None


def missing(suite: Suite, shelf: Shelf) -> list[Training]:
    """The trainings with the targets whose record is not there, or was made with other code or data."""
    wanted = []
    for training in suite.trainings:
        targets = [target for target in training.targets if not _is_settled(suite, shelf, training, target)]
        if targets:
            wanted.append(Training(training.label, training.config, tuple(targets)))
    return wanted


def gather(runs: Path, files: Sequence[Path] = ()) -> list[Record]:
    """The records of all runs in a folder, and of further files."""
    own = sorted(runs.glob("*/records.jsonl")) if runs.is_dir() else []
    failures = [runs / FAILURES] if (runs / FAILURES).is_file() else []
    return read([*files, *failures, *own])


def _is_settled(suite: Suite, shelf: Shelf, training: Training, target: str) -> bool:
    record = shelf.find(suite, describe(training.config), target)
    if record is None or shelf.identities.departures(record) or record.status not in SETTLED:
        return False
    return record.status != "done" or set(suite.evaluation.rules) <= set(record.evaluations)


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored config with the defaults of what configs have gained since; as it is where it cannot be read now."""
    try:
        read_again = parse(RunConfig, config, "record")
    except UserError:
        return config
    try:
        return describe(resolve(read_again, read_again.size))
    except UserError:  # of a method that is not known here
        return describe(read_again)


def _key(config: Mapping[str, Any], target: str, episodes: int, episode_seed: int) -> str:
    return json.dumps([config, target, episodes, episode_seed], sort_keys=True)
