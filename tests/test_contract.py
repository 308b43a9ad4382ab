"""The contract suite passes for every built-in method, and finds faults that are planted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metazoo import contract, registry
from metazoo.algorithm import Outcome
from metazoo.algorithms.anil import ANIL
from metazoo.algorithms.boil import BOIL
from metazoo.algorithms.maml import MAML
from metazoo.outer_step import OuterStep


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(registry.algorithms()))
def test_built_in_methods(name: str, check: contract.Check) -> None:
    assert not check(registry.algorithm(name))


class Leaky(MAML):
    """Carries something of the last tasks over to the next."""

    name, title, paper = "leaky", "Leaky", "None."
    carried = 0.0

    def begin(self, tasks):
        tasks.weights["head.weight"] = tasks.weights["head.weight"] * (1 + type(self).carried)
        type(self).carried += float(tasks.episodes.support_x.mean())


class Mutating(MAML):
    """Writes into its meta-parameters while adapting."""

    name, title, paper = "mutating", "Mutating", "None."

    def begin(self, tasks):
        self.backbone.head.bias.data.add_(0.1)


class SecretlyAdaptsHead(BOIL):
    """Declares that the head stays, and moves it."""

    name, title, paper = "secret", "Secret", "None."

    def begin(self, tasks):
        tasks.weights["head.weight"] = self.backbone.head.weight.expand(len(tasks), -1, -1)
        self.rates["head.weight"] = 0.5


class ReadsQueryLabels(MAML):
    """Adapts on the query set as well."""

    name, title, paper = "cheat", "Cheat", "None."

    def step(self, tasks, step):
        loss = tasks.support_loss() + torch.nn.functional.cross_entropy(
            tasks.query_logits().flatten(0, 1), tasks.episodes.query_y.flatten()
        )
        tasks.descend(loss, self.rates)


class MixesTasks(MAML):
    """Averages the adapted heads of all tasks of a batch."""

    name, title, paper = "mixing", "Mixing", "None."

    def step(self, tasks, step):
        super().step(tasks, step)
        head = tasks.weights["head.weight"]
        tasks.weights["head.weight"] = head.mean(dim=0, keepdim=True).expand_as(head)


class DependsOnTaskOrder(MAML):
    """Treats the first task of a batch in another way."""

    name, title, paper = "ordered", "Ordered", "None."

    def begin(self, tasks):
        first = torch.zeros(len(tasks), 1, dtype=tasks.weights["head.bias"].dtype)
        first[0] = 1
        tasks.weights["head.bias"] = tasks.weights["head.bias"] + first * torch.arange(3)


class PositionOnly(MAML):
    """Reads a query image's label off its position."""

    name, title, paper = "position", "Position", "None."

    def predict(self, episodes):
        ways, queries = episodes.ways, episodes.query_y.shape[1]
        labels = torch.arange(queries) * ways // queries
        return torch.nn.functional.one_hot(labels, ways).double().expand(len(episodes), -1, -1)


class DetachedSteps(MAML):
    """Claims an exact meta-gradient and drops its second derivatives."""

    name, title, paper = "detached", "Detached", "None."

    def learn(self, episodes, outer=OuterStep()):
        return super().learn(episodes, replace(outer, first_order=True))


class DeadWeights(ANIL):
    """Has a meta-parameter that nothing reaches."""

    name, title, paper = "dead", "Dead", "None."

    def build(self):
        super().build()
        self.unused = torch.nn.Parameter(torch.zeros(3))


class FalselyInert(MAML):
    """Calls a parameter inert that learns."""

    name, title, paper = "inert", "Inert", "None."
    inert = ("backbone.head.bias",)


class Inductive(MAML):
    """Says that predictions do not depend on the other queries, on a backbone where they do."""

    name, title, paper = "inductive", "Inductive", "None."
    transductive = False


class KeepsGraph(MAML):
    name, title, paper = "graph", "Graph", "None."

    def predict(self, episodes):
        return self.learn(episodes).logits


class Raises(MAML):
    name, title, paper = "raises", "Raises", "None."

    def learn(self, episodes, outer=OuterStep()) -> Outcome:
        raise ZeroDivisionError("by design")


@pytest.mark.parametrize(
    ("method", "check", "sentence"),
    [
        (Leaky, contract.keeps_no_state, "losses after other tasks differ"),
        (Leaky, contract.tasks_do_not_mix, "differ"),
        (Mutating, contract.keeps_no_state, "changed backbone.head.bias outside the outer loop"),
        (SecretlyAdaptsHead, contract.adapts_what_it_declares, "moves the head while declaring"),
        (ReadsQueryLabels, contract.ignores_query_labels, "change with the query labels"),
        (MixesTasks, contract.tasks_do_not_mix, "losses one at a time differ"),
        (DependsOnTaskOrder, contract.tasks_do_not_mix, "losses in another order differ"),
        (PositionOnly, contract.ignores_order, "logits in another order differ"),
        (PositionOnly, contract.predicts_what_it_learns, "logits differ"),
        (DetachedSteps, contract.meta_gradient_is_exact, "by finite differences"),
        (DeadWeights, contract.every_parameter_learns, "no meta-gradient reaches unused"),
        (FalselyInert, contract.every_parameter_learns, "declares backbone.head.bias inert, but a meta-gradient"),
        (Inductive, contract.transduction_is_declared, "declares transductive = False"),
        (KeepsGraph, contract.predicts_what_it_learns, "carry a graph"),
    ],
)
def test_planted_faults(method: type[MAML], check: contract.Check, sentence: str) -> None:
    assert sentence in check(method)
    assert not check(MAML)


def test_a_check_that_raises_is_a_finding() -> None:
    findings = contract.check(Raises)
    assert len(findings) == len(contract.CHECKS)
    assert any(finding.fault == "raised ZeroDivisionError: by design" for finding in findings)


def test_a_method_without_a_paper() -> None:
    class Nameless(MAML):
        paper = ""

    assert contract.declares_itself(Nameless) == "`paper` is empty"
