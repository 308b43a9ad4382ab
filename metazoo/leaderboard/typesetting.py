"""Writing a leaderboard: Markdown, LaTeX, CSV, JSON, and the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metazoo.files import write_text
from metazoo.leaderboard.standings import Leaderboard
from metazoo.leaderboard.tables import Document, Entry, compose, without_learning

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def save(board: Leaderboard, folder: Path) -> list[Path]:
    """Write the leaderboard in every format, and the records it was made from, into a folder; returns the files."""
    document = compose(board)
    texts = {
        "leaderboard.md": markdown(document),
        "leaderboard.tex": latex(document),
        "leaderboard.csv": to_csv(board),
        "leaderboard.json": to_json(board),
        "records.jsonl": "".join(f"{record.model_dump_json()}\n" for record in board.shown),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def markdown(document: Document) -> str:
    """The whole document as GitHub-flavoured Markdown."""
    lines = [f"# {document.title}", ""]
    if document.about:
        lines += [document.about, ""]
    for index, table in enumerate(document.tables):
        lines += [f"{table.title}.", ""] if index == 0 else [f"## {table.title}", ""]
        lines.append(_markdown_row(table.header))
        lines.append("|" + "|".join("---:" if letter == "r" else "---" for letter in table.align) + "|")
        lines += [_markdown_row([_markdown_entry(entry) for entry in row]) for row in table.rows]
        lines.append("")
        if index == 0:
            lines += [f"{number}. {note}" for number, note in enumerate(document.notes, start=1)]
            lines += [""] if document.notes else []
            lines += ["## How these numbers were made", ""]
            lines += [f"- **{name}**: {text}" for name, text in document.facts.items()]
            lines.append("")
    return "\n".join(lines)


def latex(document: Document) -> str:
    """The tables of numbers in LaTeX, ready to be \\input; they need the packages booktabs and graphicx.

    A table wider than the line is shrunk to it.
    """
    lines = ["% Needs \\usepackage{booktabs,graphicx}."]
    lines += [f"% {name}: {' '.join(text.split())}" for name, text in document.facts.items()]
    for index, table in enumerate(document.tables):
        if table.prose:
            continue
        caption = f"{document.title}. {table.title}" if index == 0 else table.title
        lines += ["", "\\begin{table}", "\\centering", f"\\caption{{{_tex(caption)}.}}"]
        shrunk = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}"
        lines += [f"{shrunk}{{\\begin{{tabular}}{{{table.align}}}", "\\toprule"]
        lines += [_tex_row(map(_tex, table.header)), "\\midrule"]
        lines += [_tex_row(map(_tex_entry, row)) for row in table.rows]
        lines += ["\\bottomrule", "\\end{tabular}}"]
        if index == 0 and document.notes:
            lines += ["", "\\smallskip", "\\begin{minipage}{\\linewidth}", "\\footnotesize"]
            lines += [f"\\textsuperscript{{{n}}} {_tex(note)}\\\\" for n, note in enumerate(document.notes, start=1)]
            lines.append("\\end{minipage}")
        lines.append("\\end{table}")
    return "\n".join(lines) + "\n"


def to_json(board: Leaderboard) -> str:
    """All that is known of every cell, results as in the records: accuracies in [0, 1]."""
    document = compose(board)
    values = {
        "suite": board.suite.name,
        "title": board.suite.title,
        "protocol": board.suite.protocol,
        "without_learning": [
            {"target": column.target, "shots": column.shots, "how": how, board.suite.measure.name: _rounded(value)}
            for column in board.suite.columns
            for how, value in [without_learning(board.suite, column)]
        ],
        "facts": dict(document.facts),
        "cells": [_cell_values(board, *key) for key in board.cells],
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def to_csv(board: Leaderboard) -> str:
    """One line a cell, accuracies in [0, 1] as in the records; of published numbers the one nearest in protocol."""
    lines, measure = [], board.suite.measure.name
    for key in board.cells:
        values = _cell_values(board, *key)
        nearest = (values.pop("published") or [{}])[0]
        del values["by_rule"]
        values |= {f"published_{name}": nearest.get(name) for name in (measure, "difference", "protocol", "cited")}
        lines.append({name: _csv_value(value) for name, value in values.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def show(board: Leaderboard, console: Console) -> None:
    """Print the leaderboard, its notes and how it was made on a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    document = compose(board)
    console.print(Text(document.title, style="bold"))
    if document.about:
        console.print(Text(document.about))
    main = document.tables[0]
    console.print(Text(f"{main.title}."))
    table = RichTable()
    for name, letter in zip(main.header, main.align, strict=True):
        table.add_column(name, justify="right" if letter == "r" else "left")
    for row in main.rows:
        table.add_row(*(_rich_entry(entry, console.is_terminal) for entry in row))
    console.print(table)
    for number, note in enumerate(document.notes, start=1):
        console.print(Text(f"[{number}] {note}"))
    if not console.is_terminal:
        console.print(Text("* stands for bold."))
    for name, text in document.facts.items():
        console.print(Text.assemble((f"{name}: ", "bold"), text))


