"""A leaderboard as one static page that needs no network: table, curves, costs, and the card of every cell."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metazoo.files import write_text
from metazoo.leaderboard.cards import Card, cards
from metazoo.leaderboard.charts import Curve, Frame, Scale, top_of
from metazoo.leaderboard.histories import Histories, frame, validation_curve
from metazoo.leaderboard.standings import Leaderboard
from metazoo.leaderboard.suite import Column
from metazoo.leaderboard.tables import Document, Entry, Table, compose, heading, without_learning
from metazoo.leaderboard.tradeoffs import scatters
from metazoo.records import Record

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Bar:
    """A result in its column: all in percent of the column's width."""

    length: float
    low: float
    high: float


@dataclass(frozen=True)
class Place:
    """One place of the leaderboard's table; one with a card opens it."""

    entry: Entry
    card: Card | None = None
    bar: Bar | None = None


@dataclass(frozen=True)
class Panel:
    """One method's training curves among those of all."""

    label: str
    card: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Curves:
    """The validation curves of all methods with so many shots, one panel a method."""

    id: str
    title: str
    frame: Frame
    panels: Sequence[Panel]
    absent: Sequence[str]
    """Methods with a record whose run is not here."""


def save(board: Leaderboard, folder: Path, runs: Path | None = None) -> Path:
    """Write the page into a folder as index.html; returns the file. Curves are of the runs in the folder `runs`."""
    path = folder / "index.html"
    write_text(path, html(board, runs))
    return path


def html(board: Leaderboard, runs: Path | None = None) -> str:
    """The page as text. Whatever comes from records and suites is escaped."""
    document, histories = compose(board), Histories(runs)
    made = cards(board, document, histories)
    columns = {heading(board.suite, column): column for column in board.suite.columns}
    first = next(iter(columns))
    return _render(
        board=board,
        document=document,
        columns=columns,
        rows=_best_first(_rows(board, document, columns, made), document.tables[0].header.index(first), board),
        sorted_by=first,
        baseline=document.tables[0].rows[-1],
        ticks=_baselines(board),
        top=f"{board.suite.measure.scale * _bars(board).high:g}{board.suite.measure.unit}",
        cards=list(made.values()),
        curves=_curves(board, histories, made),
        scatters=scatters(board, {key: card.id for key, card in made.items()}),
        machines=len({record.hardware for record in board.measured}),
        tables=[_numbered(table) for table in document.tables[1:]],
    )


def _rows(
    board: Leaderboard,
    document: Document,
    columns: Mapping[str, Column],
    made: Mapping[tuple[str, Column], Card],
) -> list[list[Place]]:
    """The leaderboard's table without its last line, which is that of learning nothing."""
    main, scale, rows = document.tables[0], _bars(board), []
    for row, entries in zip(board.suite.rows, main.rows, strict=False):
        places = []
        for name, entry in zip(main.header, entries, strict=True):
            column = columns.get(name)
            if column is None:
                places.append(Place(entry))
                continue
            result = board.cells[row.label, column].result()
            bar = result and Bar(scale(result[0]), scale(result[0] - result[1]), scale(result[0] + result[1]))
            places.append(Place(entry, made[row.label, column], bar or None))
        rows.append(places)
    return rows


def _best_first(rows: list[list[Place]], index: int, board: Leaderboard) -> list[list[Place]]:
    """The rows by their place in one column, those without a number last."""
    known = [row for row in rows if row[index].entry.value is not None]
    ordered = sorted(known, key=lambda row: -board.suite.measure.sign * float(row[index].entry.value or 0))
    return [*ordered, *(row for row in rows if row[index].entry.value is None)]


def _bars(board: Leaderboard) -> Scale:
    """One for all columns, so that their bars compare."""
    ends = [sum(result) for cell in board.cells.values() if (result := cell.result())]
    return Scale(0.0, top_of(ends), 0.0, 100.0)


def _baselines(board: Leaderboard) -> dict[str, float | None]:
    """Where in the bars' columns the result of learning nothing is; None where it is beyond them."""
    scale, found = _bars(board), {}
    for column in board.suite.columns:
        value = without_learning(board.suite, column)[1]
        found[heading(board.suite, column)] = scale(value) if value < scale.high else None
    return found


def _curves(board: Leaderboard, histories: Histories, made: Mapping[tuple[str, Column], Card]) -> list[Curves]:
    """One chart of panels for each number of shots; one without a run here has no frame to draw in."""
    suite, charts = board.suite, []
    for shots in suite.shots:
        column = next(column for column in suite.columns if column.shots == shots)
        records = {row.label: _records(board, row.label, shots) for row in suite.rows}
        logged = {label: [log for record in found if (log := histories.of(record))] for label, found in records.items()}
        drawn = frame([log for logs in logged.values() for log in logs], suite.measure, (180, 112), 30)
        absent = [label for label, found in records.items() if found and not logged[label]]
        panels = [
            Panel(label, made[label, column].id, [validation_curve(drawn, log, suite.measure) for log in logs])
            for label, logs in logged.items()
            if drawn and logs
        ]
        if drawn:
            charts.append(Curves(f"curves-{shots}", f"{shots}-shot", drawn, panels, absent))
    return charts


def _records(board: Leaderboard, label: str, shots: int) -> list[Record]:
    """The records of one method's trainings with so many shots, one a run."""
    cells = [cell for (name, column), cell in board.cells.items() if name == label and column.shots == shots]
    return list({record.run: record for cell in cells for record in cell.seeds.values() if record}.values())


def _numbered(table: Table) -> tuple[Table, bool]:
    """A table, and whether it can be sorted: all its numbers are known, or it would be sorted by their digits."""
    return table, any(entry.value is not None for row in table.rows for entry in row)


def _render(**values: Any) -> str:
    import jinja2

    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"prose": prose, "anchor": _anchor}
    return environment.get_template("page.html").render(
        **values, style=style, script=script, style_hash=digest(style), script_hash=digest(script)
    )


def prose(text: str) -> Any:
    """A sentence of ours or of a plugin's with its `code` set as such; the rest is escaped as everything is."""
    from markupsafe import Markup, escape

    parts = str(escape(text)).split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)))


def _anchor(title: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def digest(text: str) -> str:
    """What the page's security policy knows its own style and script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
