"""A pass: tasks that are adapted together. As a function of episodes without side effects it can be made again,
recorded and replayed (`metazoo.graphs`), and its results of several parts of a meta-batch can be added up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from metazoo import objectives
from metazoo.algorithm import Algorithm
from metazoo.episodes import Episodes
from metazoo.gradient_norms import NormSums
from metazoo.outer_step import OuterStep

Results: TypeAlias = dict[Hashable, Tensor]
"""What a pass gives, by name; tensors of their own, without a graph."""


class MetaPass:
    """The part that some tasks have in an outer step.

    Its results are `loss` and `score`, sums over the tasks; the gradients of `scale` times the loss; and with
    `counts_norms` those of the inner loop's gradients.
    """

    def __init__(self, model: Algorithm, parameters: Sequence[nn.Parameter], scale: float):
        self.model, self.parameters, self.scale = model, list(parameters), scale
        self.counts_norms = False

    def __call__(self, part: Episodes, outer: OuterStep) -> Results:
        norms = NormSums() if self.counts_norms else None
        outcome = self.model.learn(part, replace(outer, gradient_norms=norms))
        for parameter in self.parameters:
            parameter.grad = None
        (outcome.losses.sum() * self.scale).backward(inputs=self.parameters)
        results: Results = {
            "loss": outcome.losses.detach().sum(),
            "score": objectives.scores(outcome.logits.detach(), part.query_y).sum(),
        }
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                results["gradient", number] = parameter.grad
                parameter.grad = None
        if norms is not None:
            results |= {("norms", name): total for name, total in norms.totals.items()}
        return results

    def give_gradients(self, results: Results) -> None:
        """Let the parameters have the gradients that a pass, or several together, have found."""
        for number, parameter in enumerate(self.parameters):
            parameter.grad = results.get(("gradient", number))

    def norms(self, results: Results) -> dict[Any, Tensor]:
        """What `NormSums` has counted, by tensor."""
        return {name[1]: total for name, total in results.items() if isinstance(name, tuple) and name[0] == "norms"}


class Prediction:
    """What validation and test ask of a method: `outputs`, the query outputs `[T, Q, N]` after adaptation."""

    def __init__(self, model: Algorithm):
        self.model = model

    def __call__(self, part: Episodes, outer: OuterStep) -> Results:
        return {"outputs": self.model.predict(part).detach()}


def together(make: Callable[[Episodes], Results], parts: Sequence[Episodes]) -> Results:
    """The sum of the results of a pass over every part. A pass may overwrite what the one before it has given."""
    total = make(parts[0])
    if len(parts) > 1:
        total = {name: tensor.clone() for name, tensor in total.items()}
    for part in parts[1:]:
        for name, tensor in make(part).items():
            if name in total:
                total[name] += tensor
            else:
                total[name] = tensor.clone()
    return total
