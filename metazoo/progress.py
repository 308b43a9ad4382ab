"""Progress of long work, and where it shows: as bars on a terminal, in another process, or nowhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = {"loss": "{:.3f}", "accuracy": "{:.1%}", "error": "{:.3f}", "tasks/s": "{:.1f}"}
"""How the known figures are printed; others print with three significant digits."""


class Message(NamedTuple):
    """One thing that happened. It is plain data, so that it can cross from one process to another."""

    kind: Literal["open", "update", "close", "note"]
    task: str
    """Whose progress it is: a run, a cell."""
    stage: str = ""
    """What it is doing: training, validation, evaluation."""
    done: int = 0
    total: int = 0
    figures: Mapping[str, float] = {}
    text: str = ""


class Reporter:
    """Takes messages and shows nothing; what is shown is the business of the subclasses, which override `send`."""

    def __init__(self, task: str = ""):
        self.task = task

    def send(self, message: Message) -> None:
        """Take one message."""

    def stage(self, name: str, total: int, done: int = 0) -> Stage:
        """Begin a stage of `total` units of which `done` are behind; a context manager."""
        self.send(Message("open", self.task, name, done, total))
        return Stage(self, name, total)

    def note(self, text: str) -> None:
        """A sentence worth reading now."""
        self.send(Message("note", self.task, text=text))


class Stage:
    """A stage under way: `update` moves it, leaving the `with` block ends it."""

    def __init__(self, reporter: Reporter, name: str, total: int):
        self.reporter, self.name, self.total = reporter, name, total

    def update(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """`done` units are behind, and these are the latest figures."""
        self.reporter.send(Message("update", self.reporter.task, self.name, done, self.total, figures or {}))

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.reporter.send(Message("close", self.reporter.task, self.name))


class QueueReporter(Reporter):
    """Puts the messages on a queue, for a worker process whose parent shows them (`listening`)."""

    def __init__(self, queue: Any, task: str):
        super().__init__(task)
        self.queue = queue

    def send(self, message: Message) -> None:
        self.queue.put(message)


class Bars(Reporter):
    """Rich progress bars, one line for each stage under way, of any number of tasks; a context manager."""

    def __init__(self, console: Console | None = None, task: str = ""):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(task)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,
            speed_estimate_period=120.0,
        )
        self._lines: dict[tuple[str, str], Any] = {}

    def send(self, message: Message) -> None:
        key = (message.task, message.stage)
        if message.kind == "note":
            self._progress.console.print(_noted(message), markup=False, highlight=False, soft_wrap=True)
        elif message.kind == "open":
            self._end(key)
            label = " ".join(part for part in key if part)
            self._lines[key] = self._progress.add_task(label, total=message.total, completed=message.done, figures="")
        elif message.kind == "close":
            self._end(key)
        elif key in self._lines:
            figures: dict[str, Any] = {"figures": show(message.figures)} if message.figures else {}
            self._progress.update(self._lines[key], completed=message.done, **figures)

    def _end(self, key: tuple[str, str]) -> None:
        if key in self._lines:
            self._progress.remove_task(self._lines.pop(key))

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Notes(Reporter):
    """Prints the notes and nothing else, on stderr: for output that goes to a file."""

    def send(self, message: Message) -> None:
        if message.kind == "note":
            print(_noted(message), file=sys.stderr, flush=True)


@contextmanager
def on_terminal(task: str = "") -> Iterator[Reporter]:
    """Bars where stderr is a terminal, only notes where it is not."""
    if not sys.stderr.isatty():
        yield Notes(task)
        return
    from rich.console import Console

    with Bars(Console(stderr=True), task) as bars:
        yield bars


@contextmanager
def listening(queue: Any, reporter: Reporter) -> Iterator[None]:
    """Pass on to `reporter` what worker processes put on `queue`, until the block ends."""

    def listen() -> None:
        for message in iter(queue.get, None):
            reporter.send(message)

    thread = threading.Thread(target=listen, name="metazoo progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join()


def _noted(message: Message) -> str:
    return f"{message.task}: {message.text}" if message.task else message.text


def show(figures: Mapping[str, float]) -> str:
    """The figures in one line, `loss 1.234  accuracy 45.6%`."""
    return "  ".join(f"{name} {FORMATS.get(name, '{:.3g}').format(value)}" for name, value in figures.items())
