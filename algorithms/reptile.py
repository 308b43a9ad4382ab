"""Reptile: move the initialisation towards what ordinary training on each task makes of it."""

from __future__ import annotations

from dataclasses import replace

import torch

from metazoo import Episodes, Outcome, OuterStep, Rates, TaskBatch, surrogate, task_losses
from metazoo.algorithms.maml import MAML


class Reptile(MAML):
    name = "reptile"
    title = "Reptile"
    paper = "Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms. arXiv:1803.02999, 2018."
    stops_gradient = "the adapted weights: the meta-gradient is the initialisation minus them, and no loss's derivative"
    deviations = (
        "The inner loop descends on all of a task's images at once; the paper's takes Adam steps on mini-batches "
        "(recalled, not re-checked).",
        "Adam takes initialisation minus adapted weights for a gradient; the paper moves the initialisation a share of "
        "the way, which falls to zero (recalled, not re-checked).",
        "Inner rate and steps are our choice.",
    )

    class Settings(MAML.Settings):
        inner_lr: Rates = {"body": 0.1, "norm": 0.1, "head": 0.1}

    settings: Settings

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        """Train on each task's support and query images together; what is reported is prediction as at test."""
        together = replace(
            episodes,
            support_x=torch.cat([episodes.support_x, episodes.query_x], dim=1),
            support_y=torch.cat([episodes.support_y, episodes.query_y], dim=1),
        )
        tasks = TaskBatch(self._learner[0], together, outer, track=False)
        start = dict(tasks.weights)
        with torch.enable_grad():
            for step in range(self.settings.inner_steps):
                self.step(tasks, step)
        moves = {name: (start[name] - weight).detach() for name, weight in tasks.weights.items()}
        products = [(self.backbone.get_parameter(name) * move).flatten(1).sum(dim=1) for name, move in moves.items()]
        logits = self.predict(episodes)
        losses = surrogate(task_losses(logits, episodes.query_y), torch.stack(products).sum(dim=0))
        return Outcome(losses, logits, tasks.support_losses, dict(tasks.weights))
