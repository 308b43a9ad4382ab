"""`metazoo evaluate`: what a finished run scores on the test episodes of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metazoo.cli.plugins import PluginFiles, load_plugins
from metazoo.cli.train import Device, ImagesOn, RecordGraphs, TasksPerPass, typed

if TYPE_CHECKING:
    from metazoo.leaks import Leak

SPREADS = {
    "over_episodes": "Student's t of the mean over episodes",
    "over_queries": "binomial over all query predictions, as CxGrad prints it",
}
"""What the half-widths of an interval mean."""

TITLES = {"last": "last epoch", "best": "best validation", "ensemble": "ensemble of the best"}


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    target: Annotated[str | None, typer.Option(help="The data set to test on; the run's source by default.")] = None,
    episodes: Annotated[int, typer.Option(help="Test episodes; always the same ones.")] = 600,
    episode_seed: Annotated[int, typer.Option(help="Another list of test episodes.")] = 0,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Which checkpoints to test: last, best or ensemble; all three by default."),
    ] = None,
    drop_leaking: Annotated[
        bool,
        typer.Option(
            "--drop-leaking",
            help="Leave out test classes that the run's source trains on; the episodes are then not the usual ones.",
        ),
    ] = False,
    device: Device = "auto",
    tasks_per_pass: TasksPerPass = None,
    images_on: ImagesOn = "auto",
    record_graphs: RecordGraphs = True,
    plugin: PluginFiles = None,
) -> None:
    """Test a finished run on its own or on another data set, and add the record to the run's folder."""
    from rich.console import Console
    from rich.table import Table

    from metazoo import allocator, evaluation
    from metazoo.data.dataset import dataset
    from metazoo.leaks import leak_text
    from metazoo.progress import on_terminal
    from metazoo.run import Run

    load_plugins(plugin)
    opened = Run.open(run)
    rules = evaluation.known_rules(rule or evaluation.RULES)
    allocator.keep_freed_memory()
    try:
        with on_terminal() as reporter:
            record = evaluation.evaluate(
                opened,
                target,
                episodes=episodes,
                episode_seed=episode_seed,
                rules=rules,
                device=device,
                tasks_per_pass=tasks_per_pass,
                command=typed(),
                reporter=reporter,
                images_on=images_on,
                record_graphs=record_graphs,
                drop_leaking=drop_leaking,
            )
    except KeyboardInterrupt:
        typer.echo("metazoo: stopped; nothing was written.", err=True)
        raise typer.Exit(130) from None
    results = {name: record.evaluations[name] for name in rules}
    measure, first = results[rules[0]].measure, results[rules[0]].interval
    spreads = {key: text for key, text in SPREADS.items() if getattr(first, key) is not None}
    table = Table("rule", measure.title, *(f"95 % {key.replace('_', ' ')}" for key in spreads), "epochs")
    table.box, table.padding = None, (0, 2, 0, 0)
    for name, result in results.items():
        widths = [f"± {measure.text(getattr(result.interval, key))}" for key in spreads]
        table.add_row(TITLES[name], measure.text(result.interval.mean), *widths, ", ".join(map(str, result.epochs)))
    config = opened.config
    ways = dataset(record.target).ways_text(config.ways)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{config.algorithm}, {ways}{ways and ' '}{config.shots}-shot, trained on {config.source}, tested on "
        f"{record.target}: {record.episodes} episodes of {record.queries_per_episode} queries each."
    )
    console.print(table)
    if record.leak:
        console.print(f"{leak_text(record.leak, config.source, record.target)} {_advice(record.leak)}".strip())
    meanings = " ".join(f"{key.replace('_', ' ').capitalize()}: {text}." for key, text in spreads.items())
    console.print(f"{meanings}\nThe record is in {opened.records}")


def _advice(leak: Leak) -> str:
    """What a leak means for the numbers above it."""
    if leak.dropped:
        return "So the test episodes are not the usual ones; compare with results that leave out the same classes only."
    return "The results above count them; --drop-leaking leaves them out." if leak.trained else ""
