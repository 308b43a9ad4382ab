"""The look of every figure, and how it is written: vector PDF, PNG, and the numbers behind it as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from metazoo.files import replacing, write_text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette (Color Universal Design, 2008) without its yellow, which is lost on white."""

MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
"""Colour, marker and dashes go round in cycles of 7, 8 and 5, so that 280 series differ, in grey, too."""

GREY = "#555555"
CAPTION_SIZE = 6.5

_RULES: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "metazoo",
}

_NO_TRACE = {"pdf": {"CreationDate": None, "Producer": None, "Creator": "metazoo"}, "png": {"Software": None}}
"""Metadata: nothing that changes from one day to the next, so that equal numbers give equal files."""


def look(number: int) -> dict[str, Any]:
    """What distinguishes series `number` (from 0), as arguments of `Axes.plot`."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style while the block runs."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RULES)
        yield


def sheet(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of `rows` by `columns` panels, each `width` by `height` inches."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared).tolist()


def key(figure: Figure, axes: Axes) -> None:
    """One legend for the whole figure, above its panels, of what the panel `axes` shows."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), int(figure.get_figwidth() / 0.95)))
    figure.legend(handles, names, loc="outside upper center", ncols=columns, handlelength=3, columnspacing=1.2)


def log_scale(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers at 1, 2 and 5 in every decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, caption: str, rows: Sequence[Mapping[str, Any]], folder: Path, name: str) -> list[Path]:
    """Write `name`.pdf, .png and .csv into `folder`, with the caption line at the figure's foot; their paths."""
    lines = textwrap.wrap(caption, max(40, int(figure.get_figwidth() * 19)))
    foot = (len(lines) * CAPTION_SIZE * 1.3 + 6) / 72
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + foot)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, foot / (height + foot), 1, height / (height + foot)))
    figure.text(0.01, 0.01, "\n".join(lines), fontsize=CAPTION_SIZE, color=GREY, va="bottom", linespacing=1.2)
    written = []
    for kind in ("pdf", "png"):
        with replacing(folder / f"{name}.{kind}") as file:
            figure.savefig(file, format=kind, dpi=200, metadata=_NO_TRACE[kind])
        written.append(folder / f"{name}.{kind}")
    write_text(folder / f"{name}.csv", table(rows))
    return [*written, folder / f"{name}.csv"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one shape as CSV; numbers with 6 digits, None as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue()
