"""What runs logged epoch by epoch, and the curves of it, where the folders of the runs are here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metazoo import metrics
from metazoo.leaderboard.charts import Curve, Frame, Scale, curve, widened
from metazoo.measures import Measure
from metazoo.records import Record

History = Sequence[Mapping[str, Any]]
"""The lines of a `metrics.jsonl`."""


class Histories:
    """The logs of runs under one folder, read once each; a run that is not here has none."""

    def __init__(self, runs: Path | None):
        self._runs = runs
        self._read: dict[str, History] = {}

    def of(self, record: Record) -> History:
        """What the run of a record logged, oldest first; nothing where it is not here."""
        name = record.run
        if self._runs is None or not name or Path(name).name != name:  # a record's text is no path to follow
            return ()
        if name not in self._read:
            self._read[name] = metrics.read(self._runs / name / "metrics.jsonl")
        return self._read[name]


@dataclass(frozen=True)
class Portrait:
    """The curves of one run: validation with the band of its interval, and training."""

    frame: Frame
    validation: Curve
    training: Curve
    chosen: Sequence[tuple[float, float]]
    """Where the epochs are that the selection rule chose."""


def frame(histories: Sequence[History], measure: Measure, size: tuple[float, float], margin: float) -> Frame | None:
    """The chart that has room for the validation curves of all; None where there is not one number to show."""
    values = [value for history in histories for value in validation(history, measure) if math.isfinite(value)]
    if not values:
        return None
    width, height = size
    epochs = max(line["epoch"] for history in histories for line in history)
    low, high = widened(values)
    log = measure.sign < 0 and min(values) > 0 and max(values) > 10 * min(values)
    if log:
        low, high = min(values) / 1.1, max(values) * 1.1
    x = Scale(0, epochs, margin, width - 8)
    y = Scale(low, high, height - 18, 8, log)
    whole = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    return Frame(
        width, height, x, y, x.ticks("{:.0f}".format, 6, whole), y.ticks(lambda v: f"{measure.scale * v:.3g}", 4),
        "epoch", measure.heading + (", log scale" if log else ""),
    )  # fmt: skip


def validation(history: History, measure: Measure) -> list[float]:
    """The validation results by epoch, NaN where an epoch has none."""
    return [float(line.get(f"validation_{measure.name}", math.nan)) for line in history]


def validation_curve(frame: Frame, history: History, measure: Measure) -> Curve:
    """The validation results, without their intervals."""
    return curve(frame, [line["epoch"] for line in history], validation(history, measure))


def portrait(history: History, measure: Measure, chosen: Sequence[int]) -> Portrait | None:
    """The curves of one run in a chart of their own, with the chosen epochs marked."""
    training = [{"epoch": line["epoch"], key: line[f"train_{measure.name}"]} for line in history
                for key in [f"validation_{measure.name}"] if f"train_{measure.name}" in line]  # fmt: skip
    drawn = frame([history, training], measure, (360, 190), 40)
    if drawn is None:
        return None
    epochs, values = [line["epoch"] for line in history], validation(history, measure)
    spreads = [float(line.get("validation_interval", math.nan)) for line in history]
    points = [(drawn.x(epoch), drawn.y(value)) for epoch, value in zip(epochs, values, strict=True) if epoch in chosen]
    return Portrait(drawn, curve(drawn, epochs, values, spreads), validation_curve(drawn, training, measure), points)
