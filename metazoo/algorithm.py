"""The plugin contract: a method is one class that declares what it is and implements as little as it must."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from metazoo.backbones import Backbone, Role
from metazoo.errors import Incompatible
from metazoo.learner import Learner, TaskBatch
from metazoo.objectives import task_losses
from metazoo.outer_step import OuterStep
from metazoo.schema import Strict

if TYPE_CHECKING:
    from metazoo.episodes import Episodes

Rates = dict[Role, Annotated[float, Field(ge=0)]]
"""Inner learning rate of each role; a role that is absent, or at rate 0, is not adapted."""


@dataclass
class Outcome:
    """What a method made of a batch of T episodes."""

    losses: Tensor
    """Meta-loss of each task, `[T]`: what the outer loop differentiates. Several losses are summed here."""
    logits: Tensor
    """Query outputs after adaptation, `[T, Q, N]`."""
    support_losses: Sequence[Tensor] = ()
    """The `[T]` support losses of every inner pass."""
    adapted: Mapping[str, Tensor] = field(default_factory=dict)
    """The adapted tensors by name, `[T, ...]`."""
    tapped: Mapping[str, Tensor] = field(default_factory=dict)
    """Outputs `[T, Q, ...]` of the modules in `OuterStep.taps` in the last query pass."""


@dataclass(frozen=True)
class OuterGroup:
    """Meta-parameters that the outer loop updates alike."""

    parameters: Sequence[nn.Parameter]
    rate: Callable[[OuterStep], float] = lambda outer: 1.0
    """What the run's outer rate is multiplied by, once an epoch."""
    clamped: bool = True
    """Whether the run's `gradient_clamp` bounds these gradients, too."""
    max_norm: float | None = None
    """Bound on the norm of the meta-gradient of the whole group."""


def surrogate(value: Tensor, objective: Tensor) -> Tensor:
    """A tensor with the value of one and the gradient of the other."""
    return value.detach() + objective - objective.detach()


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
    inert: ClassVar[tuple[str, ...]] = ()
    """Meta-parameters, by name, whose meta-gradient is zero by structure; they are kept because the paper has them."""
    fixed_ways: ClassVar[bool] = True
    """Whether it can only be tested with as many ways as it was trained with, as a head of N outputs makes it."""

    class Settings(Strict):
        """The hyper-parameters with their defaults."""

    settings: Settings
    step_limit: int | None = None
    """The most inner steps it can take; None where there is no limit (see `InnerLoop.limit_steps`)."""

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
    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        """Adapt to the support sets and score the query sets, differentiably w.r.t. the meta-parameters."""

    @abstractmethod
    def predict(self, episodes: Episodes) -> Tensor:
        """Query outputs `[T, Q, N]` after adaptation, with no graph kept; what validation and test score."""

    @property
    def evaluation_steps(self) -> int:
        """Inner steps in validation and test; 0 for a method that has none."""
        return 0

    def adaptation(self, episodes: Episodes, steps: int | None = None) -> Iterator[TaskBatch]:
        """The tasks in adaptation, as at test, after each of `steps` inner steps (by default as many as `predict` has).

        It is one and the same TaskBatch each time; its `first_network` is from before the first step. Raises
        Incompatible for a method that has no inner steps.
        """
        raise Incompatible(f"{self.title} has no inner steps, so there is nothing to see of its adaptation.")

    def outer_groups(self) -> Sequence[OuterGroup]:
        """The meta-parameters in groups that the outer loop treats alike; by default one group of all."""
        return [OuterGroup([parameter for parameter in self.parameters() if parameter.requires_grad])]

    def own_parameters(self) -> list[nn.Parameter]:
        """What is meta-learned beside the backbone."""
        inside = {id(parameter) for parameter in self.backbone.parameters()}
        return [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in inside]

    @classmethod
    def written_in(cls, settings: Settings) -> set[type[Algorithm]]:
        """The methods whose code a run with these settings depends on."""
        return {cls}


