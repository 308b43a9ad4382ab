"""Adaptation watched step by step: what figures are made from is what prediction does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call

from metazoo import Incompatible, InnerLoop, registry
from metazoo.algorithms.alfa import ALFA
from metazoo.algorithms.anil import ANIL
from metazoo.algorithms.cml import CML
from metazoo.algorithms.cxgrad import CxGrad
from metazoo.algorithms.maml import MAML
from metazoo.algorithms.mamlpp import MAMLPP
from metazoo.algorithms.protonet import ProtoNet
from metazoo.testing import tiny_algorithm, tiny_episodes

INNER_LOOPS = sorted(name for name, method in registry.algorithms().items() if issubclass(method, InnerLoop))


def at_start(algorithm: Any) -> torch.Tensor:
    """Query outputs of the meta-learned initialisation, task by task and by torch alone."""
    weights = dict(algorithm.backbone.named_parameters())
    with torch.no_grad():
        return torch.stack([functional_call(algorithm.backbone, weights, (x,)) for x in tiny_episodes().query_x])


@pytest.mark.parametrize("name", INNER_LOOPS)
def test_the_last_step_is_the_prediction(name: str) -> None:
    algorithm: Any = tiny_algorithm(registry.algorithms()[name])
    episodes = tiny_episodes()
    *_, tasks = algorithm.adaptation(episodes)
    assert torch.equal(tasks.query_logits(), algorithm.predict(episodes))
    assert tasks.first_network is not None and not tasks.query_logits().requires_grad


@pytest.mark.parametrize("method", [MAML, ANIL])
def test_the_first_network_is_the_initialisation(method: type[InnerLoop]) -> None:
    algorithm, episodes = tiny_algorithm(method), tiny_episodes()
    *_, tasks = algorithm.adaptation(episodes, 2)
    with torch.no_grad():
        outputs, _ = tasks.first_network.tapped(episodes.query_x)
    torch.testing.assert_close(outputs, at_start(algorithm), atol=1e-12, rtol=0)
    assert not torch.equal(outputs, tasks.query_logits())
    assert torch.equal(tasks.outputs(query=True), tasks.query_logits())
    torch.testing.assert_close(tasks.outputs(query=True, at_start=True), outputs, atol=1e-12, rtol=0)
    support = functional_call(algorithm.backbone, dict(algorithm.backbone.named_parameters()), (episodes.support_x[2],))
    torch.testing.assert_close(tasks.outputs(query=False, at_start=True)[2], support, atol=1e-12, rtol=0)


def test_rescaling_before_the_first_step_shows_in_the_weights_and_not_in_the_outputs() -> None:
    algorithm, episodes = tiny_algorithm(CxGrad, CxGrad.Settings(context_size=5)), tiny_episodes()
    (tasks,) = algorithm.adaptation(episodes, 1)
    assert tasks.first_network is not None and isinstance(algorithm, CxGrad)
    with torch.no_grad():
        outputs, _ = tasks.first_network.tapped(episodes.query_x)
    torch.testing.assert_close(outputs, at_start(algorithm), atol=1e-3, rtol=0)
    factors = algorithm.scaler(torch.zeros(5, dtype=torch.float64))
    for factor, name in zip(factors, algorithm.scaled, strict=True):
        norms = tasks.first_network.adapted[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, factor.expand(3), atol=1e-12, rtol=0)


def test_the_first_network_of_mamlpp_has_the_first_steps_batch_norm() -> None:
    algorithm, episodes = tiny_algorithm(MAMLPP, MAMLPP.Settings(inner_steps=2)), tiny_episodes()
    assert isinstance(algorithm, MAMLPP)
    for name in algorithm.norms:
        algorithm.backbone.get_parameter(name).data[1] += 1
    (tasks,) = algorithm.adaptation(episodes, 1)
    assert tasks.first_network is not None
    for name in algorithm.norms:
        assert torch.equal(tasks.first_network.shared[name], algorithm.backbone.get_parameter(name)[0])


def test_taps_of_a_network_are_its_modules_outputs() -> None:
    algorithm, episodes = tiny_algorithm(MAML), tiny_episodes()
    (tasks,) = algorithm.adaptation(episodes, 1)
    with torch.no_grad():
        outputs, tapped = tasks.network.tapped(episodes.query_x, ("body.block1", "body.flatten"))
        features, _ = tasks.network.part("body", episodes.query_x)
    assert torch.equal(outputs, tasks.query_logits()) and torch.equal(tapped["body.flatten"], features)
    assert tapped["body.block1"].shape == (3, 6, 4, 8, 8)


def test_steps_beyond_those_trained_are_taken_where_the_method_has_them() -> None:
    longer = tiny_algorithm(MAML, MAML.Settings(inner_steps=2, evaluation_steps=4)).predict(tiny_episodes())
    *_, tasks = tiny_algorithm(MAML, MAML.Settings(inner_steps=2)).adaptation(tiny_episodes(), 4)
    assert torch.equal(tasks.query_logits(), longer)
    with pytest.raises(Incompatible, match="ALFA learns rates and decays for each of its 2 inner steps"):
        next(iter(tiny_algorithm(ALFA, ALFA.Settings(inner_steps=2)).adaptation(tiny_episodes(), 3)))


def test_a_wrapper_shows_its_base_and_a_metric_method_has_nothing_to_show() -> None:
    episodes = tiny_episodes()
    wrapped = tiny_algorithm(CML)
    *_, tasks = wrapped.adaptation(episodes)
    assert torch.equal(tasks.query_logits(), wrapped.predict(episodes))
    assert wrapped.evaluation_steps == 5 and tiny_algorithm(ProtoNet).evaluation_steps == 0
    limited = tiny_algorithm(CML, CML.Settings(base="alfa", base_settings={"inner_steps": 2}))
    assert (limited.step_limit, wrapped.step_limit) == (2, None)
    with pytest.raises(Incompatible, match="ProtoNet has no inner steps"):
        tiny_algorithm(ProtoNet).adaptation(episodes)
