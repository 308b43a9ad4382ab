"""ProtoNet: a query belongs to the class whose mean embedding is nearest."""

from __future__ import annotations

from torch import Tensor

from metazoo import Metric, class_means


class ProtoNet(Metric):
    name = "protonet"
    title = "ProtoNet"
    paper = "Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017."
    deviations = (
        "Batch norm uses the statistics of the task at test, too, so predictions are transductive; the official code "
        "tests with running averages.",
    )

    def compare(self, support: Tensor, labels: Tensor, query: Tensor, ways: int) -> Tensor:
        """Minus the squared distance of every query to the mean of each class's support."""
        prototypes = class_means(support, labels, ways)
        return -(query.unsqueeze(2) - prototypes.unsqueeze(1)).square().sum(dim=3)
