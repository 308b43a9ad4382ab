"""The smallest config of sinusoid regression, as `tiny.py` has one of images."""

from __future__ import annotations

from typing import Any

from metazoo.config import RunConfig


def config(**changes: Any) -> RunConfig:
    """A config whose training takes about a second: keys of RunConfig, and of its training."""
    training = {"epochs": 3, "iterations_per_epoch": 20, "meta_batch": 5, "validation_episodes": 20, "keep": 2}
    values: dict[str, Any] = {
        "algorithm": "maml",
        "settings": {"inner_steps": 1, "inner_lr": {"body": 0.1, "head": 0.1}},
        "source": "sinusoid",
        "ways": 1,
        "shots": 10,
        "queries": 10,
        "backbone": {"name": "mlp"},
        "training": training,
    }
    for key, value in changes.items():
        (values if key in RunConfig.model_fields else training)[key] = value
    return RunConfig.model_validate(values)
