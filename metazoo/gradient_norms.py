"""Norms of gradients during meta-training: summed on the device as they come, read once an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PARTS = 10
"""An epoch's iterations are averaged in this many parts, one after another."""


class NormSums:
    """The sum of the L2 norms of each tensor's gradients and their number: one tensor `[2]` by the tensor's name."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Count the gradients `[T, ...]` of T tasks, by the tensors' names. It only queues work on the device."""
        for name, gradient in gradients.items():
            norms = torch.linalg.vector_norm(gradient.detach().flatten(1), dim=1)
            total = torch.stack([norms.sum(dtype=torch.float64), norms.new_full((), len(norms), dtype=torch.float64)])
            self.totals[name] = self.totals[name] + total if name in self.totals else total


class MeanNorms:
    """The mean L2 norm of each tensor's gradients in every part of an epoch.

    `add` only queues work on the device; `means` and `state` wait for it.
    """

    def __init__(self, parts: int):
        self.parts, self.part = parts, 0
        self._totals: dict[str, Tensor] = {}

    def add(self, totals: Mapping[str, Tensor]) -> None:
        """Count what `NormSums` has found, in the part at hand."""
        for name, total in totals.items():
            if name not in self._totals:
                self._totals[name] = torch.zeros(self.parts, 2, dtype=torch.float64, device=total.device)
            self._totals[name][self.part] += total

    def means(self) -> dict[str, list[float | None]]:
        """The mean norm of each part by the tensors' names, to 6 digits; None for a part in which there was none."""
        return {
            name: [float(f"{total / count:.6g}") if count else None for total, count in totals.tolist()]
            for name, totals in self._totals.items()
        }

    def state(self) -> dict[str, Any]:
        """What `load` takes, on any device."""
        return {
            "sums": {name: totals[:, 0].clone() for name, totals in self._totals.items()},
            "counts": {name: [int(count) for count in totals[:, 1].tolist()] for name, totals in self._totals.items()},
        }

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._totals = {
            name: torch.stack([sums.cpu(), torch.tensor(state["counts"][name], dtype=torch.float64)], dim=1).to(device)
            for name, sums in state["sums"].items()
        }

    def clear(self) -> None:
        self._totals = {}


class GradientRecord:
    """What a training records of its gradients.

    Attributes:
        inner: the gradient of each task's support loss w.r.t. each adapted tensor of the backbone, at every inner step
            where it moves that tensor; at the weights the step starts from.
        outer: the meta-gradient of each tensor of the backbone, as the outer loop has it before it is clamped.
    """

    def __init__(self, iterations_per_epoch: int):
        self.iterations = iterations_per_epoch
        parts = min(PARTS, iterations_per_epoch)
        self.inner, self.outer = MeanNorms(parts), MeanNorms(parts)

    def enter(self, iteration: int) -> None:
        """Iteration `iteration` (of the whole training, from 0) is next."""
        self.inner.part = self.outer.part = iteration % self.iterations * self.inner.parts // self.iterations

    def close_epoch(self, iteration: int) -> dict[str, Any]:
        """The epoch that ended after `iteration` iterations as a JSON value, and forget it.

        `iterations` has the last iteration of every part, `inner` and `outer` the mean norms in it by tensor.
        """
        parts = self.inner.parts
        ends = [iteration - self.iterations - -self.iterations * (part + 1) // parts for part in range(parts)]
        norms = {"iterations": ends, "inner": self.inner.means(), "outer": self.outer.means()}
        self.inner.clear()
        self.outer.clear()
        return norms

    def state(self) -> dict[str, Any]:
        return {"inner": self.inner.state(), "outer": self.outer.state()}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up the epoch that `state` was taken in."""
        self.inner.load(state["inner"], device)
        self.outer.load(state["outer"], device)
