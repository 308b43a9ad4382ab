"""MAML++: MAML with a learned rate and batch norm's own scale and shift for every inner step, and schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from metazoo import Episodes, Incompatible, Outcome, OuterGroup, OuterStep, Share, TaskBatch
from metazoo.algorithms.maml import MAML

LEAST_WEIGHT = 0.03
"""Below this share of an equal part, the weight of an early query loss falls no further."""


class MAMLPP(MAML):
    name = "mamlpp"
    title = "MAML++"
    paper = "Antoniou, Edwards, Storkey: How to Train Your MAML. ICLR 2019."
    deviations = (
        "Running statistics of batch norm are left out: the official code keeps them for each step but normalises with "
        "the batch's statistics all the same, so they change no result.",
        "The learned rates have one entry for each inner step; the official code's have one more, which is never read.",
        "Schedules are shares of the training. The defaults are those of the official code of November 2018, of 100 "
        "epochs 15 with the multi-step loss and 11 of first order; the paper's 50 of first order are recalled, not "
        "re-checked.",
    )

    class Settings(MAML.Settings):
        learned_rates: bool = True
        """Learn an inner rate for each tensor and step (LSLR); they start at `inner_lr`."""
        per_step_norm: bool = True
        """Learn batch norm's scale and shift for each step (BNWB)."""
        multi_step: Share = 0.15
        """Share of the training in which the query losses after all steps make up the meta-loss; 0 is never."""
        first_order_share: Share = 0.11
        """Share of the training in which the meta-gradient ignores second derivatives; 0 is never."""
        outer_rate_floor: Share = 1.0
        """The outer rate falls to this fraction of itself along a cosine; 1 leaves it, as on miniImageNet."""

    settings: Settings

    def build(self) -> None:
        super().build()
        steps, settings = self.settings.inner_steps, self.settings
        if settings.learned_rates or settings.per_step_norm:
            self.limit_steps("rates and batch norm")
        self.norms: list[str] = []
        if settings.per_step_norm:
            if "norm" in self.adapts():
                raise Incompatible("per_step_norm learns batch norm for each step; leave 'norm' out of inner_lr.")
            self.norms = [name for name, role in self.backbone.roles().items() if role == "norm"]
        for name in self.norms:
            path, _, tensor = name.rpartition(".")
            rows = self.backbone.get_parameter(name).detach().repeat(steps, 1)
            setattr(self.backbone.get_submodule(path), tensor, nn.Parameter(rows))
        if settings.learned_rates:
            self.step_rates = nn.ParameterList(torch.full((steps,), rate) for rate in self.rates.values())

    def step(self, tasks: TaskBatch, step: int) -> None:
        """Row `step` of batch norm stays for the query pass after the update."""
        for name in self.norms:
            tasks.shared[name] = self.backbone.get_parameter(name)[step]
        rates = self.rates
        if self.settings.learned_rates:
            rates = {name: learned[step] for name, learned in zip(rates, self.step_rates, strict=True)}
        tasks.descend(tasks.support_loss(), rates)

    def query_weights(self, outer: OuterStep) -> Sequence[float]:
        """Equal weights at first; those of the early steps fall to nothing by the end of the multi-step share."""
        steps, share = self.settings.inner_steps, self.settings.multi_step
        if not outer.within(share):
            return super().query_weights(outer)
        early = max(1 - outer.epoch / round(share * outer.epochs), LEAST_WEIGHT) / steps
        return [early] * (steps - 1) + [1 - (steps - 1) * early]

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        first_order = outer.first_order or outer.within(self.settings.first_order_share)
        return super().learn(episodes, replace(outer, first_order=first_order))

    def outer_groups(self) -> Sequence[OuterGroup]:
        """One cosine for all; the gradient clamp does not bound the learned rates, as in the official code."""
        network = OuterGroup(list(self.backbone.parameters()), self.outer_rate)
        if not self.settings.learned_rates:
            return [network]
        return [network, OuterGroup(list(self.step_rates), self.outer_rate, clamped=False)]

    def outer_rate(self, outer: OuterStep) -> float:
        """What the outer rate is multiplied by: from 1 to the floor along half a cosine, constant within an epoch."""
        floor = self.settings.outer_rate_floor
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(outer.epoch / outer.epochs, 1.0))) / 2
