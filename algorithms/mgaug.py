"""MGAug: beside the network, train copies without the weights on which its own meta-gradient leans most."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from metazoo import Episodes, Incompatible, Outcome, OuterStep, Wrapper

Share = Annotated[float, Field(gt=0, le=1)]


class MGAug(Wrapper):
    name = "mgaug"
    title = "MGAug"
    paper = (
        "Wang, Sun, Lin, Zhang, Yin: Improving Generalization in Meta-Learning via Meta-Gradient Augmentation. "
        "IJCAI 2025."
    )
    deviations = (
        "Scores are made of each task's own meta-gradient; the official code's, of all that the meta-batch has "
        "accumulated so far, so that tasks depend on those before them.",
        "Images are not resized by default (`sizes: [84, 64, 48]` does it as the official code does), nor drawn on.",
        "Of the paper's prunings there is only the one its code has; random ones and MGAug-MaxUp are left out.",
    )

    class Settings(Wrapper.Settings):
        networks: NonNegativeInt = 3
        """Thinned networks beside the whole one; 0 is the base method."""
        least_kept: Share = 0.98
        """Share of a layer's weights that one of them keeps; the others' are drawn for each task, up to 1."""
        most_kept: Share = 0.999
        """Upper bound of the shares drawn."""
        kept: tuple[Share, ...] | None = None
        """These shares, one for each thinned network, in place of those drawn."""
        sizes: tuple[PositiveInt, ...] = ()
        """Sides of which one is drawn for each task and thinned network, whose images are resized to it."""

    settings: Settings

    def build(self) -> None:
        super().build()
        convolutions = {path for path, module in self.backbone.named_modules() if isinstance(module, nn.Conv2d)}
        weights = {f"{path}.weight" for path in convolutions}
        self.thinned = [name for name, role in self.backbone.roles().items() if role == "body" and name in weights]
        if not self.thinned:
            raise Incompatible("MGAug prunes the weights of convolutions and this backbone has none; use conv4.")
        least = 2 ** sum(isinstance(module, nn.MaxPool2d) for module in self.backbone.modules())
        if any(size < least for size in self.settings.sizes):
            raise Incompatible(f"This backbone halves images until nothing is left below {least} pixels; raise sizes.")

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        """The meta-loss is the sum of those of all networks."""
        kept = self.shares(episodes)
        if not kept.shape[1]:
            return self.base.learn(episodes, outer)
        weights = [self.backbone.get_parameter(name) for name in self.thinned]
        ones = [weight.new_ones(len(episodes), *weight.shape).requires_grad_() for weight in weights]
        masks = dict(zip(self.thinned, ones, strict=True))
        outcome = self.base.learn(episodes, replace(outer, masks=masks))
        scores = torch.autograd.grad(outcome.losses.sum(), ones, retain_graph=True, allow_unused=True)
        if any(score is None for score in scores):
            raise Incompatible(f"MGAug needs the gradient of a method's loss, and {self.base.name} hands down none.")
        losses = outcome.losses
        for number, shares in enumerate(kept.unbind(dim=1)):
            masks = {name: without_highest(score.abs(), shares) for name, score in zip(masks, scores, strict=True)}
            losses = losses + self.losses(episodes, replace(outer, masks=masks), number)
        return replace(outcome, losses=losses)

    def shares(self, episodes: Episodes) -> Tensor:
        """What each task's thinned networks keep of a layer, `[T, networks]` float64 on the CPU, the most first."""
        settings = self.settings
        if settings.kept is not None:
            return torch.tensor(settings.kept, dtype=torch.float64).expand(len(episodes), -1)
        if not settings.networks:
            return torch.empty(len(episodes), 0)
        shares = settings.least_kept + (1 - settings.least_kept) * episodes.uniform(settings.networks, "mgaug shares")
        shares[:, 0] = settings.least_kept
        return shares.clamp(max=settings.most_kept).sort(dim=1, descending=True).values

    def losses(self, episodes: Episodes, outer: OuterStep, number: int) -> Tensor:
        """The base method's meta-losses `[T]` with thinned network `number`, each task at the size drawn for it."""
        sizes = self.settings.sizes
        if not sizes:
            return self.base.learn(episodes, outer).losses
        drawn = (episodes.uniform(number + 1, "mgaug sizes")[:, number] * len(sizes)).long()
        groups = {size: torch.nonzero(drawn == place).flatten().tolist() for place, size in enumerate(sizes)}
        learned = [
            self.base.learn(
                resized(episodes.select(tasks), size),
                replace(outer, masks={name: mask[tasks] for name, mask in outer.masks.items()}),
            ).losses
            for size, tasks in groups.items()
            if tasks
        ]
        order = [task for tasks in groups.values() for task in tasks]
        return torch.cat(learned)[torch.tensor(order).argsort()]


def without_highest(scores: Tensor, shares: Tensor) -> Tensor:
    """Masks `[T, ...]` of 1 where a score is at most the k-th highest of its task, k being the share that is not kept.

    So k - 1 weights are pruned, as in the official code; with k = 0 there is nothing to prune.
    """
    flat = scores.flatten(1)
    count = (flat.shape[1] * (1 - shares)).long().to(flat.device)
    ranked = flat.sort(dim=1, descending=True).values
    highest = ranked.gather(1, (count - 1).clamp(min=0).unsqueeze(1))
    return ((flat <= highest) | (count == 0).unsqueeze(1)).to(scores.dtype).view_as(scores)


def resized(episodes: Episodes, size: int) -> Episodes:
    """The episodes with images of `size` pixels, bilinear with aligned corners."""
    side = episodes.support_x.shape[-1]
    if size > side:
        raise Incompatible(f"MGAug makes images smaller, and {size} is more than their {side} pixels; lower sizes.")

    def resize(images: Tensor) -> Tensor:
        flat = F.interpolate(images.flatten(0, 1), size=(size, size), mode="bilinear", align_corners=True)
        return flat.unflatten(0, images.shape[:2])

    return replace(episodes, support_x=resize(episodes.support_x), query_x=resize(episodes.query_x))
