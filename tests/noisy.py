"""A plugin for tests: MAML with random numbers in training, so that a resumed run needs the generator's state."""

from __future__ import annotations

from dataclasses import replace

import torch

from metazoo import Episodes, Outcome, OuterStep
from metazoo.algorithms.maml import MAML


class Noisy(MAML):
    name = "noisy"
    title = "Noisy MAML"
    paper = "none"

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        noise = 0.1 * torch.randn_like(episodes.support_x)
        return super().learn(replace(episodes, support_x=episodes.support_x + noise), outer)
