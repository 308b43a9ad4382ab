"""Numbers from the literature, each with its source, and whether a measured number may be compared with one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from metazoo.errors import UserError
from metazoo.records import Rule
from metazoo.schema import Strict, leaves, parse, read_yaml

Meaning = Literal["episodes", "queries", "seeds", "repeats", "unstated"]

MEANINGS: Mapping[Meaning, str] = {
    "episodes": "95 % interval over episodes",
    "queries": "binomial interval over query predictions",
    "seeds": "standard deviation over seeds",
    "repeats": "standard deviation over repeated evaluations",
    "unstated": "of unstated meaning",
}
"""What a published plus-minus stands for, in words."""


class Protocol(Strict):
    """What is known of how a published number was made, in the words of a run's config; what is unknown is left out."""

    about: str
    queries: PositiveInt | None = None
    size: PositiveInt | None = None
    normalisation: str | None = None
    backbone: dict[str, Any] = {}
    training: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    rule: Rule | None = None
    episodes: PositiveInt | None = None

    def departures(self, config: Mapping[str, Any], rule: Rule, episodes: int) -> list[str]:
        """How a resolved config, tested by `rule` on `episodes`, departs from it: `["training.epochs 10, not 100"]`."""
        known = leaves(self.model_dump(exclude={"about"}, exclude_unset=True))
        measured = leaves({**config, "rule": rule, "episodes": episodes})
        return [f"{key} {measured.get(key)}, not {value}" for key, value in known.items() if measured.get(key) != value]


class Number(Strict):
    """One published accuracy in percent, or one mean squared error, in the table `cited`."""

    method: str
    label: str
    """What its source calls the method, so that variants of one method stay apart."""
    source: str
    target: str = ""
    """The data set tested on; the source itself where it is empty."""
    ways: PositiveInt = 5
    shots: PositiveInt
    backbone: str = "conv4"
    settings: dict[str, Any] = {}
    """Settings of the method by which its source tells this number from others of it, as an ablation does."""
    accuracy: PositiveFloat | None = None
    error: PositiveFloat | None = None
    interval: PositiveFloat | None = None
    meaning: Meaning = "unstated"
    protocol: str | None = None
    notes: str = ""
    cited: str = ""

    @model_validator(mode="after")
    def _is_one_number(self) -> Number:
        if (self.accuracy is None) == (self.error is None):
            raise ValueError("a published number is either an accuracy or an error")
        return self

    @property
    def value(self) -> float:
        """The number as it is printed, in percent if it is an accuracy."""
        value = self.accuracy if self.error is None else self.error
        assert value is not None
        return value

    @property
    def printed(self) -> str:
        """The number as one reads it: `51.80 ± 0.46 (binomial interval over query predictions)`."""
        if self.interval is None:
            return f"{self.value:.2f} (no interval)"
        return f"{self.value:.2f} ± {self.interval:.2f} ({MEANINGS[self.meaning]})"


class _Table(Strict):
    cited: str
    meaning: Meaning
    notes: str = ""
    numbers: list[dict[str, Any]]


class _File(Strict):
    protocols: dict[str, Protocol] = {}
    tables: list[_Table] = []


class Literature:
    """All published numbers of one file, and the protocols they name."""

    def __init__(self, path: Path):
        file = parse(_File, read_yaml(path), str(path))
        self.protocols = file.protocols
        self.numbers = [
            parse(Number, {"meaning": table.meaning, "notes": table.notes, "cited": table.cited, **values}, where)
            for table in file.tables
            for index, values in enumerate(table.numbers, start=1)
            for where in [f"{path}, number {index} of {table.cited}"]
        ]
        for number in self.numbers:
            if number.protocol is not None and number.protocol not in self.protocols:
                raise UserError(f"{path}: {number.label} names the protocol '{number.protocol}', which is not there.")

    def of(self, method: str, config: Mapping[str, Any], target: str) -> list[Number]:
        """The numbers of `method` for a resolved config's source, ways, shots and backbone, tested on `target`.

        Where a source has numbers for just the config's settings, those; else the ones of the method as it is.
        """
        found = [
            number
            for number in self.numbers
            if (number.method, number.source, number.target or number.source) == (method, config["source"], target)
            and (number.ways, number.shots) == (config["ways"], config["shots"])
            and number.backbone == config["backbone"]["name"]
            and all(config["settings"].get(key) == value for key, value in number.settings.items())
        ]
        return [number for number in found if number.settings] or found

    def departures(self, number: Number, config: Mapping[str, Any], rule: Rule, episodes: int) -> list[str] | None:
        """How a measured cell departs from the number's protocol (empty: not at all); None where that is not known."""
        if number.protocol is None:
            return None
        protocol = self.protocols[number.protocol]
        varied = protocol.model_copy(update={"settings": protocol.settings | number.settings})
        return varied.departures(config, rule, episodes)


@cache
def literature() -> Literature:
    """The numbers of `benchmarks/published.yaml`."""
    package = importlib.import_module("metazoo.benchmarks")
    return Literature(Path(package.__path__[0]) / "published.yaml")
