"""Evaluation: what a finished run scores on the fixed test episodes of its own or another data set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from metazoo import assembly, graphs, hardware, objectives, records
from metazoo.algorithm import Algorithm
from metazoo.checkpoint import Entry
from metazoo.config import RunConfig, code_version, describe
from metazoo.data.dataset import dataset
from metazoo.domains import Domain, Stream, open_domain
from metazoo.errors import Diverged, UserError, unknown
from metazoo.leaks import Leak, find_leak, leak_text
from metazoo.measures import ACCURACY, Measure
from metazoo.placement import known_placement
from metazoo.precision import arithmetic, stand_in
from metazoo.predicting import Predictors
from metazoo.prefetching import batches
from metazoo.progress import Reporter
from metazoo.records import AnyEvaluation, ErrorEvaluation, Evaluation, Interval, Record, Rule
from metazoo.run import Run, now
from metazoo.statistics import episode_interval, query_interval

RULES: tuple[Rule, ...] = ("last", "best", "ensemble")

Key = TypeVar("Key", bound=Hashable)


def evaluate(
    run: Run,
    target: str | None = None,
    *,
    episodes: int = 600,
    episode_seed: int = 0,
    rules: Sequence[str] = RULES,
    device: str = "auto",
    tasks_per_pass: int | None = None,
    command: str = "",
    reporter: Reporter | None = None,
    data_home: Path | None = None,
    images_on: str = "auto",
    drop_leaking: bool = False,
    record_graphs: bool = True,
) -> Record:
    """Score a finished run on the test episodes of `target` (its source by default), under each selection rule.

    `last` takes the weights after the last epoch, `best` those that were best in validation; `ensemble` is the mean of
    the raw query outputs of the best ones (as many as the run kept), each adapted by itself. The record is
    appended to the run's records, too; one that is there already, of the same target, episodes, data and code, is
    returned as it is. Where the target's test classes are among those that the source trains on, the record names them
    (`Record.leak`); with `drop_leaking`, no episode draws them, and the test episodes are other ones than usual.

    `images_on` says where the images lie (`Placement`, or auto), and `record_graphs` lets a GPU replay passes
    (`metazoo.graphs`); both change the speed and nothing else.

    Raises UserError for a run that is not finished, a damaged checkpoint, or a data set the run cannot be tested on;
    OutOfMemory where the device's memory does not suffice; Diverged where a prediction is not a number.
    """
    reporter = reporter or Reporter()
    if run.state == "diverged":
        raise UserError(f"{run.name} cannot be evaluated. {run.reason}")
    summary = run.summary
    if episodes < 2:
        raise UserError(f"An interval over episodes needs at least 2 episodes, not {episodes}.")
    rules = known_rules(rules)
    config = run.config
    target = target or config.source
    code = code_version(config)
    if code != run.code:
        reporter.note(f"{run.name} was trained with the code {run.code} and is evaluated with {code}.")
    domain = target_domain(run, target, data_home)
    data = {"source": run.data, "target": domain.identity}
    leak = _leak(config, target, data_home, drop_leaking, reporter)
    for record in records.read([run.records] if run.records.exists() else []):
        asked = (target, "test", episodes, episode_seed, data, code)
        there = (record.target, record.split, record.episodes, record.episode_seed, record.data, record.code)
        if asked == there and record.leak == leak:
            if record.evaluations.keys() >= set(rules):
                return record
            rules = known_rules([*rules, *record.evaluations])

    place = hardware.choose(device)
    precision = config.training.precision
    if instead := stand_in(precision, place):
        reporter.note(instead)
    images = domain.place(["test"], place, known_placement(images_on))
    stream = domain.episodes(
        config,
        "test",
        episode_seed,
        place,
        run.provenance.inputs,
        images.placement if images else None,
        leak.left_out if leak else (),
    )
    if images and not images.goes_without_saying:
        reporter.note(images.text)
    chosen = {rule: _choose(run, rule) for rule in rules}
    # One model for each epoch, however many rules chose it.
    entries = {entry.epoch: entry for rule in rules for entry in chosen[rule]}
    models = {epoch: _restore(run, entry, place) for epoch, entry in entries.items()}
    committees = {rule: [models[entry.epoch] for entry in chosen[rule]] for rule in rules}
    started = time.perf_counter()
    memory = hardware.memory_sentences(place, f"evaluating {run.name}", "lower tasks_per_pass, which changes no result")
    with reporter.stage(f"evaluating on {target}", episodes) as stage, memory, arithmetic(precision, place):
        recorder = graphs.recorder(place) if record_graphs else None
        predictors = Predictors(list(models.values()), place, tasks_per_pass, recorder, reporter.note)
        scores = episode_scores(committees, stream, episodes, place, tasks_per_pass, stage.update, predictors)
    seconds = time.perf_counter() - started
    if not all(math.isfinite(sum(found)) for found in scores.values()):
        raise Diverged(f"Predictions of {run.name} on {target} are not numbers; lower the method's inner rate.")
    evaluations = {
        rule: evaluation(domain.measure, scores[rule], stream.queries, [entry.epoch for entry in chosen[rule]])
        for rule in rules
    }
    record = Record(
        run=run.name,
        config=dict(describe(config)),
        data=data,
        code=code,
        target=target,
        episodes=episodes,
        episode_seed=episode_seed,
        queries_per_episode=stream.queries,
        leak=leak,
        evaluations=evaluations,
        batch_norm=batch_norm(next(iter(models.values()))),
        parameters=summary.parameters,
        command=command or run.provenance.command,
        versions=summary.versions,
        hardware=summary.hardware,
        created=now(),
        training_seconds=summary.training_seconds,
        evaluation_seconds=round(seconds, 3),
        tasks_per_second=summary.tasks_per_second,
        peak_memory_mb=summary.peak_memory_mb,
    )
    records.append(run.records, record)
    return record


def target_domain(run: Run, target: str, data_home: Path | None = None) -> Domain:
    """The data set `target`, opened for the test of a run; a UserError where the run cannot be tested on it."""
    inputs, source = run.provenance.inputs, run.config.source
    if dataset(target).kind != inputs.kind:
        raise UserError(
            f"{run.name} was trained on {inputs.kind} ({source}) and {target} is a data set of "
            f"{dataset(target).kind}; evaluate it on {inputs.kind}."
        )
    domain = open_domain(target, run.config.size, home=data_home)
    if target == source and domain.identity != run.data:
        raise UserError(
            f"The packed {domain.title} is not the one that {run.folder} was trained on, so its test classes "
            "may have been seen; train anew, or prepare the data set as it was."
        )
    return domain


def restored(run: Run, rule: Rule, device: torch.device) -> Algorithm:
    """The run's method with the weights that a selection rule takes; of an ensemble its best member."""
    return _restore(run, _choose(run, rule)[0], device)


