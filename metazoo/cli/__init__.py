"""The command line: `metazoo --help`. Commands import what is heavy when they run, so that help answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from metazoo.cli import analyze, bench, compare, data, evaluate, leaderboard, plugins, train
from metazoo.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from metazoo import __version__

        print(f"metazoo {__version__}")
        raise typer.Exit


@app.callback()
def metazoo(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Compare few-shot meta-learning methods: the same episodes, the same backbone, the same budget."""


app.command("list")(plugins.list_methods)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("compare")(compare.compare)
app.command("bench")(bench.bench)
app.command("new-algorithm")(plugins.new_algorithm)
app.command("check")(plugins.check)
app.add_typer(analyze.app, name="analyze", help="Figures from finished runs, each with the numbers behind it.")
app.add_typer(data.app, name="data", help="Prepare, list, verify and look at data sets.")


def main() -> None:
    """Run a command; a problem its user can mend is one sentence on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as in `metazoo list | head`
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"The system refused: {error.strerror or error}{where}. Mend that and run the same command again.")


def _fail(sentence: str) -> None:
    print(f"metazoo: {sentence}", file=sys.stderr)
    sys.exit(2)
