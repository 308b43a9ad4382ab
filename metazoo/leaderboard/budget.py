"""What a suite asks for, and how long that takes here: every training tried for a few steps before the first begins."""

from __future__ import annotations

import heapq
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metazoo.config import RunConfig, TrainingSettings
from metazoo.errors import Diverged, Incompatible, OutOfMemory, UserError
from metazoo.leaderboard.jobs import Plan
from metazoo.leaderboard.suite import EvaluationPlan, Suite, Training
from metazoo.progress import Reporter
from metazoo.training import train

FEWEST_STEPS = 2
TRIAL_SECONDS = 1.0
"""Meta-steps are timed until they have taken about so long."""
EPISODES = 16
"""Validation episodes that are timed."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one training alone on this machine, or why there are none."""

    training: Training
    learning: float = 0.0
    validation: float = 0.0
    test: float = 0.0
    reason: str = ""

    @property
    def seconds(self) -> float:
        return self.learning + self.validation + self.test


@dataclass(frozen=True)
class Pace:
    """Seconds of one meta-step, and of one validation episode."""

    step: float
    episode: float


def budget_text(suite: Suite) -> str:
    """All that a suite asks for, in one sentence's worth of numbers."""
    settings = [training.config.training for training in suite.trainings]
    tasks = sum(each.epochs * each.iterations_per_epoch * each.meta_batch for each in settings)
    validated = sum(each.epochs * each.validation_episodes for each in settings)
    tests = sum(len(training.targets) for training in suite.trainings)
    networks = max(_networks(each, suite.evaluation) for each in settings)
    return (
        f"{len(settings)} {'training' if len(settings) == 1 else 'trainings'}, {tasks:,} training tasks and "
        f"{validated:,} validation episodes in all; {tests} {'test' if tests == 1 else 'tests'} of "
        f"{suite.evaluation.episodes} episodes, by up to {networks} {'network' if networks == 1 else 'networks'} each"
    )


def estimates(wanted: Sequence[Training], plan: Plan) -> Iterator[Estimate]:
    """How long each training takes, with its tests; trainings that differ in their seed alone are tried once."""
    known: dict[str, Pace | str] = {}
    for training in wanted:
        key = training.config.model_copy(update={"seed": 0}).model_dump_json()
        if key not in known:
            try:
                known[key] = pace(training.config, plan)
            except (Incompatible, Diverged, OutOfMemory, UserError) as error:
                known[key] = str(error)
        found = known[key]
        yield (
            Estimate(training, reason=found) if isinstance(found, str) else _estimate(training, found, plan.evaluation)
        )


def pace(config: RunConfig, plan: Plan) -> Pace:
    """Train two short epochs and time the second: what happens once, and first, is not in it.

    Methods whose steps cost more at the beginning of a training or at its end are timed in its second half. Raises what
    `train` does.
    """
    steps = FEWEST_STEPS
    while True:
        found = _timed(config, steps, plan)
        if found.step * steps >= TRIAL_SECONDS / 2:
            return found
        steps = max(2 * steps, math.ceil(TRIAL_SECONDS / max(found.step, 1e-3)))


def together(found: Sequence[Estimate], workers: int) -> float:
    """Seconds until the last of several trainings at a time is done, begun in the order given."""
    free = [0.0] * workers
    for each in found:
        heapq.heappush(free, heapq.heappop(free) + each.seconds)
    return max(free)


def _timed(config: RunConfig, steps: int, plan: Plan) -> Pace:
    short = {"epochs": 2, "iterations_per_epoch": steps, "validation_episodes": EPISODES, "first_order_epochs": 0}
    tried = config.model_copy(update={"training": config.training.model_copy(update=short)})
    with tempfile.TemporaryDirectory(prefix="metazoo-trial-") as folder:
        run = train(
            tried,
            home=Path(folder),
            device=plan.device,
            tasks_per_pass=plan.tasks_per_pass,
            reporter=Reporter(),
            data_home=plan.data_home,
            images_on=plan.images_on,
            record_graphs=plan.record_graphs,
            recompute=plan.recompute,
        )
        second = run.metrics[1]
    return Pace(second["seconds"] / steps, second["validation_seconds"] / EPISODES)


def _estimate(training: Training, found: Pace, evaluation: EvaluationPlan) -> Estimate:
    settings = training.config.training
    return Estimate(
        training,
        learning=found.step * settings.epochs * settings.iterations_per_epoch,
        validation=found.episode * settings.epochs * settings.validation_episodes,
        test=found.episode * evaluation.episodes * _networks(settings, evaluation) * len(training.targets),
    )


def _networks(settings: TrainingSettings, evaluation: EvaluationPlan) -> int:
    """How many networks are adapted to each test episode, at most: those of all rules, each once."""
    best = settings.keep if "ensemble" in evaluation.rules else int("best" in evaluation.rules)
    return min(settings.epochs, best + ("last" in evaluation.rules))
