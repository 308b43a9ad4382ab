"""The plugin contract: a method is one class that declares what it is and implements as little as it must."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from metazoo.backbones import Backbone, Role
from metazoo.errors import Incompatible
from metazoo.learner import Learner, TaskBatch, cross_entropy
from metazoo.schema import Strict

if TYPE_CHECKING:
    from metazoo.episodes import Episodes

Rates = dict[Role, Annotated[float, Field(ge=0)]]
"""Inner learning rate of each role; a role that is absent, or at rate 0, is not adapted."""


@dataclass
class Outcome:
    """What a method made of a batch of T episodes."""

    losses: Tensor
    """Meta-loss of each task, `[T]`, differentiable."""
    logits: Tensor
    """Query logits, `[T, Q, N]`."""
    support_losses: Sequence[Tensor] = ()
    """The `[T]` support losses of every inner pass."""
    adapted: Mapping[str, Tensor] = field(default_factory=dict)
    """The adapted tensors by name, `[T, ...]`."""


class Algorithm(nn.Module, ABC):
    """Base of every method. `parameters()` are the meta-parameters: all that the outer loop learns.

    The harness only ever calls `learn` and `predict`.
    """

    name: ClassVar[str] = ""
    """What it is called in configs and on the command line; a class without a name is not registered."""
    title: ClassVar[str] = ""
    """What tables print."""
    paper: ClassVar[str] = ""
    transductive: ClassVar[bool] = True
    """Whether a query prediction depends on the other query images (batch norm with batch statistics makes it so)."""
    deviations: ClassVar[tuple[str, ...]] = ()
    """Where this implementation departs from the paper, in order; cards number them."""
    stops_gradient: ClassVar[str] = ""
    """What the method itself holds constant in its meta-gradient; empty when the meta-gradient is the exact one."""

    class Settings(Strict):
        """The hyper-parameters with their defaults."""

    settings: Settings

    def __init__(self, backbone: Backbone, settings: Settings | None = None):
        super().__init__()
        self.backbone = backbone
        self.settings = settings if settings is not None else self.Settings()
        self.build()

    def build(self) -> None:
        """Create what is meta-learned beside the backbone.

        Raises:
            Incompatible: when the method cannot work on this backbone, with the reason.
        """

    @abstractmethod
    def learn(self, episodes: Episodes, first_order: bool = False) -> Outcome:
        """Adapt to the support sets and score the query sets, differentiably w.r.t. the meta-parameters."""

    @abstractmethod
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits `[T, Q, N]` after adaptation, with no graph kept; what validation and test score."""


class InnerLoop(Algorithm):
    """A method that adapts weights by gradient steps on the support loss (MAML, Algorithm 1, and its relatives).

    A subclass changes what it must: `adapts` (which roles move), `begin` (before the first step), `step` (one step).
    """

    class Settings(Algorithm.Settings):
        inner_steps: PositiveInt = 5
        evaluation_steps: PositiveInt | None = None
        """Inner steps in validation and test, where they differ from training's."""
        first_order: bool = False
        """Ignore second derivatives in the meta-gradient."""

    settings: Settings

    def __init__(self, backbone: Backbone, settings: Algorithm.Settings | None = None):
        super().__init__(backbone, settings)
        if not self.adapts():
            raise Incompatible(f"{self.name} adapts nothing: give at least one role an inner learning rate above 0.")
        self._learner = [Learner(backbone, self.adapts())]  # in a list, so that it registers no module twice

    @abstractmethod
    def adapts(self) -> set[Role]:
        """The roles whose tensors move in the inner loop."""

    def begin(self, tasks: TaskBatch) -> None:
        """What happens once per task, before the first inner step."""

    @abstractmethod
    def step(self, tasks: TaskBatch, step: int) -> None:
        """One inner step (0-based) on the support set."""

    def learn(self, episodes: Episodes, first_order: bool = False) -> Outcome:
        tasks = TaskBatch(self._learner[0], episodes, first_order=first_order or self.settings.first_order)
        self._adapt(tasks, self.settings.inner_steps)
        logits = tasks.query_logits()
        return Outcome(cross_entropy(logits, episodes.query_y), logits, tasks.support_losses, dict(tasks.weights))

    def predict(self, episodes: Episodes) -> Tensor:
        tasks = TaskBatch(self._learner[0], episodes, track=False)
        with torch.enable_grad():
            self._adapt(tasks, self.settings.evaluation_steps or self.settings.inner_steps)
        return tasks.query_logits().detach()

    def _adapt(self, tasks: TaskBatch, steps: int) -> None:
        self.begin(tasks)
        for step in range(steps):
            self.step(tasks, step)
