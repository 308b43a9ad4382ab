"""Every line that a GPU would run, on a pretended one (`tests/pretended_gpu.py`): no mixing of places, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pretended_gpu import CPU, GPU, PretendedGpu, place
from tape import assert_equal, episodes
from test_checkpoint import crashing_at
from test_recorded_methods import DRAWS_ON_THE_HOST, make
from test_tf32 import Notes
from tiny import tiny_sets  # noqa: F401

from metazoo import evaluation, graphs, outer_loop, predicting, registry, training
from metazoo.algorithm import Algorithm
from metazoo.benchmarks.speed import bench
from metazoo.benchmarks.speed.shapes import Shape
from metazoo.episodes import Episodes
from metazoo.fast import forms
from metazoo.graphs import Replayed
from metazoo.meta_pass import MetaPass, Prediction
from metazoo.outer_step import OuterStep


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PretendedGpu]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gpu = PretendedGpu()
    gpu.install(monkeypatch)
    with gpu:
        yield gpu


def sent(batch: Episodes) -> Episodes:
    names = "support_x", "support_y", "query_x", "query_y"
    return replace(batch, **{name: getattr(batch, name).to(GPU) for name in names})


def test_what_cuda_refuses_is_refused(gpu: PretendedGpu) -> None:
    here, there = torch.ones(3), torch.ones(3, device=GPU)
    assert (here.device, there.device, (2 * there)[1:].device) == (CPU, GPU, GPU)
    for mixing in (lambda: here + there, lambda: there.add_(here), lambda: torch.zeros(()).add_(there.sum())):
        with pytest.raises(RuntimeError, match="same device"):
            mixing()
    with pytest.raises(TypeError):
        there.numpy()
    assert torch.equal((there + torch.tensor(2.0)).cpu(), torch.full((3,), 3.0))
    assert place(torch.func.vmap(lambda x: x.new_zeros(2) + x)(torch.ones(4, 2, device=GPU))) == "gpu"
    grown = torch.nn.Parameter(there)
    (gradient,) = torch.autograd.grad(grown.square().sum(), grown)
    assert gradient.device == GPU


def test_streams_that_do_not_wait_for_each_other_are_found_out(gpu: PretendedGpu) -> None:
    side: Any = torch.cuda.Stream(GPU)
    there = torch.ones(3, device=GPU)
    with torch.cuda.stream(side), pytest.raises(RuntimeError, match="stream 1 does not wait for stream 0"):
        there + 1
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        made = there + 1
    with pytest.raises(RuntimeError, match="stream 0 does not wait for stream 1"):
        there.zero_()  # which the other one may still be reading
    torch.cuda.current_stream().wait_stream(side)
    there.zero_()
    made.add_(1)
    with torch.cuda.stream(side), pytest.raises(RuntimeError, match="stream 1"):
        made.sum()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        assert made.sum().item() == 9


@pytest.mark.parametrize(
    ("waits", "waiting"),
    [
        (True, lambda there: there.sum().item()),
        (True, lambda there: bool(there.any())),
        (True, lambda there: there[there > 0]),
        (True, lambda there: there.nonzero()),
        (True, lambda there: there.tolist()),
        (True, lambda there: there.cpu()),
        (True, lambda there: there[[0, 1]]),
        (True, lambda there: there.new_tensor([1.0])),
        (True, lambda there: torch.tensor([1.0], device=GPU)),
        (True, lambda there: there.copy_(torch.ones(3))),
        (False, lambda there: there.copy_(torch.ones(3).pin_memory(), non_blocking=True)),
        (False, lambda there: torch.ones(3).pin_memory().to(GPU, non_blocking=True)),
        (False, lambda there: there + torch.arange(3, device=GPU)),
        (False, lambda there: there[1:].where(there[1:] > 0, 2.0)),
    ],
)
def test_what_waits_is_known(gpu: PretendedGpu, waits: bool, waiting: Any) -> None:
    there = torch.ones(3, device=GPU)
    waiting(there)
    assert len(gpu.waits) == waits
    torch.cuda.set_sync_debug_mode("error")
    if waits:
        with pytest.raises(RuntimeError, match="synchronizing"):
            waiting(there)
    else:
        waiting(there)


FORMS = cycle([*forms._FORMS["forward"], None]), cycle(["eager", "modules", None])
"""Of convolutions and of blocks, all of which come in turn; None is what a trial finds."""
METHODS = [(name, *(next(ways) for ways in FORMS)) for name in registry.algorithms()]


@pytest.mark.parametrize(("name", "convolution", "block"), METHODS)
def test_every_methods_passes(
    name: str, convolution: str | None, block: str | None, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded, and replayed on other episodes and weights, they give what a CPU gives, and nothing waits for them."""
    monkeypatch.setattr(graphs, "WATCHED_RUN", 2)
    here, there = make(name), make(name).to(GPU)
    ways = {f"METAZOO_{what}": way for what, way in (("CONVOLUTION", convolution), ("BLOCK", block)) if way}
    recorder, notes = graphs.recorder(GPU), list[str]()
    for asks, works in (
        (name in DRAWS_ON_THE_HOST, (learning(here), learning(there))),
        (False, (Prediction(here), Prediction(there))),
    ):
        passes = Replayed(works[1], recorder, "Passes", notes.append)
        with going(ways):
            for seed in (1, 2, 4, 3):
                passes(sent(episodes(seed)))
        assert passes.is_replaying is not asks
        for change in (1.0, 1.1):
            with torch.no_grad():  # weights are updated where they are
                for parameter in (*here.parameters(), *there.parameters()):
                    parameter.mul_(change)
            batch = sent(episodes(3))
            gpu.waits.clear()
            with going(ways):
                found = passes(batch)
            assert asks or not gpu.waits
            assert {tensor.device for tensor in found.values()} == {GPU}
            assert_equal({key: tensor.cpu() for key, tensor in found.items()}, works[0](episodes(3), OuterStep()))
    assert len(notes) == (name in DRAWS_ON_THE_HOST)
    for note in notes:
        assert note.startswith("Passes run operation by operation, not as one recorded CUDA graph: ")


