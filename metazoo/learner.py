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
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from metazoo.backbones import Backbone, Role
from metazoo.errors import UserError

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


class StackedBackbone(nn.Module):
    """A backbone whose adapted parameters are `[T, ...]`, one set a task; the others are shared by all tasks.

    Its `parameters()` are the adapted tensors only, which is what learn2learn's `adapt` differentiates and updates.
    """

    def __init__(self, backbone: Backbone, adapted: Mapping[str, Tensor], shared: Mapping[str, Tensor], tasks: int):
        super().__init__()
        self.parts: Mapping[str, nn.Module] = {"body": backbone.body, "head": backbone.head}
        self.shared = {part: _below(part, shared) for part in self.parts}
        self.tasks = tasks
        self.adapted.update(adapted)  # as learn2learn's own clones do: tensors with a history, not leaves

    @property
    def adapted(self) -> MutableMapping[str, Tensor]:
        """The adapted tensors by name; learn2learn's update replaces them here."""
        return cast(MutableMapping[str, Tensor], self._parameters)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[T, n, N]` of images `[T, n, C, H, W]`."""
        return self.part("head", self.part("body", images))

    def part(self, name: str, inputs: Tensor) -> Tensor:
        """Body (images to features) or head (features to logits) of every task: `[T, n, ...]` to `[T, n, ...]`."""
        module, shared, own = self.parts[name], self.shared[name], _below(name, self.adapted)
        if self.tasks == 1:
            weights = shared | {key: value.squeeze(0) for key, value in own.items()}
            return functional_call(module, weights, (inputs.squeeze(0),)).unsqueeze(0)

        def forward(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return functional_call(module, shared | weights, (inputs,))

        return vmap(forward, in_dims=(0, 0), randomness="different")(own, inputs)


class Learner(MAML):
    """learn2learn's MAML wrapper with one change: `clone` gives every task of a meta-batch its own adapted weights."""

    def __init__(self, backbone: Backbone, adapts: Collection[Role]):
        # With `allow_nograd`, learn2learn lets errors such as out-of-memory through instead of printing them.
        super().__init__(backbone, lr=0.0, allow_unused=True, allow_nograd=True)
        self.adapted_names = [name for name, role in backbone.roles().items() if role in adapts]

    def clone(self, tasks: int = 1, first_order: bool = False, track: bool = True) -> Any:
        """A learn2learn clone for `tasks` tasks. Without `track`, nothing leads back to the meta-parameters."""
        adapted, shared = {}, {}
        for name, parameter in self.module.named_parameters():
            weight = parameter if track else parameter.detach()
            if name in self.adapted_names:
                stacked = weight.expand(tasks, *weight.shape)
                adapted[name] = stacked if stacked.requires_grad else stacked.clone().requires_grad_()
            else:
                shared[name] = weight
        return MAML(
            StackedBackbone(self.module, adapted, shared, tasks),
            lr=self.lr,
            first_order=first_order,
            allow_unused=True,
            allow_nograd=True,
        )


class TaskBatch:
    """T tasks in adaptation: their episodes, their adapted weights, and learn2learn's step on them.

    Attributes:
        weights: the adapted tensors by name, each `[T, ...]`; assigning replaces a tensor (scaling, attenuation).
        support_losses: the `[T]` losses of every support pass so far, as values.
    """

    def __init__(self, learner: Learner, episodes: Episodes, first_order: bool = False, track: bool = True):
        self.episodes = episodes
        self.track = track
        self.first_order = first_order
        self.clone = learner.clone(len(episodes), first_order=first_order or not track, track=track)
        self.support_losses: list[Tensor] = []
        self._features: tuple[Tensor, Tensor] | None = None
        self._backbone_names = frozenset(learner.adapted_names)
        self._body_is_fixed = not any(name.startswith("body.") for name in learner.adapted_names)

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def weights(self) -> MutableMapping[str, Tensor]:
        """The adapted tensors by name, each `[T, ...]`."""
        return self.clone.module.adapted

    def support_loss(self) -> Tensor:
        """One support pass at the current weights: each task's mean cross-entropy, `[T]`."""
        losses = cross_entropy(self._logits(query=False), self.episodes.support_y)
        self.support_losses.append(losses.detach())
        return losses

    def query_logits(self) -> Tensor:
        """Query logits `[T, Q, N]` at the current weights; without a graph where nothing is tracked."""
        with torch.set_grad_enabled(self.track):
            return self._logits(query=True)

    def descend(self, losses: Tensor, rates: Mapping[str, float | Tensor]) -> None:
        """One step of gradient descent on `losses` `[T]`: tensor `name` moves by `-rates[name]` times its gradient.

        With one rate for all this is learn2learn's own `adapt`. A tensor beside the backbone's (a context) may lie
        upstream of the others, and learn2learn would free the graph between them in first-order mode.
        """
        first, *others = rates.values()
        if isinstance(first, float) and all(rate is first or rate == first for rate in others) and not self._extra():
            self.clone.lr = first
            self.clone.adapt(losses.sum())
            return
        self.update({name: -rates[name] * gradient for name, gradient in self.gradients(losses).items()})

    def gradients(self, losses: Tensor, first_order: bool | None = None) -> dict[str, Tensor]:
        """Gradient of each task's loss w.r.t. its own adapted tensors, by name; untouched tensors are left out."""
        detached = (self.first_order or not self.track) if first_order is None else first_order
        names, tensors = zip(*self.weights.items(), strict=True)
        gradients = torch.autograd.grad(
            losses.sum(), tensors, retain_graph=self.track, create_graph=not detached, allow_unused=True
        )
        return {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}

    def update(self, changes: Mapping[str, Tensor]) -> None:
        """Add `changes` to the adapted tensors of the same names, by learn2learn's differentiable update."""
        for name, change in changes.items():
            self.weights[name].update = change  # type: ignore[attr-defined]
        self.clone.module = learn2learn.utils.update_module(self.clone.module)

    def embed(self, jointly: bool = False) -> None:
        """Forward the body once, for methods that never adapt it; `jointly`: support and query images as one batch."""
        episodes, body = self.episodes, self.clone.module.part
        with torch.set_grad_enabled(self.track):
            if jointly:
                together = body("body", torch.cat([episodes.support_x, episodes.query_x], dim=1))
                shots = episodes.support_x.shape[1]
                self._features = together[:, :shots], together[:, shots:]
            else:
                self._features = body("body", episodes.support_x), body("body", episodes.query_x)

    def _extra(self) -> bool:
        return not self._backbone_names.issuperset(self.weights)

    def _logits(self, query: bool) -> Tensor:
        if self._body_is_fixed:
            if self._features is None:
                self.embed()
            assert self._features is not None
            return self.clone.module.part("head", self._features[query])
        return self.clone(self.episodes.query_x if query else self.episodes.support_x)


def _below(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part of the backbone, by their names inside it."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Each task's mean cross-entropy `[T]` from logits `[T, n, N]` and labels `[T, n]`."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(dim=1)


def per_task(factors: Tensor, weights: Tensor) -> Tensor:
    """Factors `[T]` times weights `[T, ...]`, one factor a task."""
    return factors.view(-1, *[1] * (weights.dim() - 1)) * weights
