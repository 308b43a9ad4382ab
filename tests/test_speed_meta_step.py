"""The two sides of the meta-step's timing compute the same thing."""

from __future__ import annotations

import torch

from metazoo.benchmarks.speed import meta_step
from metazoo.benchmarks.speed.meta_step import Shape, two_sides


def test_both_sides_give_the_same_meta_gradient(monkeypatch) -> None:
    """On torch's own modules and on ours: the gradients that each side leaves behind agree."""
    left: list[list[torch.Tensor]] = []

    def keep(step, module):
        def run(*arguments) -> None:
            step(*arguments)
            left.append([parameter.grad.clone() for parameter in module(arguments[0]).parameters()])

        return run

    monkeypatch.setattr(meta_step, "our_step", keep(meta_step.our_step, lambda algorithm: algorithm.backbone))
    monkeypatch.setattr(meta_step, "learn2learn_step", keep(meta_step.learn2learn_step, lambda maml: maml))
    for ours in (True, False):
        left.clear()
        for side in two_sides(Shape("tiny", 1, 16, 4, 1), 2, 1, torch.device("cpu"), ours):
            side()
        assert len(left) == 2
        for mine, theirs in zip(*left, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)
