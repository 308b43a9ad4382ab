"""CAVIA: adapt nothing but a context, one vector a task that modulates a network which all tasks share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from metazoo import Conv4, Incompatible, InnerLoop, Mlp, Role, TaskBatch

Place = Literal[1, 2, 3, 4, "features", "inputs"]


class CAVIA(InnerLoop):
    name = "cavia"
    title = "CAVIA"
    paper = "Zintgraf, Shiarli, Kurin, Hofmann, Whiteson: Fast Context Adaptation via Meta-Learning. ICML 2019."
    deviations = (
        "`first_order` is obeyed for images, too; the official classification code keeps the graph regardless.",
        "The backbone starts as it does for every method here; `kaiming_init: true` draws convolutions and head as the "
        "official classification code does.",
        "`gradient_clamp` bounds the mean meta-gradient over tasks; the official sinusoid code bounds each task's.",
    )

    class Settings(InnerLoop.Settings):
        inner_lr: PositiveFloat = 1.0
        inner_steps: PositiveInt = 2
        context_size: PositiveInt = 100
        places: Annotated[tuple[Place, ...], Field(min_length=1)] | None = None
        """Where the context enters: the blocks of a Conv4 that it modulates, beside the features, beside the inputs of
        an Mlp. By default block 3 of a Conv4, or the inputs of an Mlp."""
        hidden_layer: bool = False
        """Whether scales and shifts come from a network of two layers; by default they are linear in the context."""
        kaiming_init: bool = False

    settings: Settings

    def adapts(self) -> set[Role]:
        return {"context"}

    def build(self) -> None:
        backbone: Any = self.backbone
        body = backbone.body
        blocks, inputs = isinstance(backbone, Conv4), isinstance(backbone, Mlp) and "linear1" in body._modules
        known: tuple[Place, ...] = (3, 1, 2, 4, "features") if blocks else ("inputs", "features") if inputs else ()
        places = self.settings.places or known[:1]
        if not places or not set(places) <= set(known):
            raise Incompatible("CAVIA's context enters the blocks of a Conv4, the inputs of an Mlp, or their features.")
        if self.settings.kaiming_init:
            _draw(backbone)
        context, last = Context(self.settings.context_size), list(body._modules)[-1]
        backbone.insert("context", context)
        for place in places:
            if place == "inputs":
                backbone.insert("beside_inputs", Beside(context), after="context")
                body.linear1 = context.widen(body.linear1)
            elif place == "features":
                backbone.insert("beside_features", Beside(context), after=last)
                backbone.head = context.widen(backbone.head)
            else:
                film = Film(context, body.get_submodule(f"block{place}.conv").out_channels, self.settings.hidden_layer)
                backbone.insert("film", film, after=f"block{place}.pool")

    def step(self, tasks: TaskBatch, step: int) -> None:
        tasks.descend(tasks.support_loss(), dict.fromkeys(tasks.weights, self.settings.inner_lr))


class Context(nn.Module):
    """The context, zero at the start of a task. It stands before the network, where it changes nothing itself."""

    values: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("values", torch.zeros(size), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    def widen(self, layer: nn.Linear) -> nn.Linear:
        """A new layer like `layer` that has the context among its inputs."""
        return type(layer)(len(self.values) + layer.in_features, layer.out_features)


class Reader(nn.Module):
    """A module that reads the one context, wherever in the network it stands."""

    def __init__(self, context: Context):
        super().__init__()
        self._context = [context]  # in a list, so that it registers no module twice

    @property
    def context(self) -> Tensor:
        return self._context[0].values


class Beside(Reader):
    """Concatenate the context to each input `[n, d]`; in front, as a head of fewer features drops its last columns."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.context.expand(len(inputs), -1), inputs], dim=1)


class Film(Reader):
    """Scale and shift each channel of maps `[n, F, H, W]` by numbers made from the context.

    At context zero they are the last layer's biases, drawn as `nn.Linear` draws them, so the maps start small.
    """

    def __init__(self, context: Context, channels: int, hidden_layer: bool):
        super().__init__(context)
        size = 2 * channels
        more = (nn.ReLU(), nn.Linear(size, size)) if hidden_layer else ()
        self.generator = nn.Sequential(nn.Linear(len(context.values), size), *more)
        _draw(self.generator)

    def forward(self, maps: Tensor) -> Tensor:
        scale, shift = self.generator(self.context)[:, None, None].chunk(2)
        return scale * maps + shift


def _draw(network: nn.Module) -> None:
    """Draw convolutions and linear layers as the official classification code does; biases stay as they are."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
