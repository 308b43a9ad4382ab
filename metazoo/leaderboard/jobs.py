"""Running the missing trainings of a suite, several at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, cast

from metazoo import allocator, registry
from metazoo.config import describe
from metazoo.domains import open_domain
from metazoo.errors import Diverged, Incompatible, OutOfMemory, UserError
from metazoo.evaluation import evaluate
from metazoo.leaderboard.shelf import FAILURES, Identities, written_in
from metazoo.leaderboard.suite import EvaluationPlan, Training
from metazoo.progress import Message, Notes, QueueReporter, Reporter, listening
from metazoo.records import Record, Status, append
from metazoo.run import now
from metazoo.training import train

SAVING_SECONDS = 120.0
"""How long interrupted trainings have to write their checkpoints before they are killed."""


@dataclass(frozen=True)
class Plan:
    """What all jobs of one call share."""

    runs: Path
    evaluation: EvaluationPlan
    identities: Identities
    device: str = "auto"
    tasks_per_pass: int | None = None
    threads: int | None = None
    """CPU threads of each process; PyTorch's own choice by default."""
    command: str = ""
    plugins: tuple[Path, ...] = ()
    data_home: Path | None = None
    images_on: str = "auto"
    record_graphs: bool = True
    recompute: bool = False
    record_gradients: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    status: Status
    text: str
    """The results, or the reason why there are none."""


def default_workers(jobs: int, on_gpu: bool) -> int:
    """One process a core on a CPU, no more than there are jobs; on a GPU one."""
    return max(1, 1 if on_gpu else min(jobs, cores()))


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_domains(jobs: Sequence[Training], data_home: Path | None = None) -> None:
    """Open every data set the jobs need, so that one that is not prepared is a UserError before anything runs.

    Embedded ones are built here, once, and not by several processes.
    """
    needed = {(name, job.config.size) for job in jobs for name in (job.config.source, *job.targets)}
    for name, size in sorted(needed, key=str):
        open_domain(name, size, home=data_home)


def run(jobs: Sequence[Training], plan: Plan, workers: int, reporter: Reporter) -> dict[str, Outcome]:
    """Train and evaluate what is missing, `workers` at a time; returns how each job ended, by its title.

    A job that fails is written down with its reason and the others go on. On Ctrl-C all are stopped after saving, and
    the KeyboardInterrupt goes on to the caller; the same call later takes up from there.
    """
    waiting, running = deque(jobs), dict[int, _Worker]()
    outcomes: dict[str, Outcome] = {}
    with ExitStack() as stack:
        stage = stack.enter_context(reporter.stage("trainings", len(jobs)))
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    worker = _Worker(waiting.popleft(), plan, stack, reporter)
                    if isinstance(reporter, Notes):
                        reporter.send(Message("note", worker.job.title, text="started"))
                    running[worker.process.sentinel] = worker
                for sentinel in connection.wait(list(running)):
                    worker = running.pop(sentinel)  # type: ignore[arg-type]
                    outcome = worker.outcome()
                    outcomes[worker.job.title] = outcome
                    if outcome.status not in ("done", "interrupted"):
                        _write_down(worker.job, outcome, plan)
                    reporter.send(Message("note", worker.job.title, text=f"{outcome.status}: {outcome.text}"))
                    stage.update(len(outcomes))
        finally:
            _stop(list(running.values()))
    return outcomes


class _Worker:
    """One job in its process. What it reports is passed on until it ends; its outcome comes by a pipe of its own."""

    def __init__(self, job: Training, plan: Plan, stack: ExitStack, reporter: Reporter):
        self.job = job
        context = multiprocessing.get_context("spawn")
        messages, sender = context.Pipe(duplex=False)
        self._result, result = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(job, plan, sender, result), name=job.title, daemon=True)
        with _interrupts_held():
            self.process.start()
        # Only the process holds these ends now, so that its death, of whatever cause, is the end of what it sends.
        sender.close()
        result.close()
        stack.enter_context(listening(_Inbox(messages), reporter))

    def outcome(self) -> Outcome:
        """How the process ended; to be asked once, when it has."""
        self.process.join()
        try:
            return cast(Outcome, self._result.recv())
        except EOFError:
            code = self.process.exitcode or 0
            if code == -signal.SIGKILL:
                text = "The process was killed by the system, most likely because memory ran out; lower --jobs."
                return Outcome("out of memory", text)
            return Outcome("error", f"The process ended without a word (exit status {code}).")


