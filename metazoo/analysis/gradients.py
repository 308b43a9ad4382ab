"""Gradient norms per layer during meta-training, as runs recorded them with `--record-gradients`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from metazoo import assembly
from metazoo.analysis.style import house_style, key, log_scale, look, save, sheet
from metazoo.analysis.subjects import HEAD, Subject, common_facts, layers
from metazoo.errors import UserError

Kind = Literal["inner", "outer"]

NAMES: dict[Kind, str] = {"inner": "support gradient", "outer": "meta-gradient"}
MEANINGS: dict[Kind, str] = {
    "inner": "L2 norm of the gradient of a task's support loss with respect to the layer's weights, mean over inner "
    "steps and tasks",
    "outer": "L2 norm of the meta-batch's gradient with respect to the layer's weights, mean over iterations",
}


def figure(subjects: Sequence[Subject], folder: Path, kind: Kind = "inner") -> list[Path]:
    """Draw the recorded norms of each run, a panel a run, and write them; the files.

    Raises UserError for a run that recorded none.
    """
    curves = [norms(subject, kind) for subject in subjects]
    names = [*dict.fromkeys(layer for found in curves for layer in found if layer != HEAD), HEAD]
    with house_style():
        drawing, (panels,) = sheet(1, len(subjects), 2.6, 2.4, sharex=True, sharey=True)
        for panel, subject, found in zip(panels, subjects, curves, strict=True):
            for number, layer in enumerate(names):
                points = found.get(layer, [])
                every = max(1, len(points) // 8)
                xs, ys = [x for x, _ in points], [y for _, y in points]
                panel.plot(xs, ys, **look(number), label=layer, markevery=(number % every, every))
            panel.set_title(subject.label)
            panel.set_xlabel("meta-training iteration")
            log_scale(panel)
        panels[0].set_ylabel(f"L2 norm of the {NAMES[kind]}")
        key(drawing, panels[0])
        facts = common_facts(subjects, "source", "episode", "backbone", "budget", "seed")
        return save(drawing, f"{MEANINGS[kind]}; {facts}.", rows(subjects, curves, kind), folder, f"gradients_{kind}")


def norms(subject: Subject, kind: Kind) -> dict[str, list[tuple[int, float]]]:
    """The iterations and norms of each layer of a run, as it recorded them.

    A layer with several weights has the root of the sum of their squared mean norms.
    """
    recorded = [line["gradient_norms"] for line in subject.run.metrics if "gradient_norms" in line]
    if not recorded:
        run = subject.run.folder
        raise UserError(
            f"{run} has no gradient norms: they are recorded during training. Train it anew in another folder with: "
            f"metazoo train --config {run / 'config.yaml'} --runs OTHER --record-gradients"
        )
    with torch.random.fork_rng(devices=[]):
        backbone = assembly.build(subject.run.config, subject.run.provenance.inputs).backbone
    found: dict[str, list[tuple[int, float]]] = {}
    for layer in layers(backbone):
        points = []
        for line in recorded:
            of_weights = [line[kind][name] for name in layer.weights if name in line[kind]]
            for iteration, *values in zip(line["iterations"], *of_weights, strict=True):
                if values and None not in values:
                    points.append((iteration, math.sqrt(sum(value**2 for value in values))))
        if points:
            found[layer.name] = points
    return found


def rows(
    subjects: Sequence[Subject], curves: Sequence[dict[str, list[tuple[int, float]]]], kind: Kind
) -> list[dict[str, Any]]:
    """What the figure shows, point by point; `iteration` is the last of those a norm is the mean over."""
    return [
        {"method": subject.label, "run": subject.run.name, "gradient": NAMES[kind], "layer": layer}
        | {"iteration": iteration, "norm": norm}
        for subject, found in zip(subjects, curves, strict=True)
        for layer, points in found.items()
        for iteration, norm in points
    ]
