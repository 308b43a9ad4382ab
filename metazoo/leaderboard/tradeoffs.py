"""What a result costs: scatter plots of results against training time and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from metazoo.leaderboard.charts import Dot, Frame, Scale, front, labelled, steps, widened
from metazoo.leaderboard.standings import Leaderboard
from metazoo.leaderboard.suite import Column
from metazoo.leaderboard.tables import duration, heading


@dataclass(frozen=True)
class Cost:
    """What is paid for a result: its name, and the record's number of it."""

    title: str
    key: str
    text: Callable[[float], str]
    steps: Sequence[float] = ()
    """What is round on its axis; powers of ten, their halves and fifths by default."""


COSTS = (
    Cost(
        "training time",
        "training_seconds",
        lambda seconds: duration(seconds).replace(" 00 s", "").replace(" 00 min", ""),
        (1, 2, 5, 10, 30, *(60 * minutes for minutes in (1, 2, 5, 10, 30)), *(3600 * h for h in (1, 2, 5, 10, 24))),
    ),
    Cost("peak memory", "peak_memory_mb", lambda value: f"{value:,.0f} MiB"),
)


@dataclass(frozen=True)
class Scatter:
    """Results against one cost, a dot a method."""

    title: str
    frame: Frame
    dots: Sequence[Dot]
    front: str
    """The line of what can be had for at most so much, as SVG points."""


def scatters(board: Leaderboard, links: Mapping[tuple[str, Column], str]) -> list[Scatter]:
    """One plot a column and cost, where there are two methods or more; `links` are the anchors of the cells' cards."""
    made = [_scatter(board, column, cost, links) for column in board.suite.columns for cost in COSTS]
    return [scatter for scatter in made if scatter]


def _scatter(board: Leaderboard, column: Column, cost: Cost, links: Mapping[tuple[str, Column], str]) -> Scatter | None:
    measure, found = board.suite.measure, {}
    for row in board.suite.rows:
        cell = board.cells[row.label, column]
        result, paid = cell.result(), [getattr(record, cost.key) for record in cell.measured]
        if result and min(paid) > 0:
            found[row.label] = (sum(paid) / len(paid), *result)
    if len(found) < 2:
        return None
    drawn = _frame(board, cost, list(found.values()))
    dots = [
        Dot(
            x=drawn.x(paid),
            y=drawn.y(value),
            low=drawn.y(value - half),
            high=drawn.y(value + half),
            name=label,
            text=f"{label}: {measure.text(value, half)}, {cost.text(paid)}",
            card=links[label, column],
            best=(label, column) in board.standings and board.standings[label, column].best,
        )
        for label, (paid, value, half) in found.items()
    ]
    on_front = front(dots, measure.sign > 0)
    dots = [replace(dot, on_front=index in on_front) for index, dot in enumerate(dots)]
    title = f"{heading(board.suite, column)}: {measure.title} against {cost.title}"
    return Scatter(title, drawn, labelled(dots, drawn), steps(dots, drawn))


def _frame(board: Leaderboard, cost: Cost, found: Sequence[tuple[float, float, float]]) -> Frame:
    """The empty plot with room for all (cost, result, half-width); by the cost's logarithm where it varies much."""
    measure, paid = board.suite.measure, [each for each, _, _ in found]
    log = max(paid) > 5 * min(paid)
    low, high = (min(paid) / 1.15, max(paid) * 1.15) if log else widened(paid)
    x = Scale(low, high, 38, 352, log)
    y = Scale(*widened([value + side * half for _, value, half in found for side in (-1, 1)]), 214, 8)
    return Frame(
        width=360,
        height=248,
        x=x,
        y=y,
        x_ticks=x.ticks(cost.text, steps=cost.steps),
        y_ticks=y.ticks(lambda value: f"{measure.scale * value:.3g}"),
        x_title=cost.title + (", log scale" if log else ""),
        y_title=measure.heading,
    )