class _Inbox:
    """The receiving end of a process's messages, as `listening` reads it; it ends when the process does."""

    def __init__(self, receiver: connection.Connection):
        self._receiver = receiver

    def get(self) -> Any:
        try:
            return self._receiver.recv()
        except (EOFError, OSError):
            return None

    def put(self, _: None) -> None:
        """Nothing to do: the process closes its end itself."""


class _Outbox:
    """The sending end, as a QueueReporter writes to it; a parent that is gone is no reason to fail."""

    def __init__(self, sender: connection.Connection):
        self._sender = sender

    def put(self, message: Any) -> None:
        with suppress(OSError):
            self._sender.send(message)


def _work(job: Training, plan: Plan, messages: connection.Connection, result: connection.Connection) -> None:
    """The life of a worker process: one training, then its evaluations."""
    allocator.keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reporter = QueueReporter(_Outbox(messages), job.title)
    _Outbox(result).put(_outcome(lambda: _train_and_evaluate(job, plan, reporter)))


def _outcome(work: Callable[[], str]) -> Outcome:
    """How the work ended: with what it returns, or with the reason why it did not."""
    try:
        return Outcome("done", work())
    except KeyboardInterrupt:
        return Outcome("interrupted", "stopped; the same command goes on from here")
    except Diverged as error:
        return Outcome("diverged", str(error))
    except OutOfMemory as error:
        return Outcome("out of memory", str(error))
    except Incompatible as error:
        return Outcome("incompatible", str(error))
    except UserError as error:
        return Outcome("error", str(error))
    except Exception as error:  # whatever a plugin raises, the other cells go on
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome("error", f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})")


def _train_and_evaluate(job: Training, plan: Plan, reporter: Reporter) -> str:
    import torch

    if plan.threads is not None:
        torch.set_num_threads(min(plan.threads, torch.get_num_threads()))
    for plugin in plan.plugins:
        registry.load_plugin(plugin)
    common: dict[str, Any] = {
        "device": plan.device,
        "tasks_per_pass": plan.tasks_per_pass,
        "command": plan.command,
        "reporter": reporter,
        "data_home": plan.data_home,
        "images_on": plan.images_on,
        "record_graphs": plan.record_graphs,
    }
    recording, recompute = plan.record_gradients, plan.recompute
    done = train(job.config, home=plan.runs, record_gradients=recording, recompute=recompute, **common)
    results = []
    for target in job.targets:
        asked = plan.evaluation
        record = evaluate(
            done,
            target,
            episodes=asked.episodes,
            episode_seed=asked.seed,
            rules=asked.rules,
            drop_leaking=asked.drop_leaking,
            **common,
        )
        result = record.evaluations[asked.printed]
        text = result.measure.text(result.interval.mean, result.interval.over_episodes)
        results.append(f"{text} on {target}")
    return ", ".join(results)


def _write_down(job: Training, outcome: Outcome, plan: Plan) -> None:
    """Leave a record without a result for every target of a job that failed, beside the runs."""
    config = dict(describe(job.config))
    size = job.config.size
    for target in job.targets:
        there = {"source": plan.identities.data.get((job.config.source, size))}
        there["target"] = plan.identities.data.get((target, size))
        record = Record(
            run="",
            status=outcome.status,
            reason=outcome.text,
            config=config,
            data={which: identity for which, identity in there.items() if identity},
            code=plan.identities.code[written_in(config)],
            target=target,
            episodes=plan.evaluation.episodes,
            episode_seed=plan.evaluation.seed,
            command=plan.command,
            created=now(),
        )
        append(plan.runs / FAILURES, record)


def _stop(workers: Sequence[_Worker]) -> None:
    """Ask the processes to save and end; kill those that have not after a while, or at once on a second Ctrl-C."""
    for worker in workers:
        worker.process.terminate()
    try:
        for worker in workers:
            worker.process.join(SAVING_SECONDS)
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start a process that a terminal's Ctrl-C does not reach: its parent alone decides when it ends, and how."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It is started with the first process, and would let interrupts through to that one.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Stop, after saving, when the parent has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
