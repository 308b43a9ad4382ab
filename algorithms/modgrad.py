"""ModGrad: multiply gradients, entry by entry, by low-rank factors of a context that the support loss refines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from metazoo import Conv4, Incompatible, InnerLoop, OuterGroup, OuterStep, Role, TaskBatch

CONTEXT = "context"


class ModGrad(InnerLoop):
    name = "modgrad"
    title = "ModGrad"
    paper = "Simon, Koniusz, Nock, Harandi: On Modulating the Gradient for Meta-Learning. ECCV 2020."
    deviations = (
        "The support loss after the last pass and its gradient, which the official code computes, are not: nothing "
        "uses them.",
        "The gradient noise of the paper's study of robustness is left out.",
        "Adam's rates are the run's throughout; the official code halves them, which `backbone_halvings` and "
        "`generator_halvings` do.",
        "The official code's episodes never contain the last class of a split; ours do.",
    )

    class Settings(InnerLoop.Settings):
        inner_lr: PositiveFloat = 0.1
        inner_steps: PositiveInt = 1
        passes: PositiveInt = 2
        """Contexts tried in each inner step; each but the first, which is zero, comes from the one before it. Twice the
        official code's `inner_step`."""
        context_size: PositiveInt = 300
        mixtures: PositiveInt = 5
        """Candidates that each vector is a mixture of."""
        backbone_halvings: tuple[PositiveFloat, ...] = ()
        """Shares of the training after which the outer rate of the backbone is halved."""
        generator_halvings: tuple[PositiveFloat, ...] = ()
        """The same for the networks that make the factors."""

    settings: Settings

    def adapts(self) -> set[Role]:
        return {"body"}

    def adapted_names(self) -> list[str]:
        """The convolutions of the last two blocks."""
        convs = {f"body.block{block}.conv": self.backbone.get_submodule(f"body.block{block}.conv") for block in (3, 4)}
        return [f"{path}.{name}" for path, conv in convs.items() for name, _ in conv.named_parameters()]

    def build(self) -> None:
        if not isinstance(self.backbone, Conv4):
            raise Incompatible(
                "ModGrad adapts the convolutions of a Conv4's last two blocks; this is another backbone."
            )
        size, mixtures = self.settings.context_size, self.settings.mixtures
        shapes = [self.backbone.get_parameter(name).shape for name in self.adapted_names()]
        self.modulators = nn.ModuleList(Modulator(shape, size, mixtures) for shape in shapes)

    def step(self, tasks: TaskBatch, step: int) -> None:
        """One step from the weights at hand, tried out with every context; that of the last one is taken."""
        initial, names = dict(tasks.weights), self.adapted_names()
        gradients = tasks.gradients(tasks.support_loss())
        context = gradients[names[0]].new_zeros(len(tasks), self.settings.context_size)
        for number in range(self.settings.passes):
            if number:
                context = -tasks.gradients(tasks.support_loss())[CONTEXT]
            tasks.weights.update(initial | {CONTEXT: context.requires_grad_()})
            factors = {name: modulator(context) for name, modulator in zip(names, self.modulators, strict=True)}
            tasks.update({name: -self.settings.inner_lr * factors[name] * gradients[name] for name in names})

    def outer_groups(self) -> Sequence[OuterGroup]:
        return [
            OuterGroup(list(self.backbone.parameters()), _halved(self.settings.backbone_halvings)),
            OuterGroup(list(self.modulators.parameters()), _halved(self.settings.generator_halvings)),
        ]


class Modulator(nn.Module):
    """Factors >= 0 for the gradient of a tensor of `shape`, from a context `[T, c]` to `[T, *shape]`.

    Those of a kernel `[O, I, k, k]` are the positive part of a matrix of rank one, (O k) by (I k).
    """

    def __init__(self, shape: torch.Size, context_size: int, mixtures: int):
        super().__init__()
        self.shape = shape
        sizes = [shape[0] * shape[2], shape[1] * shape[3]] if len(shape) == 4 else [shape[0]]
        self.vectors = nn.ModuleList(Mixture(context_size, size, mixtures) for size in sizes)

    def forward(self, context: Tensor) -> Tensor:
        rows, *columns = (vector(context) for vector in self.vectors)
        product = rows[:, :, None] * columns[0][:, None, :] if columns else rows
        return product.relu().view(-1, *self.shape)


class Mixture(nn.Module):
    """A vector `[T, n]` from a context `[T, c]`: a mixture of candidates, which depend on it as their weights do."""

    def __init__(self, context_size: int, size: int, mixtures: int):
        super().__init__()
        self.split = [mixtures, mixtures * size]
        self.network = nn.Sequential(nn.Linear(context_size, size), nn.ReLU(), nn.Linear(size, sum(self.split)))

    def forward(self, context: Tensor) -> Tensor:
        weights, candidates = self.network(context).split(self.split, dim=1)
        return (weights.softmax(dim=1)[:, :, None] * candidates.view(*weights.shape, -1)).sum(dim=1)


def _halved(shares: Sequence[float]) -> Callable[[OuterStep], float]:
    """An outer rate that is halved after each share of the training."""
    return lambda outer: 0.5 ** sum(not outer.within(share) for share in shares)
