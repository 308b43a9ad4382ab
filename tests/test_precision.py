"""Training in bfloat16: what it changes and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metazoo import assembly, registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4, Mlp, create
from metazoo.config import RunConfig, TrainingSettings, identity
from metazoo.data.inputs import ImageInputs
from metazoo.errors import UserError
from metazoo.fast import blocks, native
from metazoo.testing import tiny_algorithm, tiny_episodes

needs_kernels = pytest.mark.skipif(native.kernels(torch.bfloat16) is None, reason="there is no C compiler here")


def algorithm_of(name: str, precision: Any) -> Algorithm:
    method: Any = registry.algorithm(name)
    settings = method.Settings(**{"inner_steps": 1} if "inner_steps" in method.Settings.model_fields else {})
    algorithm = tiny_algorithm(method, settings, Conv4.Settings(filters=16)).float()
    algorithm.backbone.compute_in(precision)
    return algorithm


def meta_step(algorithm: Algorithm, together: bool = False) -> dict[str, Tensor]:
    drawn = tiny_episodes(2, shots=5, queries=5)
    episodes = replace(drawn, support_x=drawn.support_x.float(), query_x=drawn.query_x.float())
    algorithm.zero_grad()
    outcomes = [algorithm.learn(chunk) for chunk in episodes.chunks(2 if together else 1)]
    torch.cat([outcome.losses for outcome in outcomes]).sum().backward()
    gradients = {n: p.grad.clone() for n, p in algorithm.named_parameters() if p.grad is not None}
    return gradients | {"losses": torch.cat([outcome.losses.detach() for outcome in outcomes])}


@pytest.mark.parametrize("fused", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("name", ["anil", "boil", "cxgrad", "fomaml", "maml", "protonet"])
def test_a_meta_step_is_close_to_float32s(monkeypatch: pytest.MonkeyPatch, name: str, fused: bool) -> None:
    if not fused:
        monkeypatch.setattr(blocks, "fits", lambda maps, weight, dtype: False)
    exact, rounded = meta_step(algorithm_of(name, "float32")), meta_step(algorithm_of(name, "bfloat16"))
    assert exact.keys() == rounded.keys()
    torch.testing.assert_close(rounded["losses"], exact["losses"], atol=0.1, rtol=0.1)
    one, other = (torch.cat([step[key].flatten() for key in exact if key != "losses"]) for step in (exact, rounded))
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())
    assert torch.cosine_similarity(one, other, dim=0) > 0.95
    assert not torch.equal(one, other)


@pytest.mark.parametrize("way", ["eager", "modules"])
@pytest.mark.parametrize("name", ["anil", "cxgrad", "maml"])
def test_stacked_tasks_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str, way: str) -> None:
    exact = meta_step(algorithm_of(name, "float32"))
    monkeypatch.setenv("METAZOO_BLOCK", way)
    monkeypatch.setenv("METAZOO_CONVOLUTION", "looped")
    rounded = meta_step(algorithm_of(name, "bfloat16"), together=True)
    torch.testing.assert_close(rounded["losses"], exact["losses"], atol=0.1, rtol=0.1)
    one, other = (torch.cat([step[key].flatten() for key in exact if key != "losses"]) for step in (exact, rounded))
    assert 0.95 < torch.cosine_similarity(one, other, dim=0) < 1 - 1e-6


@needs_kernels
def test_maps_are_kept_in_bfloat16_between_blocks_only() -> None:
    network = create(Conv4.Settings(filters=16), (3, 16, 16), 3)
    network.compute_in("bfloat16")
    given: list[torch.dtype] = []
    for block in list(network.body)[:4]:
        block.register_forward_hook(lambda module, inputs, output: given.append(output.dtype))
    assert network(torch.rand(4, 3, 16, 16)).dtype == torch.float32
    assert given == [torch.bfloat16] * 3 + [torch.float32]
    network.insert("identity", nn.Identity(), after="block2")
    network.compute_in("bfloat16")
    given.clear()
    network(torch.rand(4, 3, 16, 16))
    assert given == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]


@needs_kernels
def test_rounding_is_to_the_nearest() -> None:
    """What the kernels store is what torch rounds the float32 values to."""
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    options = {"padding": 1, "eps": 1e-5, "slope": 0.01, "side": 2}
    exact, rounded = (
        blocks.block(images, weight, None, torch.ones(16), torch.zeros(16), **options, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(rounded, exact.bfloat16())


def test_the_default_leaves_configs_and_names_of_runs_as_they_were() -> None:
    plain, half = RunConfig(algorithm="maml", source="glyphs"), TrainingSettings(precision="bfloat16")
    assert "precision" not in plain.model_dump(mode="json")["training"]
    changed = plain.model_copy(update={"training": half})
    assert changed.model_dump(mode="json")["training"]["precision"] == "bfloat16"
    assert identity(plain, "data", "code") != identity(changed, "data", "code")


def test_a_run_in_bfloat16() -> None:
    config = RunConfig(
        algorithm="maml", source="cifar_fs", size=16, training=TrainingSettings(precision="bfloat16"), ways=3
    )
    model = assembly.build(config, ImageInputs(channels=3, mean=[0.5] * 3, std=[0.2] * 3))
    assert [block.precision for block in list(model.backbone.body)[:4]] == ["bfloat16"] * 4


def test_a_network_without_the_choice_says_so() -> None:
    network = create(Mlp.Settings(), (2,), 1)
    network.compute_in("float32")
    with pytest.raises(UserError, match="Only conv4"):
        network.compute_in("bfloat16")