def _leak(
    config: RunConfig, target: str, data_home: Path | None, drop_leaking: bool, reporter: Reporter
) -> Leak | None:
    """What leaks from a run's source into the target's test classes, said now rather than after the test."""
    leak = find_leak(config.source, target, config.size, data_home)
    if leak is None:
        return None
    leak = leak.model_copy(update={"dropped": drop_leaking and bool(leak.trained)})
    reporter.note(leak_text(leak, config.source, target))
    return leak


def known_rules(names: Sequence[str]) -> list[Rule]:
    """The selection rules of these names, in the order of `RULES`; a UserError for a name that is none."""
    for name in names:
        if name not in RULES:
            raise unknown("selection rule", name, RULES)
    return [rule for rule in RULES if rule in names]


def evaluation(measure: Measure, scores: Sequence[float], queries: int, epochs: list[int]) -> AnyEvaluation:
    """What goes into a record: the scores of the episodes, of `queries` query examples each, and their mean."""
    if measure is ACCURACY:
        correct = [int(score) for score in scores]
        return Evaluation(accuracy=interval(correct, queries), correct=correct, epochs=epochs)
    errors = [float(f"{score:.6g}") for score in scores]
    return ErrorEvaluation(error=interval(errors, queries, measure), errors=errors, epochs=epochs)


