"""What evaluation does not do: keep graphs, read values on the way, or wait for images."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from metazoo import TaskBatch, registry
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.evaluation import episode_scores
from metazoo.placement import Place
from metazoo.predicting import GATHER_TASKS
from metazoo.testing import tiny_algorithm, tiny_episodes

CPU = torch.device("cpu")
METHODS = registry.algorithms()

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero"}
"""Functions of tensors for which the host waits for the device."""


class Saved(saved_tensors_hooks):
    """Counts what autograd saves."""

    def __init__(self) -> None:
        self.tensors = 0
        super().__init__(self._pack, lambda packed: packed)

    def __enter__(self) -> Saved:  # type: ignore[override]
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        self.tensors += 1
        return tensor


@pytest.fixture
def in_query_pass(monkeypatch: pytest.MonkeyPatch) -> Saved:
    """What autograd saves of query inputs and of features."""
    saved = Saved()
    for name in ("query_logits", "embed"):
        original = getattr(TaskBatch, name)

        def watched(tasks: TaskBatch, *arguments: Any, original: Any = original, **options: Any) -> Any:
            with saved:
                return original(tasks, *arguments, **options)

        monkeypatch.setattr(TaskBatch, name, watched)
    return saved


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_prediction_keeps_no_graph_of_the_queries(name: str, in_query_pass: Saved) -> None:
    algorithm, episodes = tiny_algorithm(METHODS[name]), tiny_episodes(tasks=1)
    algorithm.learn(episodes)
    in_training, in_query_pass.tensors = in_query_pass.tensors, 0
    with Saved() as everywhere:
        logits = algorithm.predict(episodes)
    assert in_query_pass.tensors == 0 and not logits.requires_grad
    assert everywhere.tensors == 0 or algorithm.evaluation_steps
    # Reptile trains on support and query images together, by first-order steps.
    assert in_training > 0 or name == "reptile"


def test_nor_with_the_kernels_for_cpus(in_query_pass: Saved) -> None:
    algorithm = tiny_algorithm(METHODS["cxgrad"], backbone=Conv4.Settings(filters=16))
    algorithm.learn(tiny_episodes())
    assert in_query_pass.tensors > 0
    in_query_pass.tensors = 0
    algorithm.predict(tiny_episodes())
    assert in_query_pass.tensors == 0


@pytest.mark.parametrize("name", ["maml", "cxgrad"])
def test_the_graph_of_one_inner_step_is_all_there_is(name: str) -> None:
    """First-order steps: each pass saves as much as the one before, and its gradients make no graph of their own."""
    counts = []
    for steps in (1, 2, 3):
        method: Any = METHODS[name]
        algorithm = tiny_algorithm(method, method.Settings(inner_steps=steps))
        with Saved() as saved:
            algorithm.predict(tiny_episodes())
        counts.append(saved.tensors)
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


class Reading(TorchFunctionMode):
    """Notes what reads values from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(function, "__name__", "")) in READS:
            self.seen.append(name)
        return function(*args, **kwargs or {})


class Ready:
    """Episodes that are on the device."""

    queries = 6
    place: Place | None = None

    def __init__(self, episodes: int):
        self.episodes = tiny_episodes(tasks=episodes)

    def batch(self, start: int, count: int) -> Episodes:
        return self.episodes.select(slice(start, start + count))


@pytest.mark.parametrize("tasks_per_pass", [1, 8])
@pytest.mark.parametrize("name", ["maml", "cxgrad", "protonet"])
def test_scores_are_read_once_at_the_end(name: str, tasks_per_pass: int) -> None:
    models = [tiny_algorithm(METHODS[name], seed=seed) for seed in range(2)]
    stream = Ready(2 * GATHER_TASKS)
    with Reading() as reading:
        scores = episode_scores({"one": models[:1], "both": models}, stream, 2 * GATHER_TASKS, CPU, tasks_per_pass)
    assert reading.seen == ["tolist"] * 2
    assert [len(found) for found in scores.values()] == [2 * GATHER_TASKS] * 2


def test_batches_from_afar_are_gathered_while_others_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Far(Ready):
        """Episodes of images that have a way to go; it says when it has been asked for the second batch."""

        place = Place("disk", 2**62, CPU)

        def batch(self, start: int, count: int) -> Episodes:
            if start:
                second.set()
            return super().batch(start, count)

    second = Event()
    algorithm: Any = tiny_algorithm(METHODS["protonet"])
    predict = algorithm.predict

    def patient(episodes: Episodes) -> Tensor:
        assert second.wait(timeout=60)
        return predict(episodes)

    monkeypatch.setattr(algorithm, "predict", patient)
    count = 2 * GATHER_TASKS
    assert len(episode_scores({"it": [algorithm]}, Far(count), count, CPU)["it"]) == count
