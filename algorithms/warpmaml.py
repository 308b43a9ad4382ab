"""Warp-MAML: MAML through warp layers, which no task adapts and which learn to make every single inner step count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from metazoo import Conv4, Episodes, Incompatible, Outcome, OuterStep, Rates, TaskBatch, surrogate, task_losses
from metazoo.algorithms.maml import MAML


class WarpMAML(MAML):
    name = "warpmaml"
    title = "Warp-MAML"
    paper = "Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell: Meta-Learning with Warped Gradient Descent. ICLR 2020."
    stops_gradient = "in the warp layers' meta-gradient, the weights that each inner step starts from"
    deviations = (
        "No code of the paper's few-shot experiments is public: inner rate, steps, and a warp layer behind blocks 2, 3 "
        "and 4 follow another's re-implementation (secondary); `warp_after: [1, 2, 3, 4]` is another reading.",
        "Warp layers start as the identity and Adam's rate is 0.001, both of which are our guess.",
    )

    class Settings(MAML.Settings):
        inner_lr: Rates = {"body": 0.1, "norm": 0.1, "head": 0.1}
        warp_after: Annotated[tuple[Literal[1, 2, 3, 4], ...], Field(min_length=1)] = (2, 3, 4)
        """The blocks that a warp layer follows."""
        warp_kernel: Literal[1, 3] = 3
        """Side of the warp layers' kernels; at 1 they mix channels only, as T-Net's do."""
        learn_warps: bool = True
        every_step: bool = True
        """Sum the query losses after all inner steps; otherwise the last one alone is the meta-loss."""

    settings: Settings

    def build(self) -> None:
        if not isinstance(self.backbone, Conv4):
            raise Incompatible("Warp-MAML's warp layers stand behind the blocks of a Conv4; this is another backbone.")
        network: Any = self.backbone
        for block in self.settings.warp_after:
            filters, kernel = network.get_submodule(f"body.block{block}.conv").out_channels, self.settings.warp_kernel
            warp: Any = nn.Conv2d(filters, filters, kernel, padding=kernel // 2)
            nn.init.dirac_(warp.weight)
            nn.init.zeros_(warp.bias)
            warp.requires_grad_(self.settings.learn_warps)
            network.insert("warp", warp, after=f"block{block}.activation")
        super().build()

    def query_weights(self, outer: OuterStep) -> Sequence[float]:
        return [1.0] * self.settings.inner_steps if self.settings.every_step else super().query_weights(outer)

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        """The initialisation's meta-gradient goes through the whole trajectory. That of the warp layers goes through
        the step just made and no further: every step has copies of them, whose gradient its own loss alone gives.
        """
        tasks = TaskBatch(self._learner[0], episodes, outer, first_order=self.settings.first_order)
        warps = {name: tasks.shared[name] for name, role in self.backbone.roles().items() if role == "fixed"}
        losses, objectives = [], []
        for step, weight in enumerate(self.query_weights(outer)):
            copies = {name: warp.detach().requires_grad_(warp.requires_grad) for name, warp in warps.items()}
            tasks.shared.update(copies)
            self.step(tasks, step)
            if weight:
                logits = tasks.query_logits()
                losses.append(weight * task_losses(logits, episodes.query_y))
                if self.settings.learn_warps:
                    gradients = torch.autograd.grad(losses[-1].sum(), list(copies.values()), retain_graph=True)
                    objectives += [(own * warp).sum() for own, warp in zip(gradients, warps.values(), strict=True)]
        meta_losses = torch.stack(losses).sum(dim=0)
        if objectives:
            meta_losses = surrogate(meta_losses, meta_losses + torch.stack(objectives).sum() / len(tasks))
        return Outcome(meta_losses, logits, tasks.support_losses, dict(tasks.weights), tasks.tapped)