@contextmanager
def going(ways: dict[str, str]) -> Iterator[None]:
    """While the block runs, these ways to compute are fixed; what a CPU gives is computed without."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, way in ways.items():
            patch.setenv(variable, way)
        yield


def learning(model: Algorithm) -> MetaPass:
    work = MetaPass(model, [parameter for group in model.outer_groups() for parameter in group.parameters], 0.5)
    work.counts_norms = True
    return work


CASES: dict[str, dict[str, Any]] = {
    "in parts": {"meta_batch": 3, "tasks_per_pass": 2, "gradient_clamp": 0.1, "record_gradients": True},
    "recomputed": {"algorithm": "cxgrad", "recompute": True, "settings": {"inner_steps": 1}},
    "from afar": {"source": "tiny_rgb", "images_on": "host", "augmentation": {"crop": 2, "jitter": 0.2}},
    "schedules": {
        "algorithm": "hypermaml",
        "settings": {"inner_steps": 1, "warm_up": 0.5, "mixing": 0.25},
        "epochs": 4,
    },
    "a bound": {"algorithm": "relationnet", "settings": {}, "images_on": "disk"},
    "numbers": {"source": "sinusoid", "ways": 1, "shots": 5, "backbone": {"name": "mlp"}},
}
OPTIONS = "tasks_per_pass", "record_gradients", "recompute", "images_on"

LOG_POINTS = {
    "outer_loop._averages",  # for the progress bar, and once an epoch
    "outer_loop._train_epoch",  # once an epoch
    "outer_loop._check_finite",  # at a checkpoint
    "gradient_norms.state",
    "gradient_norms.means",  # once an epoch
    "evaluation.episode_scores",  # after the last episode
}
"""Where the host waits for the GPU, other than in passes that are not recorded yet."""


class Watch:
    """What training steps and predictions wait for once they are replayed, and what is waited for between them."""

    def __init__(self, gpu: PretendedGpu, patch: pytest.MonkeyPatch):
        self.gpu = gpu
        self.replayed: dict[str, list[str]] = {}
        self.between: set[str] = set()
        self._end: int | None = None
        self._watch(patch, outer_loop.Trainer, "_step", lambda trainer: trainer.learning.is_replaying)
        self._watch(patch, predicting.Predictors, "__call__", lambda some: some.committee._passes[0].is_replaying)

    def _watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str, is_replayed: Callable[[Any], bool]) -> None:
        original = getattr(owner, name)

        def call(subject: Any, *given: Any) -> Any:
            waits, start, is_settled = self.gpu.waits, len(self.gpu.waits), is_replayed(subject)
            self.between |= set() if self._end is None else set(waits[self._end :])
            found = original(subject, *given)
            self._end = len(waits)
            if is_settled:
                self.replayed.setdefault(name, []).extend(waits[start:])
            return found

        patch.setattr(owner, name, call)

    def begin(self) -> None:
        """What comes before the first step or prediction from here on is not between two."""
        self._end = None


@pytest.mark.parametrize("case", CASES)
def test_whole_runs(
    case: str,
    tiny_sets: None,  # noqa: F811
    gpu: PretendedGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trained, resumed and tested, they come to what a CPU comes to; the host waits where it says something."""
    monkeypatch.setattr(outer_loop, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(predicting, "STACKED_TASKS", 4)
    monkeypatch.setattr(predicting, "GATHER_TASKS", 4)
    monkeypatch.setenv("METAZOO_CONVOLUTION", "looped")
    monkeypatch.setenv("METAZOO_BLOCK", "modules")
    changes = dict(CASES[case])
    options = {name: changes.pop(name) for name in OPTIONS if name in changes}
    config = tiny.config(
        **{"epochs": 2, "iterations_per_epoch": 6, "validation_episodes": 12, "outer_lr": 1e-4, **changes}
    )
    watch, logs = Watch(gpu, monkeypatch), []
    for device in ("cpu", "cuda"):
        given: dict[str, Any] = {"home": tmp_path / device, "device": device, "reporter": (notes := Notes()), **options}
        watch.begin()
        with crashing_at(1, monkeypatch):
            training.train(config, **given)
        watch.begin()
        run = training.train(config, **given)
        watch.begin()
        record = evaluation.evaluate(run, episodes=20, device=device, rules=["last"], reporter=notes)
        (score,) = (found.interval.mean for found in record.evaluations.values())
        logs.append([*(line["train_loss"] for line in run.metrics), score])
    assert logs[1] == pytest.approx(logs[0], rel=2e-3)
    assert not any("operation by operation" in note for note in notes.texts)
    assert watch.replayed == {"_step": [], "__call__": []}
    assert watch.between <= LOG_POINTS


@pytest.mark.parametrize(("method", "work"), [("maml", "training"), ("cxgrad", "evaluation")])
def test_both_sides_of_the_benchmark(
    method: str, work: bench.Work, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "shapes", lambda: {"tiny": Shape("tiny", 1, 16, 16, 1)})
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench, "matrix_gflops", lambda device: 1.0)
    monkeypatch.setenv("METAZOO_CONVOLUTION", "grouped")
    monkeypatch.setenv("METAZOO_BLOCK", "modules")
    found = bench.measure(method, "tiny", work, GPU, "tf32", tasks=1, rounds=1)
    assert found.tasks_per_second > 0 and found.ratio is not None
    assert gpu.recorded == 1 and gpu.replayed > 0
