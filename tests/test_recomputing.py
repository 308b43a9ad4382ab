"""What is computed anew for its derivatives has the same derivatives, in less memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tape
import tiny
import torch
from live import LiveBytes
from tape import Tapes, assert_equal, episodes, kept
from tiny import tiny_sets  # noqa: F401
from torch import Tensor, nn

from metazoo import registry, training
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.errors import Incompatible
from metazoo.fast import native
from metazoo.graphs import Replayed
from metazoo.meta_pass import MetaPass, Results
from metazoo.outer_step import OuterStep
from metazoo.recomputing import Recomputing
from metazoo.testing import tiny_algorithm, tiny_episodes

ROOT = Path(__file__).parent.parent
SECOND_ORDER = ("maml", "mamlpp", "cxgrad", "l2f", "metasgd", "alfa", "metagna", "mgaug", "warpmaml")


@pytest.fixture
def without_kernels() -> Iterator[None]:
    with native.set_aside():
        yield


def meta_pass(name: str, filters: int = 4, size: int = 16) -> MetaPass:
    model = tiny_algorithm(registry.algorithm(name), size=size, backbone=Conv4.Settings(filters=filters))
    return MetaPass(model, [parameter for group in model.outer_groups() for parameter in group.parameters], 1.0)


def recomputed(work: MetaPass, outer: OuterStep = OuterStep(), tasks: int = 2) -> Results:
    work.model.backbone.recomputing = Recomputing()
    found = kept(work(tiny_episodes(tasks), outer))
    work.model.backbone.recomputing = None
    return found


def assert_alike(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("name", registry.algorithms())
def test_every_methods_meta_gradient_is_the_same(name: str) -> None:
    work = meta_pass(name)
    work.counts_norms = True
    assert_alike(recomputed(work), work(tiny_episodes(2), OuterStep()))


@pytest.mark.parametrize("name", ["maml", "cxgrad", "anil", "cml"])
def test_so_it_is_for_one_task_in_first_order_in_schedules_and_with_the_cpus_kernels(name: str) -> None:
    work = meta_pass(name, filters=16)
    for outer in (OuterStep(), OuterStep(first_order=True), OuterStep(epoch=0, epochs=100)):
        assert_alike(recomputed(work, outer, tasks=1), work(tiny_episodes(1), outer))


def peak(work: MetaPass, *, anew: bool) -> int:
    work.model.backbone.recomputing = Recomputing() if anew else None
    with LiveBytes() as live:
        work(tiny_episodes(1, size=28), OuterStep())
    return live.peak


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_it_takes_less_memory(name: str) -> None:
    work = meta_pass(name, size=28)
    steps = getattr(work.model.settings, "inner_steps", 5)
    assert peak(work, anew=True) < peak(work, anew=False) * (0.9 if steps == 1 else 0.5)


def test_memory_does_not_grow_with_the_number_of_inner_steps(without_kernels: None) -> None:
    method = registry.algorithm("maml")
    peaks = {}
    for steps in (2, 8):
        model = tiny_algorithm(method, method.Settings.model_validate({"inner_steps": steps}), size=28)
        peaks[steps] = peak(MetaPass(model, list(model.parameters()), 1.0), anew=True)
    assert peaks[8] < 1.2 * peaks[2]


@pytest.mark.usefixtures("without_kernels")
def test_it_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "one_hot", tape.one_hot)
    work = meta_pass("cxgrad")
    work.model.backbone.recomputing = Recomputing()
    passes = Replayed(work, Tapes())
    for seed in range(6):
        found = kept(passes(episodes(seed)))
        assert_equal(found, work(episodes(seed), OuterStep()))
    assert passes.is_replaying


@pytest.mark.usefixtures("tiny_sets")
def test_a_training_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    plain = training.train(tiny.config(), home=tmp_path / "plain")
    anew = training.train(tiny.config(), home=tmp_path / "anew", recompute=True)
    assert plain.name == anew.name, "it is no part of what a run is"
    for line, other in zip(anew.metrics, plain.metrics, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


def curved(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = (x @ weight).tanh()
    return y.square(), y.exp().sum(dim=0)


def test_first_and_second_derivatives_are_those_of_the_function() -> None:
    x, weight = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    recomputing = Recomputing()
    assert torch.autograd.gradcheck(lambda *given: recomputing(curved, *given), (x, weight))
    assert torch.autograd.gradgradcheck(lambda *given: recomputing(curved, *given), (x, weight))


def test_an_output_that_nothing_depends_on_and_an_argument_without_a_gradient_are_no_matter() -> None:
    x, weight = torch.randn(3, 3), torch.randn(3, 3, requires_grad=True)
    found, _ = Recomputing()(curved, x, weight)
    (first,) = torch.autograd.grad(found.sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    expected, _ = curved(x, weight)
    (first_expected,) = torch.autograd.grad(expected.sum(), weight, create_graph=True)
    assert torch.equal(first, first_expected)
    torch.testing.assert_close(second, torch.autograd.grad(first_expected.square().sum(), weight)[0])


def test_where_no_gradient_is_asked_for_it_is_just_called() -> None:
    calls: list[bool] = []

    def counted(x: Tensor) -> tuple[Tensor]:
        calls.append(torch.is_grad_enabled())
        return (x * x,)

    recomputing, x = Recomputing(), torch.ones(2, requires_grad=True)
    with torch.no_grad():
        recomputing(counted, x)
    recomputing(counted, x.detach())
    assert calls == [False, True]


def test_the_latest_call_is_not_made_again_for_its_first_derivative() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> tuple[Tensor]:
        calls.append(len(calls))
        return (x**3,)

    recomputing, x = Recomputing(), torch.ones(2, requires_grad=True)
    (first,), (second,) = recomputing(counted, x), recomputing(counted, x)
    (gradient,) = torch.autograd.grad(second.sum(), x, create_graph=True)
    assert len(calls) == 2
    torch.autograd.grad(gradient.sum(), x)
    assert len(calls) == 3
    torch.autograd.grad(first.sum(), x)
    assert len(calls) == 4


def test_there_is_no_third_derivative() -> None:
    x = torch.ones(2, requires_grad=True)
    (y,) = Recomputing()(lambda x: (x**4,), x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(first.sum(), x, create_graph=True)


def test_a_module_that_uses_a_learned_tensor_of_another_is_refused() -> None:
    work = meta_pass("maml")
    hidden = nn.Parameter(torch.ones((), dtype=torch.float64))

    class Peeking(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return hidden * maps

    backbone = work.model.backbone
    backbone.insert("peeking", Peeking(), after="block1.pool")
    algorithm: Algorithm = type(work.model)(backbone, work.model.settings)
    work = MetaPass(algorithm, [*algorithm.parameters(), hidden], 1.0)
    assert ("gradient", len(list(algorithm.parameters()))) in work(tiny_episodes(1), OuterStep())
    with pytest.raises(Incompatible, match="without --recompute"):
        recomputed(work)


def test_the_table_is_that_of_the_record() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "benchmarks" / "results" / "speed_recompute_cpu.json").read_text(encoding="utf-8"))
    rows = {(row["method"], row["kernels"], row["recomputed"]): row for row in record["measured"]}
    for method, kernels in {key[:2] for key in rows}:
        kept, anew = rows[method, kernels, False], rows[method, kernels, True]
        figures = [f"{row['peak_mb']:.0f}" for row in (kept, anew)] + [f"{row['seconds']:.2f}" for row in (kept, anew)]
        blocks = "kernels for CPUs" if kernels else "torch's modules"
        assert "| " + " | ".join([blocks, method, *figures]) + " |" in page.splitlines()
