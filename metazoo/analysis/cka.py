"""How much adaptation changes what each layer represents: CKA of its outputs before and after, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metazoo.analysis.sitting import Sitting
from metazoo.analysis.style import house_style, key, look, save, sheet
from metazoo.analysis.subjects import Layer, Subject, check_same, common_facts, layers
from metazoo.episodes import Episodes
from metazoo.errors import UserError
from metazoo.statistics import episode_interval

Similarities = dict[str, list[float]]
"""The CKA of each layer, by its name, in every episode."""


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear CKA of two sets of features of the same n examples in each of T tasks, `[T, n, ...]` both: `[T]`, float64.

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of features X and Y `[n, p]` whose columns are centred (Kornblith,
    Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited. ICML 2019). It is 1 for features that
    are equal up to rotation and one scale for all. Computed from the matrices K = XX' and L = YY' `[n, n]`, as
    <K, L> / sqrt(<K, K> <L, L>), which is 1 exactly where X is Y; not a number where features do not vary at all.
    """
    one, other = _products(first), _products(second)
    both, alone, alone_other = (pair.flatten(1).sum(dim=1) for pair in (one * other, one * one, other * other))
    return both / (alone * alone_other).sqrt()


def _products(features: Tensor) -> Tensor:
    flat = features.flatten(2).double()
    centred = flat - flat.mean(dim=1, keepdim=True)
    return centred @ centred.mT


def similarities(sitting: Sitting, subject: Subject, episodes: int) -> Similarities:
    """The CKA of every layer and of the logits before and after a run's adaptation, in every episode."""
    model = sitting.model(subject)
    found = layers(model.backbone)

    def look(batch: Episodes) -> dict[str, Tensor]:
        *_, tasks = model.adaptation(batch)
        assert tasks.first_network is not None
        with torch.no_grad():
            before = layer_outputs(tasks.first_network.tapped, batch.query_x, found)
            after = layer_outputs(tasks.network.tapped, batch.query_x, found)
            return {name: linear_cka(before[name], after[name]).cpu() for name in before}

    parts = sitting.watch(subject, model, episodes, look, "comparing the features of")
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise UserError(
                f"{name[0].upper()}{name[1:]} of {subject.run.name} gives all images of an episode the same features, "
                "or none that are numbers, so their similarity is not defined."
            )
    return {name: value.tolist() for name, value in values.items()}


def layer_outputs(tapped: Any, inputs: Tensor, found: Sequence[Layer]) -> dict[str, Tensor]:
    """What each layer makes of inputs `[T, n, ...]`, by its name, in order; the head's outputs are the `logits`."""
    taps = {layer.tap: layer.name for layer in found if layer.tap is not None}
    outputs, seen = tapped(inputs, tuple(taps))
    return {name: seen[tap] for tap, name in taps.items()} | {"logits": outputs}


def figure(sitting: Sitting, folder: Path, episodes: int) -> list[Path]:
    """Draw the mean CKA of every layer with its 95 % interval over episodes, a line a run, and write it; the files.

    Raises UserError for runs of different networks, or fewer than two episodes.
    """
    subjects = sitting.subjects
    check_same(subjects, "backbone", "only layers of the same network can be compared")
    if episodes < 2:
        raise UserError(f"An interval over episodes needs at least 2 episodes, not {episodes}.")
    measured = [similarities(sitting, subject, episodes) for subject in subjects]
    shown = rows(subjects, measured)
    with house_style():
        drawing, ((panel,),) = sheet(1, 1, 4.0, 2.8)
        for number, (subject, found) in enumerate(zip(subjects, measured, strict=True)):
            own = [row for row in shown if row["run"] == subject.run.name and row["method"] == subject.label]
            shift = 0.08 * (number - (len(subjects) - 1) / 2)
            places = [place + shift for place in range(len(found))]
            means, widths = [row["cka"] for row in own], [row["half_width"] for row in own]
            panel.errorbar(places, means, yerr=widths, **look(number), label=subject.label, capsize=2, elinewidth=0.8)
        panel.set_xticks(range(len(measured[0])), list(measured[0]))
        panel.set_ylabel("CKA before / after adaptation")
        panel.set_ylim(top=1.02)
        key(drawing, panel)
        facts = common_facts(subjects, "source", "episode", "backbone", "budget", "seed")
        caption = (
            f"Linear CKA of each layer's outputs for the query images of an episode, before and after adaptation; mean "
            f"and 95 % interval (Student's t) over {episodes} episodes; {facts}; {sitting.tested}."
        )
        return save(drawing, caption, shown, folder, "cka")


def rows(subjects: Sequence[Subject], measured: Sequence[Similarities]) -> list[dict[str, Any]]:
    """The mean CKA of every layer of every run, with the half-width of its 95 % interval over episodes."""
    return [
        {"method": subject.label, "run": subject.run.name, "layer": layer}
        | {"cka": sum(values) / len(values), "half_width": episode_interval(values), "episodes": len(values)}
        for subject, found in zip(subjects, measured, strict=True)
        for layer, values in found.items()
    ]
