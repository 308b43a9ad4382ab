"""A sitting: finished runs before the same test episodes, looked at while they adapt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from metazoo import hardware
from metazoo.algorithm import Algorithm
from metazoo.analysis.subjects import Subject, check_same
from metazoo.data.dataset import dataset
from metazoo.episodes import Episodes
from metazoo.errors import UserError
from metazoo.evaluation import known_rules, restored, target_domain
from metazoo.precision import arithmetic
from metazoo.predicting import GATHER_TASKS, STACKED_TASKS
from metazoo.progress import Reporter
from metazoo.records import Rule

Seen = TypeVar("Seen")


class Sitting:
    """What all figures of adaptation share: the runs, the data set they are tested on, and the machine.

    Every run adapts to the same test episodes, those that `metazoo evaluate` counts from 0. Raises UserError for runs
    that cannot have the same ones, or that cannot be tested on `target` (by default the data set they share).
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        target: str | None = None,
        *,
        rule: str = "best",
        device: str = "auto",
        tasks_per_pass: int | None = None,
        data_home: Path | None = None,
        reporter: Reporter | None = None,
    ):
        self.subjects, self.reporter = list(subjects), reporter or Reporter()
        sources = sorted({subject.run.config.source for subject in subjects})
        if target is None and len(sources) > 1:
            raise UserError(
                f"The runs were trained on {' and '.join(sources)}; say with --target what to test them on."
            )
        self.target = target or sources[0]
        self.title, self.measure = dataset(self.target).title, dataset(self.target).measure
        for fact in ("episode", "size"):
            check_same(subjects, fact, "the runs of one figure are tested on the same episodes")
        (self.rule,) = known_rules([rule])
        self.device = hardware.choose(device)
        self.tasks_per_pass, self.data_home = tasks_per_pass, data_home

    @property
    def tested(self) -> str:
        """Which weights are tested on what, in words."""
        weights: dict[Rule, str] = {"last": "last epoch", "best": "best epoch in validation"}
        return f"tested on {self.title} ({weights.get(self.rule, self.rule)})"

    def model(self, subject: Subject) -> Algorithm:
        """The run's method with the weights that are tested."""
        return restored(subject.run, self.rule, self.device).eval()

    def watch(
        self,
        subject: Subject,
        model: Algorithm,
        count: int,
        look: Callable[[Episodes], Seen],
        doing: str,
        first: int = 0,
    ) -> list[Seen]:
        """What `look` sees of the test episodes `first` to `first + count - 1`, as many at a time as one pass stacks.

        Raises OutOfMemory where the device's memory does not suffice.
        """
        run = subject.run
        domain = target_domain(run, self.target, self.data_home)
        stream = domain.episodes(run.config, "test", 0, self.device, run.provenance.inputs)
        size = hardware.tasks_at_once(self.tasks_per_pass, self.device, STACKED_TASKS, model)
        gathered = max(size, GATHER_TASKS)
        remedy = "lower tasks_per_pass, which changes no result"
        seen: list[Seen] = []
        done = 0
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            arithmetic(run.config.training.precision, self.device),
            hardware.memory_sentences(self.device, f"{doing} {run.name}", remedy),
            self.reporter.stage(f"{doing} {subject.label}", count) as stage,
        ):
            torch.manual_seed(0)
            for start in range(0, count, gathered):
                batch = stream.batch(first + start, min(gathered, count - start))
                for part in batch.chunks(size):
                    seen.append(look(part))
                    done += len(part)
                    stage.update(done)
        return seen
