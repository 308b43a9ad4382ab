"""Records: one self-contained JSON line for each evaluated cell, from which every table can be printed again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from metazoo.errors import UserError
from metazoo.leaks import Leak
from metazoo.measures import ACCURACY, SQUARED_ERROR, Measure
from metazoo.schema import Strict, parse

Rule = Literal["last", "best", "ensemble"]
Status = Literal["done", "diverged", "out of memory", "error", "interrupted", "incompatible"]


class Interval(Strict):
    """A mean with its half-widths at 95 %, which mean different things and never share a column."""

    mean: float
    over_episodes: float
    """Student-t interval of the mean over episodes."""
    over_queries: float | None = None
    """Binomial interval over all query predictions, 1.96 sqrt(p (1 - p) / n), as CxGrad prints; of an accuracy only."""


class Evaluation(Strict):
    """What one selection rule scored on the fixed test episodes, by accuracy."""

    accuracy: Interval
    correct: list[int]
    """Correct query predictions of each episode, in the order of the fixed episode list."""
    epochs: list[int]
    """The epochs (from 1) whose checkpoints the rule chose."""

    @property
    def measure(self) -> Measure:
        return ACCURACY

    @property
    def interval(self) -> Interval:
        """The mean over episodes."""
        return self.accuracy

    @property
    def scores(self) -> list[int]:
        """What `measure` makes values of."""
        return self.correct


class ErrorEvaluation(Strict):
    """What one selection rule scored on the fixed test episodes, by squared error."""

    error: Interval
    errors: list[float]
    """Mean squared error of each episode to six digits, in the order of the fixed episode list."""
    epochs: list[int]
    """The epochs (from 1) whose checkpoints the rule chose."""

    @property
    def measure(self) -> Measure:
        return SQUARED_ERROR

    @property
    def interval(self) -> Interval:
        """The mean over episodes."""
        return self.error

    @property
    def scores(self) -> list[float]:
        """What `measure` makes values of."""
        return self.errors


def _measured_by(values: Any) -> str:
    by_error = isinstance(values, ErrorEvaluation) or (isinstance(values, dict) and "error" in values)
    return (SQUARED_ERROR if by_error else ACCURACY).name


AnyEvaluation = Annotated[
    Annotated[Evaluation, Tag("accuracy")] | Annotated[ErrorEvaluation, Tag("error")], Discriminator(_measured_by)
]


class Record(Strict):
    """One cell of one seed: a method trained on a source and tested on a target."""

    format: Literal[1] = 1
    run: str
    """The run's folder name."""
    status: Status = "done"
    reason: str = ""
    """Why there is no result, where there is none."""
    config: dict[str, Any]
    """The resolved `RunConfig`."""
    data: dict[str, str]
    """Identity of each data set's manifest: `{"source": ..., "target": ...}`."""
    code: str
    target: str
    split: str = "test"
    episodes: int = 0
    episode_seed: int = 0
    queries_per_episode: int = 0
    leak: Leak | None = None
    """The test classes that the source trains or selects on, None where there are none."""
    evaluations: dict[Rule, AnyEvaluation] = {}
    batch_norm: str = ""
    """Whose statistics batch normalisation used, in words."""
    parameters: int = 0
    """Number of meta-learned scalars."""
    command: str = ""
    versions: dict[str, str] = {}
    hardware: str = ""
    created: str = ""
    """UTC, ISO 8601."""
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    tasks_per_second: float = 0.0
    """Training tasks per second, validation left out."""
    peak_memory_mb: float = 0.0
    """Peak device memory on a GPU, peak resident memory of the process on a CPU."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """The test classes that no episode drew."""
        return self.leak.left_out if self.leak else ()

    def answers(self, drop_leaking: bool) -> bool:
        """Whether its episodes are those of a test that drops leaking classes or does not; without a result, too."""
        return self.leak is None or not self.leak.trained or self.leak.dropped == drop_leaking


def append(path: Path, record: Record) -> None:
    """Add one line to a records file in one write, so that a kill cannot leave half a line in front of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (record.model_dump_json() + "\n").encode()
    with open(path, "ab+") as file:
        if file.tell() and not _ends_with_newline(file):
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(paths: Iterable[Path]) -> list[Record]:
    """All records of the given files, in order; a last line that a kill cut short is passed over."""
    records = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            raise UserError(f"There is no records file {path}.") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                if number == len(lines):
                    continue
                raise UserError(f"{path}, line {number}: not a JSON record; remove the line to go on.") from None
            records.append(parse(Record, values, f"{path}, line {number}"))
    return records


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
