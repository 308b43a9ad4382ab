"""`metazoo compare`: what paired tests say of methods tested on the same episodes, and how many episodes would."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from metazoo.cli.plugins import PluginFiles, load_plugins


def compare(
    records: Annotated[
        list[Path], typer.Argument(help="Runs' folders, or records files (*.jsonl).", show_default=False)
    ],
    rule: Annotated[
        Literal["last", "best", "ensemble"], typer.Option(help="Which checkpoints' results to compare.")
    ] = "best",
    interval: Annotated[
        Literal["episodes", "classes", "trainings"],
        typer.Option(help="What intervals and tests speak of; see `metazoo leaderboard`."),
    ] = "episodes",
    methods: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these, by title or method.", show_default=False)
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Compare methods pair by pair on the test episodes they share, and say how many would tell two apart."""
    from rich.console import Console
    from rich.table import Table

    from metazoo.leaderboard.comparison import fields, gathered
    from metazoo.statistics import ALPHA, POWER

    load_plugins(plugin)
    names = [name.strip() for name in (methods or "").split(",") if name.strip()]
    console = Console(highlight=False, soft_wrap=True)
    for field in fields(gathered(records), rule, names, interval):
        measure, over = field.measure, field.population
        scale = measure.scale
        pairs = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("first", "second", "difference", "p", "told apart"):
            text = name in ("first", "second", "told apart")
            pairs.add_column(name, justify="left" if text else "right", no_wrap=True)
        if interval == "episodes":
            pairs.add_column("episodes to tell", justify="right")
            pairs.add_column(f"told by {field.episodes}", justify="right")
        for pair in field.pairs:
            cells = [
                pair.first,
                pair.second,
                f"{scale * pair.difference:+.{measure.digits}f} ± {scale * pair.half_width:.{measure.digits}f}",
                f"{pair.p_value:.3f}" if pair.p_value >= 0.0005 else "< 0.001",
                "yes" if pair.p_value <= ALPHA else "no",
            ]
            if interval == "episodes":
                least = f"{scale * pair.detectable:.{measure.digits}f}"
                cells += ["-" if pair.needed is None else f"{pair.needed:,}", least]
            pairs.add_row(*cells)
        console.print(f"{field.title}; {measure.heading}:")
        console.print(pairs)
        told = f"±: half-width of the {over.title} of the paired difference, {over.meaning}."
        console.print(f"{told} p: paired t-test, Holm's correction over the pairs of this table.")
        if interval == "episodes":
            console.print(
                "Episodes to tell: how many shared ones tell a true difference of this size with a chance of "
                f"{POWER:.0%} in a test of this pair alone at {ALPHA:.0%}; more of them speak of the same classes and "
                "trainings. "
                f"Told by {field.episodes}: the smallest true difference that the episodes here tell so."
            )
