"""How the numbers of a leaderboard came about, in words: protocol, budget, episodes, statistics, machine, command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metazoo.config import RunConfig
from metazoo.leaderboard.budget import budget_text
from metazoo.leaderboard.standings import Leaderboard
from metazoo.leaderboard.suite import Row, Suite
from metazoo.records import Rule

RULES: Mapping[Rule, str] = {
    "last": "last epoch",
    "best": "best validation epoch",
    "ensemble": "raw outputs averaged over the best validation epochs",
}
"""The selection rules in words."""

_ALWAYS_TOLD = ("filters", "conv_bias", "activation", "norm_eps", "hidden")


def facts(board: Leaderboard) -> dict[str, str]:
    """How the numbers came about, by topic; topics of which nothing is known are left out."""
    suite, plan = board.suite, board.suite.evaluation
    row = suite.rows[0]
    config = next(iter(row.configs.values()))
    common = suite.protocol == "common"
    shared = {
        "Backbone": backbone_text(config),
        "Pixels": pixels_text(config),
        "Training": training_text(row, suite),
    }
    seeds = ", ".join(map(str, suite.seeds))
    facts = {
        "Protocol": "common: methods share all but their own settings"
        if common
        else "as published: each method as its paper or official code has it",
        **(shared if common else {}),
        "Settings that differ": differing_text(suite.rows),
        "Budget": budget_text(suite),
        "Episodes": f"{suite.sheet.episode_text(suite.ways, suite.queries)}; {plan.episodes} fixed test episodes a "
        f"column (seed {plan.seed}), the same for every method"
        + (", without test classes that the source trains on" if plan.drop_leaking else ""),
        "Selection rules": "; ".join(f"{rule}: {RULES[rule]}" for rule in plan.rules),
        "Seeds": seeds if len(suite.seeds) == 1 else f"{seeds}; the mean is over seeds and episodes",
        "±": f"half-width of the {board.over.title} (Student's t): {board.over.meaning}",
        "Bold": "no other method is told to be better by paired t-tests on the shared episodes (5 %, Holm's "
        f"correction over all pairs of the column; over {board.over.name})",
        "Rank": "the ranks that these tests leave open, so methods that cannot be told apart share some",
        "Batch norm": _distinct(record.batch_norm for record in board.measured),
        "Hardware": _distinct(record.hardware for record in board.measured),
        "Versions": _distinct(
            ", ".join(f"{name} {version}" for name, version in record.versions.items()) for record in board.measured
        ),
        "Command": _distinct(record.command for record in board.shown),
        "Made": _span(record.created[:10] for record in board.measured),
    }
    return {name: text for name, text in facts.items() if text}


def settings_text(settings: Mapping[str, Any]) -> str:
    """A method's settings in one line, those that are off left out."""
    return ", ".join(f"{key} {_value(value)}" for key, value in settings.items() if value is not None)


def differing_text(rows: Sequence[Row]) -> str:
    """The settings that several methods have and not all alike, each value with whose it is; others are a method's own.

    Above all the inner rates: at a small budget they decide a table's order as much as the methods do.
    """
    values: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for key, value in next(iter(row.configs.values())).settings.items():
            values.setdefault(key, {}).setdefault(_value(value), []).append(row.label)
    texts = []
    for key, owners in values.items():
        if len(owners) > 1:
            told = [f"{value} ({', '.join(labels)})" for value, labels in owners.items()]
            texts.append(f"{key}: {', '.join(told)}")
    return "; ".join(texts)


def backbone_text(config: RunConfig) -> str:
    """The network and its settings in one line; of the less common ones, those that are not the default."""
    values, defaults = config.backbone.model_dump(), type(config.backbone)().model_dump()
    told = {key: value for key, value in values.items() if key in _ALWAYS_TOLD or value != defaults[key]}
    others = ", ".join(f"{key} {_value(value)}" for key, value in told.items() if key != "name")
    return f"{values['name']} ({others})" if others else str(values["name"])


def pixels_text(config: RunConfig) -> str:
    """Image size and normalisation; empty where there are no images."""
    if config.size is None:
        return ""
    normalisations = {
        "none": "values in [0, 1]",
        "imagenet": "standardised with ImageNet's mean and standard deviation",
        "source": "standardised with the source's mean and standard deviation",
        "per_data_set": "each data set standardised, or not, as CxGrad's data loader does it",
    }
    return f"{config.size}x{config.size}, {normalisations[config.normalisation]}"


def training_text(row: Row, suite: Suite) -> str:
    """The budget and the outer loop, by shots where they differ."""
    texts = {shots: _budget(row.config(shots, suite.seeds[0])) for shots in suite.shots}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{shots}-shot: {text}" for shots, text in texts.items())


def _budget(config: RunConfig) -> str:
    training = config.training
    tasks = training.epochs * training.iterations_per_epoch * training.meta_batch
    parts = [
        f"{training.epochs} epochs of {training.iterations_per_epoch} meta-batches of {training.meta_batch} tasks "
        f"({tasks:,} tasks)",
        f"Adam at {training.outer_lr:g}",
    ]
    if training.schedule == "cosine":
        parts.append(f"annealed by cosine to {training.min_outer_lr:g}")
    if training.schedule == "steps":
        parts.append(f"times {training.decay:g} after epochs {_value(training.milestones)}")
    if training.ways:
        parts.append(f"training episodes of {training.ways} ways")
    if training.legacy_restart_every:
        parts.append(f"Adam made anew every {training.legacy_restart_every} iterations")
    if training.augmentation:
        parts.append(f"training images augmented ({settings_text(training.augmentation.model_dump())})")
    if training.first_order_epochs:
        parts.append(f"first order for {training.first_order_epochs} epochs")
    if training.gradient_clamp:
        parts.append(f"meta-gradient clamped at {training.gradient_clamp:g}")
    parts.append(f"{training.reduction} over tasks")
    parts.append(f"{training.validation_episodes} validation episodes an epoch")
    parts.append(f"the {training.keep} best epochs kept")
    return ", ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "/".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "/".join(map(_value, value))
    return str(value)


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _span(days: Iterable[str]) -> str:
    ordered = sorted({day for day in days if day})
    return " to ".join(dict.fromkeys([ordered[0], ordered[-1]])) if ordered else ""