def _cell_values(board: Leaderboard, label: str, column: Any) -> dict[str, Any]:
    """One cell as plain JSON values."""
    cell, suite = board.cells[label, column], board.suite
    result, standing = cell.result(), board.standings.get((label, column))
    measure = suite.measure
    by_rule = {rule: cell.result(rule) for rule in suite.evaluation.rules}
    return {
        "suite": suite.name,
        "protocol": suite.protocol,
        "label": label,
        "method": cell.row.entry.method,
        "source": suite.source,
        "target": column.target,
        "ways": suite.ways,
        "shots": column.shots,
        "rule": cell.rule,
        "status": cell.status,
        "reasons": cell.reasons,
        "made_with_other": list(cell.departures),
        "leaking": list(cell.leak.trained if cell.leak else ()),
        "left_out": list(cell.leak.left_out if cell.leak else ()),
        "seeds": [seed for seed, record in cell.seeds.items() if record and cell.rule in record.evaluations],
        "episodes": suite.evaluation.episodes,
        measure.name: _rounded(result[0] if result else None),
        f"interval_over_{board.over.name}": _rounded(result[1] if result else None),
        "interval_over_queries": _rounded(cell.over_queries),
        "sd_over_seeds": _rounded(cell.over_seeds),
        "sd_of_training": _rounded(cell.of_training),
        "rank": standing.rank.first if standing else None,
        "rank_to": standing.rank.last if standing else None,
        "best": standing.best if standing else None,
        "runs": [record.run for record in cell.measured],
        "by_rule": {
            rule: {measure.name: _rounded(pair[0]), f"interval_over_{board.over.name}": _rounded(pair[1])}
            for rule, pair in by_rule.items()
            if pair
        },
        "published": [
            {
                measure.name: round(beside.number.value / measure.scale, 6),
                "interval": _rounded(beside.number.interval, measure.scale),
                "meaning": beside.number.meaning,
                "label": beside.number.label,
                "difference": _rounded(beside.difference, measure.scale),
                "protocol": "not stated" if beside.departures is None else "differs" if beside.departures else "same",
                "departures": list(beside.departures or ()),
                "cited": beside.number.cited,
            }
            for beside in board.beside[label, column]
        ],
    }


def _rounded(value: float | None, per: float = 1) -> float | None:
    return None if value is None else round(value / per, 6)


def _csv_value(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, list) else value


def _marks(entry: Entry, form: str) -> str:
    return form.format(",".join(map(str, entry.notes))) if entry.notes else ""


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in texts) + " |"


def _markdown_entry(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.bold else entry.text
    return text + _marks(entry, " <sup>{}</sup>")


def _rich_entry(entry: Entry, styled: bool) -> Text:
    """Bold shows as * where the output has no styles."""
    from rich.text import Text

    star = "*" if entry.bold and not styled else ""
    return Text(entry.text + star + _marks(entry, " [{}]"), style="bold" if entry.bold else "")


def _tex_row(texts: Any) -> str:
    return " & ".join(texts) + " \\\\"


def _tex_entry(entry: Entry) -> str:
    text = f"\\textbf{{{_tex(entry.text)}}}" if entry.bold else _tex(entry.text)
    return text + _marks(entry, "\\textsuperscript{{{}}}")


_TEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "±": "$\\pm$",
    "→": "$\\to$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
