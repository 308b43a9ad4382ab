"""What figures are made from: finished runs under short names, and what they have in common, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from metazoo import registry
from metazoo.backbones import Backbone
from metazoo.config import describe
from metazoo.data.dataset import dataset
from metazoo.errors import UserError
from metazoo.run import Run


@dataclass(frozen=True)
class Subject:
    """A finished run and what it is called in a figure."""

    run: Run
    label: str


def subjects(folders: Sequence[Path], labels: Sequence[str] | None = None) -> list[Subject]:
    """The finished runs in these folders, named by `labels` or else by method and by what sets them apart.

    Raises UserError for a folder that holds no finished run, or labels that are not one a run or not distinct.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        if run.state == "diverged":
            raise UserError(f"{run.name} has no figure. {run.reason}")
        _ = run.summary  # says so where the run is not finished
    names = list(labels) if labels else _labels(runs)
    if len(names) != len(runs) or len(set(names)) != len(names):
        raise UserError(f"{len(runs)} runs need as many different labels, not {', '.join(names)}.")
    return [Subject(run, name) for run, name in zip(runs, names, strict=True)]


def common_facts(subjects: Sequence[Subject], *which: str) -> str:
    """The facts of these names about the runs (`FACTS`) in a sentence, each said once where the runs agree in it."""
    said = []
    for name in which:
        found = [FACTS[name](subject.run) for subject in subjects]
        if len(set(found)) == 1:
            said.append(found[0])
        else:
            said.append("; ".join(f"{subject.label}: {fact}" for subject, fact in zip(subjects, found, strict=True)))
    return ", ".join(said)


def check_same(subjects: Sequence[Subject], which: str, why: str) -> None:
    """A UserError unless the runs agree in the fact `which`, as a figure must have it because of `why`."""
    first, *others = subjects
    for other in others:
        one, two = FACTS[which](first.run), FACTS[which](other.run)
        if one != two:
            raise UserError(f"{first.label} has {one} and {other.label} has {two}, and {why}; make a figure for each.")


def _backbone(run: Run) -> str:
    name, *settings = run.config.backbone.model_dump(mode="json").items()
    defaults = type(run.config.backbone)().model_dump(mode="json")
    shown = [f"{key} {value}" for key, value in settings if key == "filters" or value != defaults[key]]
    return f"{name[1]} ({', '.join(shown)})" if shown else str(name[1])


def _episode(run: Run) -> str:
    config = run.config
    ways = dataset(config.source).ways_text(config.ways)
    return f"{ways}{ways and ' '}{config.shots}-shot episodes with {config.queries} queries a class"


def _budget(run: Run) -> str:
    settings = run.config.training
    return f"{settings.epochs} epochs of {settings.iterations_per_epoch} meta-batches of {settings.meta_batch} tasks"


FACTS: Mapping[str, Callable[[Run], str]] = {
    "source": lambda run: f"trained on {dataset(run.config.source).title}",
    "episode": _episode,
    "size": lambda run: f"inputs of {run.config.size} pixels" if run.config.size else "vectors",
    "backbone": _backbone,
    "budget": _budget,
    "seed": lambda run: f"seed {run.config.seed}",
}
"""What a caption says of runs."""


HEAD = "head"


@dataclass(frozen=True)
class Layer:
    """One of the layers that figures speak of: a block of the body, or the head."""

    name: str
    tap: str | None
    """The module whose output is the layer's; None for the head."""
    weights: tuple[str, ...]
    """Its weights: the tensors of at least two dimensions; neither biases nor normalisation."""


def layers(backbone: Backbone) -> list[Layer]:
    """The layers of a backbone, from the input on; what a method has inserted is none of them.

    A child of the body that has weights is one, with the activation that follows it where it stands beside it.
    """
    roles, found = backbone.roles(), []
    children = list(backbone.body.named_children())
    for number, (name, _) in enumerate(children):
        weights = _weights(backbone, roles, f"body.{name}.", "body")
        if weights:
            while number + 1 < len(children) and isinstance(children[number + 1][1], (nn.ReLU, nn.LeakyReLU)):
                number += 1
            found.append(Layer(re.sub(r"(\d+)$", r" \1", name), f"body.{children[number][0]}", weights))
    head = _weights(backbone, roles, "head.", "head")
    return [*found, Layer(HEAD, None, head)] if head else found


def _weights(backbone: Backbone, roles: Mapping[str, str], prefix: str, role: str) -> tuple[str, ...]:
    return tuple(
        name
        for name, found in roles.items()
        if name.startswith(prefix) and found == role and backbone.get_parameter(name).dim() > 1
    )


def _labels(runs: Sequence[Run]) -> list[str]:
    """Each run's method; with the settings in which it differs from others of that method, or else a number."""
    titles = [registry.algorithm(run.config.algorithm).title for run in runs]
    leaves = [dict(_leaves(describe(run.config))) for run in runs]
    names: list[str] = []
    for title, own in zip(titles, leaves, strict=True):
        alike = [other for other, found in zip(leaves, titles, strict=True) if found == title]
        keys = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        told = ", ".join(f"{key.rpartition('.')[2].replace('_', ' ')} {own[key]}" for key in keys)
        name = f"{title} ({told})" if told else title
        count = sum(earlier.split(" #")[0] == name for earlier in names)
        names.append(f"{name} #{count + 1}" if count else name)
    return names


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
