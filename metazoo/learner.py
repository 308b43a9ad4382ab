"""The stacked learner: one learn2learn clone that adapts a whole meta-batch of tasks, exactly.

learn2learn's `MAML` clones a module and adapts the clone by ordinary autograd, whatever the module is. Here the
module's adapted parameters carry a leading task axis: `[...]` becomes `[T, ...]`, the forward pass maps over that axis,
and the loss is summed over tasks. Tasks share no adapted parameter, so the gradient of the sum is each task's own
gradient. `vmap` goes around the forward pass only; gradients are taken outside it.

This is the one module that imports learn2learn.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metazoo import objectives
from metazoo.backbones import Backbone
from metazoo.errors import UserError
from metazoo.outer_step import OuterStep
from metazoo.stacking import StackedBackbone

if TYPE_CHECKING:
    from metazoo.episodes import Episodes

_CURE = (
    "metazoo stands on learn2learn 0.2.0, which could not be imported here ({problem}). Its source archive needs a "
    "recipe; run these two commands in this environment:\n"
    "  pip install cython setuptools wheel numpy gym==0.26.2 requests tqdm scipy\n"
    "  pip install --no-deps --use-pep517 --no-build-isolation --config-settings=--global-option=build_ext "
    "learn2learn==0.2.0"
)


def _import_learn2learn() -> Any:
    """learn2learn, without the notices that gym and its own dependencies write to the screen on import."""
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
        warnings.simplefilter("ignore")
        try:
            import learn2learn
        except ImportError as error:
            raise UserError(_CURE.format(problem=error)) from None
    return learn2learn


learn2learn = _import_learn2learn()
MAML: Any = learn2learn.algorithms.MAML


class Learner(MAML):
    """learn2learn's MAML wrapper with one change: `clone` gives every task of a meta-batch its own adapted weights.

    Args:
        backbone: the network.
        adapted: names of the backbone's tensors that are adapted.
    """

    def __init__(self, backbone: Backbone, adapted: Collection[str]):
        # With `allow_nograd`, learn2learn lets errors such as out-of-memory through instead of printing them.
        super().__init__(backbone, lr=0.0, allow_unused=True, allow_nograd=True)
        roles = backbone.roles()
        self.adapted_names = [name for name in roles if name in adapted]
        self.contexts = [name for name, role in roles.items() if role == "context"]

    def clone(self, tasks: int = 1, first_order: bool = False, track: bool = True) -> Any:
        """A learn2learn clone for `tasks` tasks. Without `track`, nothing leads back to the meta-parameters."""
        adapted, shared = {}, {}
        for name, parameter in self.tensors().items():
            weight = parameter if track else parameter.detach()
            if name in self.adapted_names:
                stacked = weight.expand(tasks, *weight.shape)
                adapted[name] = stacked if stacked.requires_grad else stacked.clone().requires_grad_()
            else:
                shared[name] = weight
        return self.wrapped(StackedBackbone(self.module, adapted, shared, tasks), first_order)

    def tensors(self) -> dict[str, Tensor]:
        """The backbone's parameters and contexts by name."""
        return dict(self.module.named_parameters()) | {name: self.module.get_buffer(name) for name in self.contexts}

    def wrapped(self, network: StackedBackbone, first_order: bool) -> Any:
        """A learn2learn clone that adapts this network."""
        return MAML(network, lr=self.lr, first_order=first_order, allow_unused=True, allow_nograd=True)


