"""Adaptation step by step: how well it does, how large the weights become, and what is adapted beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metazoo import objectives
from metazoo.analysis.sitting import Sitting
from metazoo.analysis.style import house_style, key, log_scale, look, save, sheet
from metazoo.analysis.subjects import Layer, Subject, common_facts, layers
from metazoo.episodes import Episodes
from metazoo.errors import UserError
from metazoo.learner import TaskBatch
from metazoo.stacking import StackedBackbone
from metazoo.statistics import episode_interval

SETS = ("support", "query")

SPREAD = (0.05, 0.95)
"""Quantiles over episodes between which lies the band of a norm."""

Series = NDArray[np.float64]
"""A number of every step, from before the first, in every episode: `[steps + 1, E]`."""


@dataclass(frozen=True)
class Trajectory:
    """What was seen of a run's adaptation in E episodes."""

    subject: Subject
    steps: int
    """Inner steps it was watched for."""
    tested_steps: int
    """Inner steps it is tested with."""
    values: dict[str, Series]
    """Accuracy or error on the support and on the query set."""
    norms: dict[str, Series]
    """The norm of each layer's weights, by layer. Before the first step they are those of the first pass."""
    learned_norms: dict[str, float]
    """The norm of the layer's weights in the meta-learned initialisation."""
    others: dict[str, Series]
    """The norm of each tensor that is adapted and no weight of the network, such as a context."""


def follow(sitting: Sitting, subject: Subject, episodes: int, steps: int) -> Trajectory:
    """Watch a run adapt for `steps` inner steps, or as many as its method can take."""
    model = sitting.model(subject)
    steps = min(steps, model.step_limit or steps)
    found = layers(model.backbone)
    learned = {name: parameter.detach() for name, parameter in model.backbone.named_parameters()}
    measure = sitting.measure

    def look(batch: Episodes) -> dict[tuple[str, str], Tensor]:
        seen: list[dict[tuple[str, str], Tensor]] = []
        for tasks in model.adaptation(batch, steps):
            if not seen:
                assert tasks.first_network is not None
                seen.append(_outcome(tasks, at_start=True) | _norms(tasks.first_network, found, learned))
            seen.append(_outcome(tasks, at_start=False) | _norms(tasks.network, found, learned))
        names = seen[-1].keys()
        nothing = torch.zeros(len(batch), dtype=torch.float64)
        return {name: torch.stack([state.get(name, nothing) for state in seen]) for name in names}

    parts = sitting.watch(subject, model, episodes, look, "following")
    series: dict[str, dict[str, Series]] = {"values": {}, "norms": {}, "others": {}}
    for kind, name in parts[0]:
        series[kind][name] = torch.cat([part[kind, name] for part in parts], dim=1).numpy()
    config = subject.run.config
    counts = {"support": config.ways * config.shots, "query": config.ways * config.queries}
    values = {name: measure.values(scores, counts[name]) for name, scores in series["values"].items()}
    sizes = {layer.name: float(_norm([learned[name].unsqueeze(0) for name in layer.weights])) for layer in found}
    return Trajectory(subject, steps, model.evaluation_steps, values, series["norms"], sizes, series["others"])


def _outcome(tasks: TaskBatch, at_start: bool) -> dict[tuple[str, str], Tensor]:
    """The tasks' scores `[T]` on both sets."""
    found = {}
    for name, labels in (("support", tasks.episodes.support_y), ("query", tasks.episodes.query_y)):
        outputs = tasks.outputs(query=name == "query", at_start=at_start)
        found["values", name] = objectives.scores(outputs, labels).double().cpu()
    return found


