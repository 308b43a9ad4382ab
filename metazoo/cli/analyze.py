"""`metazoo analyze`: figures from finished runs, each with the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from metazoo.cli.plugins import PluginFiles, load_plugins
from metazoo.cli.train import Device, TasksPerPass

if TYPE_CHECKING:
    from metazoo.analysis.sitting import Sitting
    from metazoo.analysis.subjects import Subject
    from metazoo.progress import Reporter

app = typer.Typer(no_args_is_help=True)

Runs = Annotated[list[Path], typer.Argument(help="The folders of finished runs, in the order they are drawn in.")]
Labels = Annotated[
    str | None, typer.Option(metavar="A,B", help="What to call the runs [default: their methods].", show_default=False)
]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]
Target = Annotated[str | None, typer.Option(help="The data set to test on; the runs' source by default.")]
Selection = Annotated[Literal["best", "last"], typer.Option(help="The weights: best in validation, or the last.")]

FIGURES = Path("figures")


@app.command()
def gradients(
    runs: Runs,
    of: Annotated[
        Literal["inner", "outer"],
        typer.Option(help="The support loss's gradient in the inner loop, or the meta-gradient."),
    ] = "inner",
    labels: Labels = None,
    out: Out = FIGURES,
    plugin: PluginFiles = None,
) -> None:
    """Gradient norm per layer during meta-training, of runs trained with --record-gradients."""

    def make(subjects: Sequence[Subject], reporter: Reporter) -> list[Path]:
        from metazoo.analysis import gradients

        return gradients.figure(subjects, out, of)

    _make(make, runs, labels, plugin)


@app.command()
def cka(
    runs: Runs,
    episodes: Annotated[int, typer.Option(help="Test episodes.")] = 100,
    target: Target = None,
    rule: Selection = "best",
    labels: Labels = None,
    out: Out = FIGURES,
    device: Device = "auto",
    tasks_per_pass: TasksPerPass = None,
    plugin: PluginFiles = None,
) -> None:
    """Similarity (linear CKA) of each layer's features before and after adaptation, on the same images."""

    def make(subjects: Sequence[Subject], reporter: Reporter) -> list[Path]:
        from metazoo.analysis import cka

        return cka.figure(_sitting(subjects, target, rule, device, tasks_per_pass, reporter), out, episodes)

    _make(make, runs, labels, plugin)


@app.command()
def embeddings(
    runs: Runs,
    target: Annotated[
        list[str] | None, typer.Option(help="A data set to test on, a row of panels each; the runs' source by default.")
    ] = None,
    episode: Annotated[int, typer.Option(min=0, help="Which test episode.")] = 0,
    perplexity: Annotated[float, typer.Option(help="t-SNE's; about how many neighbours a point has.")] = 15.0,
    rule: Selection = "best",
    labels: Labels = None,
    out: Out = FIGURES,
    device: Device = "auto",
    plugin: PluginFiles = None,
) -> None:
    """The last block's features of one episode before and after adaptation, in the plane by t-SNE."""

    def make(subjects: Sequence[Subject], reporter: Reporter) -> list[Path]:
        from metazoo.analysis import embeddings

        chosen: Sequence[str | None] = target or [None]
        sittings = [_sitting(subjects, name, rule, device, None, reporter) for name in chosen]
        return embeddings.figure(sittings, out, episode, perplexity)

    _make(make, runs, labels, plugin)


@app.command()
def trajectory(
    runs: Runs,
    episodes: Annotated[int, typer.Option(help="Test episodes.")] = 50,
    steps: Annotated[int, typer.Option(help="Inner steps to follow, also beyond those trained.")] = 10,
    target: Target = None,
    rule: Selection = "best",
    labels: Labels = None,
    out: Out = FIGURES,
    device: Device = "auto",
    tasks_per_pass: TasksPerPass = None,
    plugin: PluginFiles = None,
) -> None:
    """Accuracy after each inner step, the norms of each layer's weights, and of what is adapted beside them."""

    def make(subjects: Sequence[Subject], reporter: Reporter) -> list[Path]:
        from metazoo.analysis import trajectory

        sitting = _sitting(subjects, target, rule, device, tasks_per_pass, reporter)
        return trajectory.figures(sitting, out, episodes, steps)

    _make(make, runs, labels, plugin)


def _make(
    make: Callable[[Sequence[Subject], Reporter], list[Path]],
    runs: Sequence[Path],
    labels: str | None,
    plugin: list[Path] | None,
) -> None:
    """Open the runs, make a figure of them, and say what was written."""
    from metazoo.analysis.subjects import subjects
    from metazoo.progress import on_terminal

    load_plugins(plugin)
    opened = subjects(runs, [name.strip() for name in labels.split(",")] if labels else None)
    try:
        with on_terminal() as reporter:
            written = make(opened, reporter)
    except KeyboardInterrupt:
        typer.echo("metazoo: stopped; no figure was written.", err=True)
        raise typer.Exit(130) from None
    typer.echo("Written: " + ", ".join(map(str, written)))


def _sitting(
    subjects: Sequence[Subject],
    target: str | None,
    rule: str,
    device: str,
    tasks_per_pass: int | None,
    reporter: Reporter,
) -> Sitting:
    from metazoo.analysis.sitting import Sitting

    return Sitting(subjects, target, rule=rule, device=device, tasks_per_pass=tasks_per_pass, reporter=reporter)