class InnerLoop(Algorithm):
    """A method that adapts weights by gradient steps on the support loss (MAML, Algorithm 1, and its relatives).

    A subclass changes what it must: `adapts` (which roles move), `begin` (before the first step), `step` (one step),
    `query_weights` (which query losses make up the meta-loss).
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
        # In a list, so that it registers no module twice.
        self._learner = [Learner(self.backbone, self.adapted_names())]

    @abstractmethod
    def adapts(self) -> set[Role]:
        """The roles whose tensors move in the inner loop."""

    def adapted_names(self) -> list[str]:
        """Names of the backbone's tensors that move: by default all of the roles in `adapts`."""
        return [name for name, role in self.backbone.roles().items() if role in self.adapts()]

    @property
    def evaluation_steps(self) -> int:
        return self.settings.evaluation_steps or self.settings.inner_steps

    def limit_steps(self, what: str) -> None:
        """For methods that learn something for each inner step (`what`): Incompatible where evaluation has more."""
        self.step_limit, self._learned_for_each = self.settings.inner_steps, what
        self._check(self.evaluation_steps)

    def _check(self, steps: int) -> None:
        if self.step_limit is not None and steps > self.step_limit:
            raise Incompatible(
                f"{self.title} learns {self._learned_for_each} for each of its {self.step_limit} inner steps, so it "
                f"cannot be evaluated with {steps}; lower evaluation_steps."
            )

    def begin(self, tasks: TaskBatch) -> None:
        """What happens once per task, before the first inner step."""

    @abstractmethod
    def step(self, tasks: TaskBatch, step: int) -> None:
        """One inner step (0-based) on the support set."""

    def query_weights(self, outer: OuterStep) -> Sequence[float]:
        """Weight of the query loss after each inner step in the meta-loss: by default the last one alone counts."""
        return [0.0] * (self.settings.inner_steps - 1) + [1.0]

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        tasks = TaskBatch(self._learner[0], episodes, outer, first_order=self.settings.first_order)
        self.begin(tasks)
        losses: list[Tensor] = []
        for step, weight in enumerate(self.query_weights(outer), start=1):
            self.step(tasks, step - 1)
            if weight or step == self.settings.inner_steps:
                logits = tasks.query_logits()
                losses.append(weight * task_losses(logits, episodes.query_y))
        meta_losses = torch.stack(losses).sum(dim=0) if len(losses) > 1 else losses[0]
        return Outcome(meta_losses, logits, tasks.support_losses, dict(tasks.weights), tasks.tapped)

    def predict(self, episodes: Episodes) -> Tensor:
        *_, tasks = self.adaptation(episodes)
        return tasks.query_logits().detach()

    def adaptation(self, episodes: Episodes, steps: int | None = None) -> Iterator[TaskBatch]:
        steps = steps or self.evaluation_steps
        self._check(steps)
        tasks = TaskBatch(self._learner[0], episodes, track=False)
        for step in range(steps):
            with torch.enable_grad():
                if step == 0:
                    self.begin(tasks)
                self.step(tasks, step)
            yield tasks


class Metric(Algorithm):
    """A method that compares embeddings and adapts nothing: `compare` scores every query against the support set.

    The backbone has no head, so a network trained with N ways can be tested with any number.
    """

    fixed_ways = False

    class Settings(Algorithm.Settings):
        joint_batch_norm: bool = True
        """Embed a task's support and query images as one batch, so that they share batch statistics."""

    settings: Settings

    def __init__(self, backbone: Backbone, settings: Algorithm.Settings | None = None):
        backbone.drop_head()
        super().__init__(backbone, settings)
        self._learner = [Learner(self.backbone, ())]

    @abstractmethod
    def compare(self, support: Tensor, labels: Tensor, query: Tensor, ways: int) -> Tensor:
        """Scores `[T, Q, N]` of query features `[T, Q, ...]` given support features `[T, S, ...]`, labels `[T, S]`."""

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Each task's loss, `[T]`, from scores `[T, Q, N]` and labels `[T, Q]`: cross-entropy by default."""
        return task_losses(scores, labels)

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        tasks = TaskBatch(self._learner[0], episodes, outer)
        scores = self._scores(tasks)
        return Outcome(self.losses(scores, episodes.query_y), scores, tapped=tasks.tapped)

    def predict(self, episodes: Episodes) -> Tensor:
        with torch.no_grad():
            return self._scores(TaskBatch(self._learner[0], episodes, track=False))

    def _scores(self, tasks: TaskBatch) -> Tensor:
        tasks.embed(jointly=self.settings.joint_batch_norm)
        support, query = tasks.features
        return self.compare(support, tasks.episodes.support_y, query, tasks.episodes.ways)
