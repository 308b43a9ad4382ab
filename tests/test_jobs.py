from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from typer.testing import CliRunner

import metazoo.cli
import metazoo.data.dataset
from metazoo.errors import Diverged, Incompatible, OutOfMemory, UserError
from metazoo.leaderboard import jobs
from metazoo.leaderboard.shelf import FAILURES, Identities, gather
from metazoo.leaderboard.suite import read
from metazoo.progress import Message, Reporter
from metazoo.run import Run

PLUGIN = f"""
import multiprocessing, os, signal, sys

import torch

sys.path.insert(0, {str(Path(__file__).parent)!r})
import tiny

if multiprocessing.parent_process() is not None:
    tiny.install()

from metazoo.algorithms.maml import MAML
from metazoo.outer_step import OuterStep


class Crashes(MAML):
    name, title = "crashes", "Crashes"

    def learn(self, episodes, outer=OuterStep()):
        return 1 // 0


class Dies(MAML):
    name, title = "dies", "Dies"

    def learn(self, episodes, outer=OuterStep()):
        os.kill(os.getpid(), signal.SIGKILL)


class Diverges(MAML):
    name, title = "diverges", "Diverges"

    def learn(self, episodes, outer=OuterStep()):
        outcome = super().learn(episodes, outer)
        outcome.losses = outcome.losses * torch.nan
        return outcome
"""


def write_suite(folder: Path, methods: list[str], **training: int) -> Path:
    config = tiny.config(**training)
    values = {
        "name": "tiny_suite",
        "title": "Tiny",
        "protocol": "common",
        "source": "tiny",
        "targets": ["tiny"],
        "ways": config.ways,
        "queries": config.queries,
        "backbone": {"name": "conv4", "filters": 4},
        "training": config.training.model_dump(mode="json"),
        "evaluation": {"episodes": 8},
        "methods": methods,
    }
    path = folder / "tiny_suite.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with a plugin whose methods fail in every way, and the tiny data sets."""
    known = metazoo.data.dataset.published
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "failing.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metazoo.data.dataset, "published", lambda: {**known(), **tiny.SETS})
        patch.chdir(folder)
        yield folder


def leaderboard(*arguments: str) -> Any:
    return CliRunner().invoke(metazoo.cli.app, ["leaderboard", "tiny_suite.yaml", "--plugin", "failing.py", *arguments])


@pytest.fixture(scope="module")
def first(place: Path) -> Any:
    """`metazoo leaderboard` on a suite of which one method works and three fail."""
    write_suite(place, ["maml", "crashes", "dies", "diverges"])
    return leaderboard("--jobs", "2")


def test_a_failing_cell_is_marked_with_its_reason_and_the_others_go_on(first):
    assert first.exit_code == 1, first.output
    table = " ".join(first.stdout.split())
    assert "Crashes: error: ZeroDivisionError: integer division or modulo by zero (failing.py, line" in table
    assert "Dies: out of memory: The process was killed by the system" in table
    assert "Diverges: diverged: " in table
    [maml] = [line for line in first.stdout.splitlines() if "MAML" in line]
    assert "±" in maml and "*" in maml


def test_lines_say_what_starts_and_how_it_ends(first):
    for line in ("MAML 1-shot seed 0: started", "MAML 1-shot seed 0: done: ", "Dies 1-shot seed 0: out of memory: "):
        assert line in first.stderr


def test_the_tables_and_their_records_are_written(first, place):
    folder = place / "leaderboards" / "tiny_suite"
    assert "Diverges: diverged: " in (folder / "leaderboard.md").read_text()
    kept = gather(Path("none"), [folder / "records.jsonl"])
    statuses = {record.config["algorithm"]: record.status for record in kept}
    assert statuses == {"maml": "done", "crashes": "error", "dies": "out of memory", "diverges": "diverged"}


def test_a_second_call_runs_only_what_may_end_otherwise(first, place, monkeypatch):
    asked: list[str] = []

    def run(wanted, plan, workers, reporter):
        asked.extend(job.config.algorithm for job in wanted)
        return {}

    monkeypatch.setattr(jobs, "run", run)
    again = leaderboard()
    assert again.exit_code == 0 and asked == ["crashes", "dies"]
    assert [line for line in again.stdout.splitlines() if "│" in line] == [
        line for line in first.stdout.splitlines() if "│" in line
    ]


def test_a_worker_is_asked_for_the_rules_and_the_command_of_the_suite(first, place):
    [record] = [record for record in gather(place / "runs") if record.status == "done"]
    assert set(record.evaluations) == {"last", "best", "ensemble"} and record.episodes == 8
    assert record.command.split()[0] == "metazoo"


class Interrupting(Reporter):
    """Sends this process what a terminal's Ctrl-C sends, once training is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = False
        self.blocked: list[bool] = []

    def send(self, message: Message) -> None:
        if message.kind == "update" and message.task and not self.sent:
            self.sent = True
            for child in multiprocessing.active_children():
                self.blocked.append(_blocks_interrupts(child.pid))
            os.kill(os.getpid(), signal.SIGINT)


def _blocks_interrupts(pid: int | None) -> bool:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk")]
    return bool(int(line.split()[1], 16) & (1 << (signal.SIGINT - 1)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_interrupt_stops_every_process_after_saving(place):
    suite = read(write_suite(place, ["maml"], epochs=200, iterations_per_epoch=100))
    plan = jobs.Plan(
        runs=place / "interrupted",
        evaluation=suite.evaluation,
        identities=Identities.of(suite),
        plugins=(place / "failing.py",),
    )
    reporter = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        jobs.run(suite.trainings, plan, 1, reporter)
    # A terminal's Ctrl-C reaches whole process groups; only the parent may stop a worker, or it would not save.
    assert reporter.blocked == [True]
    assert multiprocessing.active_children() == []
    [folder] = [path for path in (place / "interrupted").iterdir() if path.is_dir()]
    assert Run.open(folder).state == "interrupted" and "and saved" in Run.open(folder).reason
    assert not (place / "interrupted" / FAILURES).exists()


@pytest.mark.parametrize(
    "error, status",
    [
        (KeyboardInterrupt(), "interrupted"),
        (Diverged("why"), "diverged"),
        (OutOfMemory("why"), "out of memory"),
        (Incompatible("why"), "incompatible"),
        (UserError("why"), "error"),
        (ValueError("why"), "error"),
    ],
)
def test_what_is_raised_decides_the_status(error, status):
    def fail() -> str:
        raise error

    outcome = jobs._outcome(fail)
    assert outcome.status == status
    assert isinstance(error, KeyboardInterrupt) or "why" in outcome.text


def test_one_process_a_core_on_a_cpu_and_one_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    assert [jobs.default_workers(count, on_gpu=False) for count in (1, 3, 20)] == [1, 3, 8]
    assert jobs.default_workers(20, on_gpu=True) == 1


def test_data_that_is_not_prepared_is_refused_before_anything_runs(place, tmp_path, monkeypatch):
    monkeypatch.setenv("METAZOO_DATA", str(tmp_path))
    suite = read(write_suite(place, ["maml"]))
    other = suite.model_copy(update={"targets": ("cifar_fs",)})
    with pytest.raises(UserError, match="metazoo data prepare cifar_fs"):
        jobs.open_domains(other.trainings)
