"""Meta-GNA's diagnostics: the spread of samples' losses, and how samples share a step."""

from __future__ import annotations

import torch
from arbiters import assert_same, make
from torch.nn import functional as F

from metazoo.algorithms.metagna import MetaGNA
from metazoo.testing import tiny_algorithm, tiny_episodes, trace


def test_diagnostics_are_those_of_an_explicit_loop() -> None:
    algorithm, tasks = make(inner_steps=2), tiny_episodes()
    found = algorithm.diagnose(tasks)
    adapted = trace(algorithm, tasks).adapted
    network = algorithm.backbone
    start = {name: network.get_parameter(name) for name in algorithm.rates}
    for task in range(3):
        images, labels = tasks.support_x[task], tasks.support_y[task]
        own = {name: weight[task] for name, weight in adapted.items()}
        for when, weights in (("before", start), ("after", own)):
            outputs = torch.func.functional_call(network, weights, (images,))
            each = F.cross_entropy(outputs, labels, reduction="none")
            assert_same(found[f"loss_sd_{when}"][task], each.std().detach())
            assert_same(found[f"loss_ratio_{when}"][task], (each.max() / each.min()).detach())
        each = F.cross_entropy(network(images), labels, reduction="none")
        gradients = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(start.values()), retain_graph=True)])
                for loss in each
            ]
        )
        assert_same(found["gradient_norm_maml"][task], gradients.mean(dim=0).norm())
        part = gradients[each.topk(2).indices].sum(dim=0) / 6
        whole = gradients.mean(dim=0)
        assert_same(found["quartile_share_maml"][task], (part @ whole) / (whole @ whole))
    assert not any(value.requires_grad for value in found.values())


def test_diagnostics_see_the_scaled_gradients() -> None:
    algorithm, tasks = make(inner_steps=1, inner_lr={"body": 0.1, "head": 0.1}), tiny_episodes()
    found, start = algorithm.diagnose(tasks), dict(algorithm.backbone.named_parameters())
    changes = [(w - start[name]).flatten(1) / 0.1 for name, w in trace(algorithm, tasks).adapted.items()]
    assert_same(found["gradient_norm_metagna"], torch.cat(changes, dim=1).norm(dim=1).detach())
    algorithm.scales = lambda norms, sizes: norms
    plain = algorithm.diagnose(tasks)
    for what in ("gradient_norm", "quartile_share"):
        assert_same(plain[f"{what}_metagna"], plain[f"{what}_maml"])
        assert_same(plain[f"{what}_maml"], found[f"{what}_maml"])


def test_normalising_makes_samples_count_alike() -> None:
    """In a network that is sure of itself, the plain gradient of a sample grows with its loss."""
    algorithm, tasks = tiny_algorithm(MetaGNA), tiny_episodes(tasks=4, shots=4)
    algorithm.backbone.head.weight.data.mul_(6)
    assert isinstance(algorithm, MetaGNA)
    found = algorithm.diagnose(tasks)
    assert (found["loss_ratio_before"] > 3).all()
    plain, scaled = ((found[f"quartile_share_{what}"] - 0.25).abs() for what in ("maml", "metagna"))
    assert (scaled < 0.05).all() and (plain > 0.2).all()


def test_diagnostics_of_the_batchs_norm_share_what_maml_shares() -> None:
    """One factor for all samples of the whole network changes no sample's share."""
    found = make(per_sample=False, per_tensor=False).diagnose(tiny_episodes())
    assert_same(found["quartile_share_metagna"], found["quartile_share_maml"])