class TaskBatch:
    """T tasks in adaptation: their episodes, their adapted weights, and learn2learn's step on them.

    Attributes:
        episodes: what the tasks are made of.
        outer: what the outer loop said of this step.
        support_losses: the `[T]` losses of every support pass so far, as values.
        tapped: the outputs `[T, Q, ...]` of the modules in `outer.taps` in the last query pass.
        first_network: the network of the first pass, which is the initialisation as the method uses it; None before.
    """

    def __init__(
        self,
        learner: Learner,
        episodes: Episodes,
        outer: OuterStep | None = None,
        *,
        first_order: bool = False,
        track: bool = True,
    ):
        self.episodes, self.track = episodes, track
        self.outer = outer or OuterStep()
        self.first_order = first_order or self.outer.first_order
        self.clone = learner.clone(len(episodes), first_order=self.first_order or not track, track=track)
        self.support_losses: list[Tensor] = []
        self.tapped: dict[str, Tensor] = {}
        self.first_network: StackedBackbone | None = None
        self._features: tuple[Tensor, Tensor] | None = None
        self._uncounted: dict[str, Tensor] = {}
        self._backbone_names = frozenset(learner.adapted_names)
        self._body_is_fixed = not any(name.startswith("body.") for name in learner.adapted_names)
        for name, mask in self.outer.masks.items():
            module = self.clone.module
            if name in module.adapted:
                module.adapted[name] = module.adapted[name] * mask
            else:
                module.unadapted[name] = module.shared[name] * mask

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def weights(self) -> MutableMapping[str, Tensor]:
        """The adapted tensors by name, each `[T, ...]`; assign to replace one (scaling, attenuation)."""
        return self.clone.module.adapted

    @property
    def shared(self) -> MutableMapping[str, Tensor]:
        """The backbone's other tensors by name, without a task axis; assign to replace one from here on."""
        return self.clone.module.shared

    @property
    def network(self) -> StackedBackbone:
        """The network of every task as it is now."""
        return self.clone.module

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """Features `[T, S, D]` and `[T, Q, D]` of support and query inputs, for methods that never adapt the body."""
        if self._features is None:
            self.embed()
        assert self._features is not None
        return self._features

    def support_loss(self) -> Tensor:
        """One support pass at the current weights: each task's mean loss, `[T]`."""
        losses = objectives.task_losses(self._outputs(query=False), self.episodes.support_y)
        self.support_losses.append(losses.detach())
        return losses

    def query_logits(self) -> Tensor:
        """Query outputs `[T, Q, N]` at the current weights; without a graph where nothing is tracked."""
        with torch.set_grad_enabled(self.track):
            return self._outputs(query=True)

    def outputs(self, *, query: bool, at_start: bool = False) -> Tensor:
        """Outputs `[T, n, N]` on the query or the support set, now or of `first_network`; without a graph."""
        network = self.first_network if at_start else self.network
        assert network is not None
        with torch.no_grad():
            if self._body_is_fixed:
                features = self.features[query]
            else:
                features, _ = network.part("body", self.episodes.query_x if query else self.episodes.support_x)
            return network.part("head", features)[0]

    def descend(self, losses: Tensor, rates: Mapping[str, float | Tensor]) -> None:
        """One step of gradient descent on `losses` `[T]`: tensor `name` moves by `-rates[name]` times its gradient.

        With one rate for all this is learn2learn's own `adapt`. A tensor beside the backbone's (a context) may lie
        upstream of the others, and learn2learn would free the graph between them in first-order mode.
        """
        first, *others = rates.values()
        alike = isinstance(first, float) and all(rate is first or rate == first for rate in others)
        watched = self.outer.masks or self.outer.gradient_norms
        if alike and rates.keys() == self.weights.keys() and not self._extra() and not watched:
            self.clone.lr = first
            self.clone.adapt(losses.sum())
            return
        gradients = self.gradients(losses)
        self.update({name: -rates[name] * gradient for name, gradient in gradients.items() if name in rates})

    def gradients(self, losses: Tensor, first_order: bool | None = None) -> dict[str, Tensor]:
        """Gradient of each task's loss w.r.t. its own adapted tensors, by name; untouched tensors are left out."""
        return self._counted_later(self._gradients(losses, self.weights, first_order))

    def example_gradients(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses `[T, S]` of one support pass and each example's own gradient `[T, S, ...]` w.r.t. the adapted tensors.

        Their mean over S is the gradient of the task's loss. All examples of a batch are worked on at once, which takes
        S times a support pass.
        """
        self.first_network = self.first_network or self.network.snapshot()
        copies, outputs = self.clone.module.of_examples(self.episodes.support_x)
        losses = objectives.example_losses(outputs, self.episodes.support_y)
        self.support_losses.append(losses.detach().mean(dim=1))
        gradients = self._gradients(losses, copies)
        self._counted_later({name: gradient.mean(dim=1) for name, gradient in gradients.items()})
        return losses, gradients

    def update(self, changes: Mapping[str, Tensor]) -> None:
        """Add `changes` to the adapted tensors of the same names, by learn2learn's differentiable update."""
        if self.outer.gradient_norms:
            moved = changes.keys() & self._uncounted.keys() & self._backbone_names
            self.outer.gradient_norms.add({name: self._uncounted[name] for name in sorted(moved)})
            self._uncounted = {}
        for name, change in changes.items():
            mask = self.outer.masks.get(name)
            self.weights[name].update = change if mask is None else change * mask.detach()  # type: ignore[attr-defined]
        self.clone.module = learn2learn.utils.update_module(self.clone.module)

    def embed(self, jointly: bool = False) -> None:
        """Forward the body once, for methods that never adapt it; `jointly`: support and query inputs as one batch."""
        episodes, taps = self.episodes, self.outer.taps
        with torch.set_grad_enabled(self.track):
            if jointly:
                together, tapped = self._body(torch.cat([episodes.support_x, episodes.query_x], dim=1), taps)
                shots = episodes.support_x.shape[1]
                self._features = together[:, :shots], together[:, shots:]
                self.tapped = {name: output[:, shots:] for name, output in tapped.items()}
            else:
                support, _ = self._body(episodes.support_x)
                query, self.tapped = self._body(episodes.query_x, taps)
                self._features = support, query

    def _gradients(
        self, losses: Tensor, tensors: Mapping[str, Tensor], first_order: bool | None = None
    ) -> dict[str, Tensor]:
        detached = (self.first_order or not self.track) if first_order is None else first_order
        gradients = torch.autograd.grad(
            losses.sum(), list(tensors.values()), retain_graph=self.track, create_graph=not detached, allow_unused=True
        )
        return {name: gradient for name, gradient in zip(tensors, gradients, strict=True) if gradient is not None}

    def _counted_later(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same gradients, whose norms are counted if an update follows: not all that is asked for moves weights."""
        if self.outer.gradient_norms:
            self._uncounted = gradients
        return gradients

    def _extra(self) -> bool:
        return not self._backbone_names.issuperset(self.weights)

    def _outputs(self, query: bool) -> Tensor:
        if self._body_is_fixed:
            features = self.features[query]
        elif query:
            features, self.tapped = self._body(self.episodes.query_x, self.outer.taps)
        else:
            features, _ = self._body(self.episodes.support_x)
        return self.clone.module.part("head", features)[0]

    def _body(self, inputs: Tensor, taps: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        self.first_network = self.first_network or self.network.snapshot()
        return self.clone.module.part("body", inputs, taps)


def per_task(factors: Tensor, weights: Tensor) -> Tensor:
    """Factors `[T]` times weights `[T, ...]`, one factor a task."""
    return factors.view(-1, *[1] * (weights.dim() - 1)) * weights
