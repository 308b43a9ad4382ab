"""`metazoo leaderboard`: run what a suite lacks, and print its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from metazoo.cli.plugins import PluginFiles, load_plugins
from metazoo.cli.train import Device, ImagesOn, Recompute, RecordGradients, RecordGraphs, TasksPerPass, typed
from metazoo.errors import UserError

if TYPE_CHECKING:
    from metazoo.leaderboard.jobs import Plan
    from metazoo.leaderboard.suite import Suite, Training


def leaderboard(
    suite: Annotated[str, typer.Argument(help="A suite's name or a YAML file of your own.", show_default=False)],
    show: Annotated[bool, typer.Option("--show", help="Print what there is and run nothing.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say how long what is missing will take here, from short trials.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="The folder of runs.")] = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write the tables [default: leaderboards/SUITE; with --show: nowhere]."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            metavar="DIR",
            help="Write it as one page for a browser, too: DIR/index.html.",
            show_default=False,
        ),
    ] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Records to use besides the runs' [default with --show: those that come with the suite]."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time [default: one a core on a CPU, 1 on a GPU].")
    ] = None,
    device: Device = "auto",
    tasks_per_pass: TasksPerPass = None,
    images_on: ImagesOn = "auto",
    record_graphs: RecordGraphs = True,
    recompute: Recompute = False,
    rule: Annotated[
        Literal["last", "best", "ensemble"] | None,
        typer.Option(help="Selection rule to print instead of the suite's."),
    ] = None,
    interval: Annotated[
        Literal["episodes", "classes", "trainings"],
        typer.Option(
            help="What printed intervals and ranks speak of: other episodes of the same classes, other classes, or "
            "trainings with other seeds."
        ),
    ] = "episodes",
    methods: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these rows, by label or method.", show_default=False)
    ] = None,
    add: Annotated[
        str | None, typer.Option(metavar="A,B", help="These methods, too, as they are by default.", show_default=False)
    ] = None,
    record_gradients: RecordGradients = False,
    plugin: PluginFiles = None,
) -> None:
    """Train and test what is missing of a suite, then print its table and write it as Markdown, LaTeX, CSV and JSON.

    A cell that fails is marked with its reason and the others go on. The same command resumes after Ctrl-C. Exit
    status 1 means that a cell failed in a way that another attempt may mend.
    """
    from rich.console import Console

    from metazoo.leaderboard import page, typesetting
    from metazoo.leaderboard.shelf import Identities, Shelf, gather
    from metazoo.leaderboard.standings import build
    from metazoo.leaderboard.suite import load

    load_plugins(plugin)
    chosen = load(suite)
    if methods is not None:
        chosen = chosen.restricted(chosen.named_in(methods))
    if add is not None:
        chosen = chosen.extended([name.strip() for name in add.split(",") if name.strip()])
    if rule is not None and rule not in chosen.evaluation.rules:
        raise UserError(f"The suite {chosen.name} does not evaluate '{rule}': {', '.join(chosen.evaluation.rules)}.")
    files = list(records or ())
    if show and records is None:
        files = _committed(suite, chosen)
    options = {
        "device": device,
        "tasks_per_pass": tasks_per_pass,
        "plugins": tuple(plugin or ()),
        "record_gradients": record_gradients,
        "images_on": images_on,
        "record_graphs": record_graphs,
        "recompute": recompute,
    }
    if estimate:
        _print_estimate(chosen, *_missing(chosen, runs, files, jobs, options))
        return
    folder = out or (None if show else Path("leaderboards") / chosen.name)
    for wanted in filter(None, (folder, html)):
        wanted.mkdir(parents=True, exist_ok=True)  # now, not after hours of training
    failed = [] if show else _run(*_missing(chosen, runs, files, jobs, options))
    board = build(chosen, Shelf(gather(runs, files), Identities.of(chosen)), rule, over=interval)
    typesetting.show(board, Console())
    if folder is not None:
        written = typesetting.save(board, folder)
        print(f"Written: {', '.join(map(str, written))}")
    if html is not None:
        print(f"Written: {page.save(board, html, runs)}")
    if failed:
        raise typer.Exit(1)


def _missing(
    suite: Suite, runs: Path, files: Sequence[Path], workers: int | None, options: Mapping[str, Any]
) -> tuple[list[Training], Plan, int]:
    """The trainings that lack a result, what they share, and how many run at a time."""
    from metazoo import hardware
    from metazoo.leaderboard import jobs as running
    from metazoo.leaderboard.shelf import Identities, Shelf, gather, missing

    place = hardware.choose(options["device"])
    running.open_domains(suite.trainings)
    identities = Identities.of(suite)
    wanted = missing(suite, Shelf(gather(runs, files), identities))
    workers = workers or running.default_workers(len(wanted), on_gpu=place.type == "cuda")
    threads = max(1, running.cores() // workers)
    plan = running.Plan(runs, suite.evaluation, identities, threads=threads, command=typed(), **options)
    return wanted, plan, workers


def _run(wanted: Sequence[Training], plan: Plan, workers: int) -> list[str]:
    """Run the missing cells; returns the titles of the trainings that failed and may succeed another time."""
    from metazoo.leaderboard import jobs as running
    from metazoo.leaderboard.shelf import SETTLED
    from metazoo.progress import on_terminal

    if not wanted:
        return []
    plan.runs.mkdir(parents=True, exist_ok=True)
    try:
        with on_terminal() as reporter:
            outcomes = running.run(wanted, plan, workers, reporter)
    except KeyboardInterrupt:
        typer.echo("metazoo: stopped; what was trained is saved, and the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    return [title for title, outcome in outcomes.items() if outcome.status not in SETTLED]


def _print_estimate(suite: Suite, wanted: Sequence[Training], plan: Plan, workers: int) -> None:
    """Try every missing training for some steps, and print how long all of it will take."""
    import time

    import torch
    from rich.console import Console
    from rich.table import Table

    from metazoo import allocator, hardware
    from metazoo.leaderboard.budget import EPISODES, budget_text, estimates, together
    from metazoo.leaderboard.tables import duration
    from metazoo.progress import on_terminal

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{suite.title}: {budget_text(suite)}.")
    if not wanted:
        console.print("All of it is here already.")
        return
    torch.set_num_threads(plan.threads or torch.get_num_threads())
    allocator.keep_freed_memory()  # as the trainings' processes do
    began = time.perf_counter()
    found = []
    try:
        with on_terminal() as reporter, reporter.stage("trials", len(wanted)) as stage:
            for each in estimates(wanted, plan):
                found.append(each)
                stage.update(len(found))
    except KeyboardInterrupt:
        typer.echo("metazoo: stopped; nothing was written.", err=True)
        raise typer.Exit(130) from None
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("missing", "training", "validation", "test", "together"):
        table.add_column(name, no_wrap=name == "missing", justify="left" if name == "missing" else "right")
    for each in found:
        parts = (each.learning, each.validation, each.test, each.seconds)
        table.add_row(each.training.title, *([each.reason] if each.reason else map(duration, parts)))
    console.print(table)
    at_a_time = "one after another" if workers == 1 else f"{workers} at a time"
    console.print(f"About {duration(together(found, workers))} for all of it, {at_a_time} (--jobs).")
    spent, place = duration(time.perf_counter() - began), hardware.describe(hardware.choose(plan.device))
    console.print(
        f"Measured in {spent} on {place}, as busy as it was: a few meta-steps and {EPISODES} validation episodes of "
        f"each, with {plan.threads} CPU {'thread' if plan.threads == 1 else 'threads'}, after a first epoch as short. "
        "Assumed: every step costs what those did; a test episode costs what a validation episode does, for each "
        "network that a selection rule takes; trainings side by side do not slow each other down."
    )


def _committed(name: str, suite: Suite) -> list[Path]:
    """The records that come with a suite of metazoo's own; a file of the user's has none."""
    from metazoo.leaderboard.suite import suites

    path = suites().get(name)
    committed = path.parents[1] / "results" / f"{suite.name}.jsonl" if path else None
    return [committed] if committed and committed.is_file() else []
