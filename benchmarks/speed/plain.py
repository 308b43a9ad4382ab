"""What `metazoo bench` compares with: methods as one would write them on learn2learn with torch's own modules.

Second-order, one task at a time, `STEPS` inner steps. They compute what metazoo's methods of the same names compute
with the settings in `SETTINGS` (tested in float64).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metazoo.algorithm import Algorithm
from metazoo.backbones import Backbone
from metazoo.episodes import Episodes
from metazoo.learner import learn2learn

STEPS, LR = 5, 0.01

SETTINGS: dict[str, dict[str, Any]] = {
    # learn2learn's wrapper adapts every parameter of a module.
    "maml": {"inner_lr": {"body": LR, "norm": LR, "head": LR}, "inner_steps": STEPS},
    "cxgrad": {"inner_lr": {"body": LR, "head": LR}, "inner_steps": STEPS},
}

Step = Callable[[Episodes], None]
Prediction = Callable[[Episodes], Tensor]
"""The query labels `[T, Q]` that are predicted."""


def baseline(name: str, algorithm: Algorithm) -> tuple[Step, Prediction] | None:
    """A meta-step and an evaluation by the plain loop, from the same weights; None for a method that has none here."""
    if name == "maml":
        maml = learn2learn.algorithms.MAML(with_torch_modules(algorithm.backbone), lr=LR)
        return lambda episodes: maml_step(maml, episodes), lambda episodes: maml_predict(maml, episodes)
    if name == "cxgrad":
        model = CxGrad(algorithm)
        return lambda episodes: cxgrad_step(model, episodes), lambda episodes: cxgrad_predict(model, episodes)
    return None


def with_torch_modules(network: Backbone) -> nn.Module:
    """The same network with the same weights, written with torch's own modules."""
    body = nn.Sequential()
    for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        norm = nn.BatchNorm2d(conv.out_channels, track_running_stats=False).to(conv.weight.device)
        body.extend([copy.deepcopy(conv), norm, nn.LeakyReLU(), nn.MaxPool2d(2)])
    return nn.Sequential(body, nn.Flatten(), copy.deepcopy(network.head))


def maml_step(maml: Any, episodes: Episodes) -> None:
    """learn2learn's published loop over the tasks of a meta-batch, one clone a task, gradients accumulated."""
    for task in range(len(episodes)):
        clone = maml.clone()
        for _ in range(STEPS):
            clone.adapt(F.cross_entropy(clone(episodes.support_x[task]), episodes.support_y[task]))
        loss = F.cross_entropy(clone(episodes.query_x[task]), episodes.query_y[task])
        (loss / len(episodes)).backward()


def maml_predict(maml: Any, episodes: Episodes) -> Tensor:
    """learn2learn's examples test as they train, without the last gradient."""
    predicted = []
    for task in range(len(episodes)):
        clone = maml.clone()
        for _ in range(STEPS):
            clone.adapt(F.cross_entropy(clone(episodes.support_x[task]), episodes.support_y[task]))
        with torch.no_grad():
            predicted.append(clone(episodes.query_x[task]).argmax(dim=1))
    return torch.stack(predicted)


class CxGrad(nn.Module):
    """The network and the scaler of its body by the context."""

    def __init__(self, algorithm: Any):
        super().__init__()
        self.network = with_torch_modules(algorithm.backbone)
        self.scaler = copy.deepcopy(algorithm.scaler)
        self.context_size = algorithm.settings.context_size
        self.context_lr = algorithm.settings.context_lr

    def rescale(self, network: nn.Module, context: Tensor) -> None:
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        for factor, conv in zip(self.scaler(context), convolutions, strict=True):
            conv._parameters["weight"] = factor * conv.weight / conv.weight.norm()

    def adapt(self, support_x: Tensor, support_y: Tensor) -> nn.Module:
        """A clone of the network after the context's look and the inner steps."""
        clone = learn2learn.clone_module(self.network)
        context = support_x.new_zeros(self.context_size).requires_grad_()
        looking = learn2learn.clone_module(clone)
        self.rescale(looking, context)
        (change,) = torch.autograd.grad(F.cross_entropy(looking(support_x), support_y), context)
        context = context - self.context_lr * change
        for _ in range(STEPS):
            self.rescale(clone, context)
            adapted = [module for module in clone.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
            weights = [parameter for module in adapted for parameter in module.parameters()]
            loss = F.cross_entropy(clone(support_x), support_y)
            *gradients, change = torch.autograd.grad(loss, [*weights, context], create_graph=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.update = -LR * gradient  # type: ignore[attr-defined]
            clone = learn2learn.utils.update_module(clone)
            context = context - self.context_lr * change
        return clone


def cxgrad_step(model: CxGrad, episodes: Episodes) -> None:
    for task in range(len(episodes)):
        clone = model.adapt(episodes.support_x[task], episodes.support_y[task])
        loss = F.cross_entropy(clone(episodes.query_x[task]), episodes.query_y[task])
        (loss / len(episodes)).backward()


def cxgrad_predict(model: CxGrad, episodes: Episodes) -> Tensor:
    predicted = []
    for task in range(len(episodes)):
        clone = model.adapt(episodes.support_x[task], episodes.support_y[task])
        with torch.no_grad():
            predicted.append(clone(episodes.query_x[task]).argmax(dim=1))
    return torch.stack(predicted)
