"""metazoo: few-shot meta-learning methods, compared on the same episodes, the same backbone and the same budget.

The names below are the public face that plugins and scripts import. They are loaded on first use, so that
`import metazoo` (and `metazoo --help`) does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from metazoo.algorithm import Algorithm, InnerLoop, Metric, Outcome, OuterGroup, Rates, surrogate
    from metazoo.backbones import Backbone, Conv4, ConvBlock, Mlp, ResNet12, Role
    from metazoo.data.store import open_store
    from metazoo.episodes import Episodes, EpisodeSampler, EpisodeStream
    from metazoo.errors import Diverged, Incompatible, OutOfMemory, UserError
    from metazoo.learner import Learner, TaskBatch, per_task
    from metazoo.objectives import class_means, class_sums, example_losses, task_losses
    from metazoo.outer_step import OuterStep, Share
    from metazoo.registry import load_plugin
    from metazoo.stacking import each_task
    from metazoo.wrapper import Wrapper

_HOMES = {
    "metazoo.algorithm": ("Algorithm", "InnerLoop", "Metric", "Outcome", "OuterGroup", "Rates", "surrogate"),
    "metazoo.backbones": ("Backbone", "Conv4", "ConvBlock", "Mlp", "ResNet12", "Role"),
    "metazoo.episodes": ("Episodes", "EpisodeSampler", "EpisodeStream"),
    "metazoo.errors": ("Diverged", "Incompatible", "OutOfMemory", "UserError"),
    "metazoo.learner": ("Learner", "TaskBatch", "per_task"),
    "metazoo.stacking": ("each_task",),
    "metazoo.objectives": ("class_means", "class_sums", "example_losses", "task_losses"),
    "metazoo.outer_step": ("OuterStep", "Share"),
    "metazoo.registry": ("load_plugin",),
    "metazoo.wrapper": ("Wrapper",),
    "metazoo.data.store": ("open_store",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Algorithm",
    "Backbone",
    "Conv4",
    "ConvBlock",
    "Diverged",
    "EpisodeSampler",
    "EpisodeStream",
    "Episodes",
    "Incompatible",
    "InnerLoop",
    "Learner",
    "Metric",
    "Mlp",
    "OutOfMemory",
    "Outcome",
    "OuterGroup",
    "OuterStep",
    "Rates",
    "ResNet12",
    "Role",
    "Share",
    "TaskBatch",
    "UserError",
    "Wrapper",
    "class_means",
    "class_sums",
    "each_task",
    "example_losses",
    "load_plugin",
    "open_store",
    "per_task",
    "surrogate",
    "task_losses",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'metazoo' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)
