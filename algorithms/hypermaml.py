"""HyperMAML: a hypernetwork reads the support set and says in one go how the head is to change."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from metazoo import Episodes, InnerLoop, Outcome, OuterStep, Role, Share, TaskBatch, class_means

KINDS = ("weight", "bias")


class HyperMAML(InnerLoop):
    name = "hypermaml"
    title = "HyperMAML"
    paper = (
        "Przewięźlikowski, Przybysz, Tabor, Zięba, Spurek: HyperMAML: Few-Shot Adaptation of Deep Models with "
        "Hypernetworks. arXiv 2205.15745, 2022."
    )
    deviations = (
        "The hypernetwork sees the class probabilities that the meta-learned head gives; in the official code they "
        "come from the head adapted to the previous episode.",
        "While mixing, the hypernetwork's update is spread over the inner steps, (1 - p) Delta in all; the official "
        "code subtracts as much at every step, five times in all, and once only after mixing "
        "(`legacy_repeated_delta`).",
        "A warm-up step follows the gradient at the adapted head; the official code takes it with respect to the "
        "initial head, through all steps before (`legacy_warmup_grad`).",
        "Validation always is with the hypernetwork alone, as test is; the official code validates with what the "
        "warm-up is at.",
    )
    stops_gradient = "the class probabilities that the hypernetwork sees"
    inert = ("hypernetwork.4.bias",)

    class Settings(InnerLoop.Settings):
        inner_lr: PositiveFloat = 0.01
        """Rate of the gradient steps on the head in warm-up and mixing; `inner_steps` is their number."""
        warm_up: Share = 0.025
        """Share of the training, from the start, in which the head is adapted by gradient steps alone."""
        mixing: Share = 0.25
        """Share of the training after that in which the hypernetwork takes over from them."""
        hidden: tuple[PositiveInt, ...] = (256, 256)
        """Widths of the hypernetwork's hidden layers."""
        delta_penalty: NonNegativeFloat = 0.0
        """Weight of the squared norm of the hypernetwork's update in the meta-loss."""
        legacy_warmup_grad: bool = False
        legacy_repeated_delta: bool = False

    settings: Settings

    def adapts(self) -> set[Role]:
        return {"head"}

    def build(self) -> None:
        features, ways = self.backbone.features, self.backbone.get_parameter("head.bias").numel()
        widths = (features + ways + 1, *self.settings.hidden, features + 1)
        layers = (layer for pair in pairwise(widths) for layer in (nn.ReLU(), nn.Linear(*pair)))
        self.hypernetwork = nn.Sequential(*list(layers)[1:])

    def begin(self, tasks: TaskBatch) -> None:
        """Delta: for every class the change of its row and bias in the head, from its class embedding alone."""
        weights = tasks.weights
        if self.gradient_share(tasks.outer) < 1:
            delta = self.hypernetwork(self.class_embeddings(tasks))
            weights["delta.weight"], weights["delta.bias"] = delta[..., :-1], delta[..., -1]
        if self.settings.legacy_warmup_grad:
            for kind in KINDS:
                weights[f"initial.{kind}"] = weights[f"head.{kind}"]
                weights[f"head.{kind}"] = weights[f"head.{kind}"].clone()

    def step(self, tasks: TaskBatch, step: int) -> None:
        """Head <- head - p lr gradient - (1 - p) Delta / steps; when p is 0, one step does it all."""
        p, settings = self.gradient_share(tasks.outer), self.settings
        if p:
            # The derivative through all steps before needs their graph, whatever becomes of the meta-gradient.
            place, first_order = ("initial", False) if settings.legacy_warmup_grad else ("head", None)
            gradients = tasks.gradients(tasks.support_loss(), first_order)
            tasks.update({f"head.{kind}": -p * settings.inner_lr * gradients[f"{place}.{kind}"] for kind in KINDS})
        if p < 1 and (p or step == 0):
            part = (1 - p) / (settings.inner_steps if p and not settings.legacy_repeated_delta else 1)
            tasks.update({f"head.{kind}": -part * tasks.weights[f"delta.{kind}"] for kind in KINDS})

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        outcome = super().learn(episodes, outer)
        delta = [outcome.adapted[f"delta.{kind}"].flatten(1) for kind in KINDS if f"delta.{kind}" in outcome.adapted]
        if not delta or not self.settings.delta_penalty:
            return outcome
        squares = torch.cat(delta, dim=1).square().sum(dim=1)
        return replace(outcome, losses=outcome.losses + self.settings.delta_penalty * squares)

    def class_embeddings(self, tasks: TaskBatch) -> Tensor:
        """Mean feature and class probabilities of each class's support, and its label as a number, `[T, N, D+N+1]`."""
        support, ways = tasks.features[0], tasks.episodes.ways
        with torch.no_grad():
            probabilities = self.backbone.head(support).softmax(dim=2)
        means = class_means(torch.cat([support, probabilities], dim=2), tasks.episodes.support_y, ways)
        labels = torch.arange(ways, dtype=means.dtype, device=means.device).view(1, ways, 1)
        return torch.cat([means, labels.expand(len(tasks), -1, -1)], dim=2)

    def gradient_share(self, outer: OuterStep) -> float:
        """p: 1 in warm-up, then down to 0 epoch by epoch while mixing."""
        warm_up, mixing = (round(share * outer.epochs) for share in (self.settings.warm_up, self.settings.mixing))
        return min(1.0, max(0.0, (warm_up + mixing - outer.epoch) / (mixing + 1)))
