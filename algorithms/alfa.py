"""ALFA: a small network makes each step's learning rate and weight decay from the weights and their gradients."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from metazoo import TaskBatch, per_task
from metazoo.algorithms.l2f import L2F
from metazoo.algorithms.maml import MAML


class ALFA(MAML):
    name = "alfa"
    title = "ALFA"
    paper = "Baik, Choi, Choi, Kim, Lee: Meta-Learning with Adaptive Hyperparameters. NeurIPS 2020."
    stops_gradient = "the mean gradients that the generator reads"
    deviations = (
        "The generated rates and decays are multiplied by learned ones for each tensor and step, and the weights keep "
        "1 - decay of themselves, as in the official code; the paper's update (recalled, not re-checked) has neither.",
        "The learned rates and decays have one entry for each inner step; the official code's have one more, which is "
        "never read.",
    )

    class Settings(MAML.Settings):
        weight_decay: NonNegativeFloat = 5e-4
        """The learned decays start at this times the inner rate."""

    settings: Settings

    def build(self) -> None:
        super().build()
        steps, tensors = self.settings.inner_steps, len(self.rates)
        self.limit_steps("rates and decays")
        rates = torch.tensor(list(self.rates.values())).unsqueeze(1).repeat(1, steps)
        self.step_rates = nn.Parameter(rates)
        self.step_decays = nn.Parameter(self.settings.weight_decay * rates)
        self.generator = nn.Sequential(
            nn.Linear(2 * tensors, 2 * tensors), nn.ReLU(), nn.Linear(2 * tensors, 2 * tensors)
        )

    def step(self, tasks: TaskBatch, step: int) -> None:
        """w <- (1 - decay) w - rate * gradient, both of them generated anew for each tensor."""
        gradients = tasks.gradients(tasks.support_loss())
        means = [tasks.weights[name].flatten(1).mean(dim=1) for name in self.rates]
        means += [gradients[name].detach().flatten(1).mean(dim=1) for name in self.rates]
        rates, decays = self.generator(torch.stack(means, dim=1)).chunk(2, dim=1)
        rates, decays = rates * self.step_rates[:, step], decays * self.step_decays[:, step]
        changes = {}
        for j, name in enumerate(self.rates):
            decayed = self.decayed(j, tasks.weights[name])
            changes[name] = -per_task(decays[:, j], decayed) - per_task(rates[:, j], gradients[name])
        tasks.update(changes)

    def decayed(self, number: int, weight: Tensor) -> Tensor:
        """What the decay of adapted tensor `number` is multiplied by: the tensor itself."""
        return weight


class ALFARandom(ALFA):
    """ALFA from a random initialisation that is drawn once and never learned."""

    name = "alfa_random"
    title = "ALFA (random initialisation)"

    def build(self) -> None:
        super().build()
        self.backbone.requires_grad_(False)
        self.step_decays.data.fill_(1.0)
        self.weight_decays = nn.ParameterList(
            torch.full_like(self.backbone.get_parameter(name), self.settings.weight_decay * rate)
            for name, rate in self.rates.items()
        )

    def decayed(self, number: int, weight: Tensor) -> Tensor:
        """The decay has a learned factor for every single weight, too."""
        return self.weight_decays[number] * weight


class ALFAL2F(ALFA, L2F):
    """L2F's attenuation once a task, with a differentiable embedding, and ALFA's steps."""

    name = "alfa_l2f"
    title = "ALFA + L2F"

    class Settings(ALFA.Settings, L2F.Settings):
        differentiable_embedding: bool = True

    settings: Settings
