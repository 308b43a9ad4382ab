"""BOIL: MAML that adapts the body and never the head, so that representations must change."""

from __future__ import annotations

from metazoo import Rates
from metazoo.algorithms.maml import MAML


class BOIL(MAML):
    name = "boil"
    title = "BOIL"
    paper = "Oh, Yoo, Kim, Yun: BOIL: Towards Representation Change for Few-shot Learning. ICLR 2021."
    deviations = (
        "Adam runs through; the official code makes a new optimiser every 100 iterations, which restarts its moments.",
    )

    class Settings(MAML.Settings):
        inner_lr: Rates = {"body": 0.5, "norm": 0.5}
        inner_steps: int = 1