def interval(scores: Sequence[float], queries: int, measure: Measure = ACCURACY) -> Interval:
    """Mean over episodes of `queries` query examples each, with the 95 % half-widths that there are of it."""
    mean = measure.mean(sum(scores), len(scores), queries)
    return Interval(
        mean=mean,
        over_episodes=episode_interval(measure.values(scores, queries)),
        over_queries=query_interval(mean, len(scores) * queries) if measure is ACCURACY else None,
    )


def episode_scores(
    committees: Mapping[Key, Sequence[Algorithm]],
    stream: Stream,
    episodes: int,
    device: torch.device,
    tasks_per_pass: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
    predictors: Predictors | None = None,
) -> dict[Key, list[float]]:
    """The score (`objectives.scores`) of each committee on each of the first `episodes` episodes of a stream.

    A committee predicts by the mean of its members' raw outputs. A model that is in several adapts once, and where
    passes are stacked, each holds tasks of all models (`metazoo.committee`). Torch's global generators are left as they
    were. `progress` is called with the number of episodes done and may raise. `predictors` are those of all the models,
    in order of their first appearance, where they are to be used again.
    """
    models = {id(model): model for members in committees.values() for model in members}
    modes = {key: model.training for key, model in models.items()}
    predict = predictors or Predictors(list(models.values()), device, tasks_per_pass, graphs.recorder(device))
    scores: dict[Key, list[Tensor]] = {key: [] for key in committees}
    gathered = predict.gathered
    spans = ((start, min(gathered, episodes - start)) for start in range(0, episodes, gathered))
    coming = batches(stream, spans)
    done = 0
    with closing(coming), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for model in models.values():
            model.eval()
        try:
            for batch in coming:
                outputs = dict(zip(models, predict(batch), strict=True))
                for committee, members in committees.items():
                    mean = torch.stack([outputs[id(model)] for model in members]).mean(dim=0)
                    scores[committee].append(objectives.scores(mean, batch.query_y))
                done += len(batch)
                progress(done)
        finally:
            for key, model in models.items():
                model.train(modes[key])
    return {committee: torch.cat(parts).tolist() for committee, parts in scores.items()}


def batch_norm(model: nn.Module) -> str:
    """Whose statistics the model's batch normalisation uses at test time, in words."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return "none"
    if any(norm.track_running_stats for norm in norms):
        return "running statistics"
    return "batch statistics, of support and query sets each by itself"


def _choose(run: Run, rule: Rule) -> list[Entry]:
    """The checkpoints that a rule takes, best first where validation ranks them."""
    index = run.checkpoints.index
    if index.last is None or not index.best:
        raise UserError(f"The run {run.folder} has no checkpoints; delete its folder to train anew.")
    return {"last": [index.last], "best": index.best[:1], "ensemble": index.best}[rule]


def _restore(run: Run, entry: Entry, device: torch.device) -> Algorithm:
    """The run's method with the weights of a checkpoint."""
    with torch.random.fork_rng(devices=[]):
        model = assembly.build(run.config, run.provenance.inputs)
    load_weights(model, run.checkpoints.load(entry)["model"], run)
    return model.to(device)


def load_weights(model: Algorithm, weights: Mapping[str, Tensor], run: Run) -> None:
    """Give a model the weights of a checkpoint; a UserError where they are those of other code."""
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"The checkpoints of {run.folder} do not fit the method '{run.config.algorithm}' as it is now written; "
            "delete the run's folder to train anew, or go back to the code it was trained with."
        ) from None