def _norms(
    network: StackedBackbone, found: Sequence[Layer], learned: dict[str, Tensor]
) -> dict[tuple[str, str], Tensor]:
    """The norm `[T]` of each layer's weights, and of each adapted tensor that is not among the learned ones."""
    norms = {}
    for layer in found:
        weights = [network.adapted.get(name, learned[name].unsqueeze(0)) for name in layer.weights]
        norms["norms", layer.name] = _norm(weights).expand(network.tasks)
    for name, tensor in network.adapted.items():
        if name not in learned:
            norms["others", name] = _norm([tensor])
    return norms


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm `[T]` of tensors `[T, ...]` taken together."""
    squares = [tensor.detach().double().flatten(1).square().sum(dim=1).cpu() for tensor in tensors]
    return torch.stack(list(torch.broadcast_tensors(*squares))).sum(dim=0).sqrt()


def figures(sitting: Sitting, folder: Path, episodes: int, steps: int) -> list[Path]:
    """Draw how well each run does after every inner step, the norms of its weights, and what else it adapts; the files.

    A method that has learned something for each of its steps is followed no further than these. Raises UserError for
    fewer than two episodes, or no step.
    """
    if episodes < 2:
        raise UserError(f"An interval over episodes needs at least 2 episodes, not {episodes}.")
    if steps < 1:
        raise UserError(f"A trajectory has at least 1 inner step, not {steps}.")
    followed = [follow(sitting, subject, episodes, steps) for subject in sitting.subjects]
    for trajectory in followed:
        if trajectory.steps < steps:
            sitting.reporter.note(
                f"{trajectory.subject.label} is followed for {trajectory.steps} steps: it has learned something for "
                "each of them and has nothing for more."
            )
    facts = common_facts(sitting.subjects, "source", "episode", "backbone", "budget", "seed")
    facts = f"{episodes} test episodes; {facts}; {sitting.tested}."
    with house_style():
        written = _draw_values(sitting, followed, folder, facts)
        written += _draw_norms(followed, folder, facts)
        if any(trajectory.others for trajectory in followed):
            written += _draw_others(followed, folder, facts)
    return written


def _draw_values(sitting: Sitting, followed: Sequence[Trajectory], folder: Path, facts: str) -> list[Path]:
    measure = sitting.measure
    drawing, (panels,) = sheet(1, 2, 2.9, 2.4, sharex=True, sharey=True)
    for panel, name in zip(panels, reversed(SETS), strict=True):
        for number, trajectory in enumerate(followed):
            values = measure.scale * trajectory.values[name]
            means, widths = values.mean(axis=1), [episode_interval(step) for step in values]
            style = look(number)
            panel.errorbar(
                range(len(means)), means, yerr=widths, **style, label=trajectory.subject.label, elinewidth=0.8
            )
            tested = trajectory.tested_steps
            if tested < len(means):
                panel.plot(tested, means[tested], "o", color=style["color"], markersize=9, fillstyle="none")
        panel.set_title(f"{name} set")
        panel.set_xlabel("inner steps")
    panels[0].set_ylabel(measure.heading)
    key(drawing, panels[0])
    caption = (
        f"{measure.title[0].upper()}{measure.title[1:]} after each inner step, mean and 95 % interval (Student's t) "
        f"over {facts} A ring marks the steps a method is tested with; step 0 is the meta-learned initialisation."
    )
    return save(drawing, caption, value_rows(followed, measure.name), folder, "trajectory")


def _draw_norms(followed: Sequence[Trajectory], folder: Path, facts: str) -> list[Path]:
    drawing, (panels,) = sheet(1, len(followed), 2.4, 2.4, sharex=True, sharey=True)
    names = list(dict.fromkeys(layer for trajectory in followed for layer in trajectory.norms))
    for panel, trajectory in zip(panels, followed, strict=True):
        for layer, norms in trajectory.norms.items():
            _draw_spread(panel, norms / trajectory.learned_norms[layer], names.index(layer), layer)
        panel.set_title(trajectory.subject.label)
        panel.set_xlabel("inner steps")
    panels[0].set_ylabel("norm of weights / learned norm")
    log_scale(panels[0])
    key(drawing, panels[0])
    caption = (
        "Norm of each layer's weights after each inner step, relative to the meta-learned initialisation's; at 0 in "
        f"the first pass. Mean and central 90 % of {facts}"
    )
    return save(drawing, caption, norm_rows(followed), folder, "trajectory_weights")


def _draw_others(followed: Sequence[Trajectory], folder: Path, facts: str) -> list[Path]:
    shown = [trajectory for trajectory in followed if trajectory.others]
    drawing, (panels,) = sheet(1, len(shown), 2.8, 2.4, sharex=True)
    for panel, trajectory in zip(panels, shown, strict=True):
        for number, (name, norms) in enumerate(trajectory.others.items()):
            _draw_spread(panel, norms, number, name)
        panel.set_title(trajectory.subject.label)
        panel.set_xlabel("inner steps")
        panel.legend()
    panels[0].set_ylabel("L2 norm")
    caption = (
        "Norm of what is adapted and is no weight of the network, after each inner step; at 0 in the first pass. Mean "
        f"and central 90 % of {facts}"
    )
    return save(drawing, caption, other_rows(shown), folder, "trajectory_context")


def _draw_spread(panel: Any, series: Series, number: int, label: str) -> None:
    """The mean over episodes of every step, in a band that holds the central 90 % of the episodes."""
    steps, style = range(len(series)), look(number)
    low, high = np.quantile(series, SPREAD, axis=1)
    panel.plot(steps, series.mean(axis=1), **style, label=label)
    panel.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def value_rows(followed: Sequence[Trajectory], measure: str) -> list[dict[str, Any]]:
    """Mean accuracy or error, in its natural unit, of every run, set and step, with its 95 % half-width."""
    return [
        {"method": trajectory.subject.label, "run": trajectory.subject.run.name, "set": name, "step": step}
        | {measure: float(values.mean()), "half_width": episode_interval(values), "episodes": len(values)}
        for trajectory in followed
        for name in SETS
        for step, values in enumerate(trajectory.values[name])
    ]


def norm_rows(followed: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """The norm of the weights of every run, layer and step, and that of the meta-learned initialisation."""
    return [
        {"method": trajectory.subject.label, "run": trajectory.subject.run.name, "layer": layer, "step": step}
        | {"learned_norm": trajectory.learned_norms[layer]}
        | _spread(norms)
        for trajectory in followed
        for layer, series in trajectory.norms.items()
        for step, norms in enumerate(series)
    ]


def other_rows(followed: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """The norm of every other adapted tensor of every run at every step."""
    return [
        {"method": trajectory.subject.label, "run": trajectory.subject.run.name, "tensor": name, "step": step}
        | _spread(norms)
        for trajectory in followed
        for name, series in trajectory.others.items()
        for step, norms in enumerate(series)
    ]


def _spread(values: NDArray[np.float64]) -> dict[str, Any]:
    low, high = np.quantile(values, SPREAD)
    return {"norm": float(values.mean()), "low": float(low), "high": float(high), "episodes": len(values)}
