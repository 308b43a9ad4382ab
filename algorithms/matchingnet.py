"""MatchingNet: a query takes the label of the support images it attends to."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metazoo import Metric, class_sums


class FullContext(nn.Module):
    """Embeddings that know the whole support set."""

    def __init__(self, features: int):
        super().__init__()
        self.support = nn.LSTM(features, features, batch_first=True, bidirectional=True)
        self.query = nn.LSTMCell(2 * features, features)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Support `[T, S, D]`, read in both directions as it is ordered, and queries `[T, Q, D]`, which look at it S
        times."""
        forwards, backwards = self.support(support)[0].chunk(2, dim=2)
        support = support + forwards + backwards
        hidden, cell = query, torch.zeros_like(query).flatten(0, 1)
        for _ in range(support.shape[1]):
            attention = (hidden @ support.mT).softmax(dim=2)
            inputs = torch.cat([query, attention @ support], dim=2)
            state, cell = self.query(inputs.flatten(0, 1), (hidden.flatten(0, 1), cell))
            hidden = state.view_as(query) + query
        return support, hidden


class MatchingNet(Metric):
    name = "matchingnet"
    title = "MatchingNet"
    paper = (
        "Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning. NeurIPS 2016."
    )
    deviations = (
        "Full-context embeddings are off by default: on the 1600 features of a Conv4 their two LSTMs have 71.7 million "
        "parameters, and predictions depend on the order of the support images.",
        "Batch norm uses the statistics of the task at test, too, so predictions are transductive; the code whose "
        "settings we take tests with running averages.",
    )

    class Settings(Metric.Settings):
        scoring: Literal["cosine", "cosine_x100"] = "cosine_x100"
        """The similarity that the attention is a softmax of: the cosine, as the paper has it, or 100 times its positive
        part, as CloserLook has it."""
        full_context_embeddings: bool = False
        """Embed the support set by a bidirectional LSTM over it, in the order of its labels, and the queries by an LSTM
        with attention over the result."""

    settings: Settings

    def build(self) -> None:
        if self.settings.full_context_embeddings:
            self.context = FullContext(self.backbone.features)

    def compare(self, support: Tensor, labels: Tensor, query: Tensor, ways: int) -> Tensor:
        """Logarithm of the attention that each class's support gets from every query."""
        if self.settings.full_context_embeddings:
            labels, order = labels.sort(dim=1, stable=True)
            support, query = self.context(support.take_along_dim(order.unsqueeze(2), dim=1), query)
        if self.settings.scoring == "cosine":
            squares = query.square().sum(dim=2, keepdim=True) * support.square().sum(dim=2).unsqueeze(1)
            similarity, floor = (query @ support.mT) * squares.clamp(min=1e-16).rsqrt(), 0.0
        else:
            query, support = (vectors / (vectors.norm(dim=2, keepdim=True) + 1e-5) for vectors in (query, support))
            similarity, floor = 100 * F.relu(query @ support.mT), 1e-6
        attention = similarity.softmax(dim=2)
        return (class_sums(attention.mT, labels, ways).mT + floor).log()

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood; the scores are not normalised once more."""
        return -scores.take_along_dim(labels.unsqueeze(2), dim=2).mean(dim=(1, 2))
