"""What a GPU computes is what a CPU computes, by every way there is. With a GPU, run

pytest -n0 tests/test_gpu.py tests/test_images.py

Without one, and where it is not asked for by name, all of it is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tape import episodes, kept
from test_checkpoint import crashing_at
from test_recorded_methods import DRAWS_ON_THE_HOST, make
from test_tf32 import Notes
from tiny import tiny_sets  # noqa: F401

from metazoo import evaluation, graphs, hardware, memory, outer_loop, registry, training
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.benchmarks.speed import bench
from metazoo.committee import Committee
from metazoo.episodes import Episodes
from metazoo.fast import blocks, compiled, forms, native, trials
from metazoo.graphs import Replayed
from metazoo.meta_pass import MetaPass, Prediction, Results
from metazoo.outer_step import OuterStep
from metazoo.precision import Precision, arithmetic, has_tf32
from metazoo.testing import tiny_algorithm

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and to be named"),
    pytest.mark.filterwarnings("default"),  # of PyTorch and CUDA, which are to be seen and fail nothing
]

GPU = torch.device("cuda", 0)
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far results may be apart, as a share of the whole of them; float32 is summed in another order."""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No trial has been made yet; where its answers go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trials.forget()
    yield tmp_path / "cache" / "metazoo" / "trials.json"
    trials.forget()


def given(seed: int, dtype: torch.dtype, device: torch.device | str = "cpu", tasks: int = 2, **shape: int) -> Episodes:
    """Episodes of that number, in a type and on a device."""
    drawn = episodes(seed, tasks, **shape)
    images = {name: getattr(drawn, name).to(device, dtype) for name in ("support_x", "query_x")}
    return replace(drawn, **images, support_y=drawn.support_y.to(device), query_y=drawn.query_y.to(device))


def learning(model: Algorithm) -> MetaPass:
    return MetaPass(model, [parameter for group in model.outer_groups() for parameter in group.parameters], 0.5)


def expected(work: Any, batch: Episodes) -> Results:
    """What a CPU gives by torch's own modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("METAZOO_BLOCK", raising=False)
        with native.set_aside():
            return work(batch, OuterStep())


def assert_close(found: Results, expected: Results, share: float) -> None:
    """The differences are at most this share of the largest result of their kind; predictions may be on an edge."""
    assert found.keys() == expected.keys()
    for kind in ("loss", "outputs", "gradient"):
        names = [name for name in expected if kind in (name, name[0] if isinstance(name, tuple) else None)]
        largest = max((float(expected[name].norm()) for name in names), default=0.0)
        for name in names:
            assert float((found[name].cpu() - expected[name].cpu()).norm()) <= share * largest, name


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", registry.algorithms())
def test_every_method(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary pass, and a replayed one on other episodes and weights, give what a CPU gives."""
    monkeypatch.setenv("METAZOO_BLOCK", "eager")  # compiling takes its time, and is in the next test
    here, there = make(name).to(dtype), make(name).to(GPU, dtype)
    notes, recorder = list[str](), graphs.recorder(GPU)
    works: list[Any] = [(learning(here), learning(there)), (Prediction(here), Prediction(there))]
    with arithmetic("float32", GPU):
        for reference, work in works:
            passes = Replayed(work, recorder, "Passes", notes.append)
            for seed in range(graphs.WATCHED_RUN + 1):
                found = passes(given(seed, dtype, GPU))
                assert_close(kept(found), expected(reference, given(seed, dtype)), EXACT[dtype])
            asks = isinstance(work, MetaPass) and name in DRAWS_ON_THE_HOST
            assert passes.is_replaying is not asks, notes
            with torch.no_grad():
                for parameter in (*here.parameters(), *there.parameters()):
                    parameter.mul_(1.1)
            found = kept(passes(given(9, dtype, GPU)))
            assert_close(found, expected(reference, given(9, dtype)), EXACT[dtype])
            passes.forget()
    assert len(notes) == (name in DRAWS_ON_THE_HOST)


FORMS = [(form, "modules") for form in forms._FORMS["forward"]] + [("grouped", block) for block in blocks.WAYS]


@pytest.mark.parametrize("name", ["maml", "cxgrad"])
@pytest.mark.parametrize(("convolution", "block"), sorted({*FORMS, ("unfolded", "compiled")}))
def test_every_form(name: str, convolution: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if block == "compiled" and not compiled.available(GPU):
        pytest.skip("there is no Triton here")
    work, found_here = learning(make(name).to(GPU)), expected(learning(make(name)), given(1, torch.float64))
    monkeypatch.setenv("METAZOO_CONVOLUTION", convolution)
    monkeypatch.setenv("METAZOO_BLOCK", block)
    assert_close(work(given(1, torch.float64, GPU), OuterStep()), found_here, 1e-9)


@pytest.mark.parametrize(("precision", "share"), [("float32", 1e-4), ("tf32", 3e-2), ("bfloat16", 0.3)])
def test_every_precision(precision: Precision, share: float) -> None:
    if precision == "tf32" and not has_tf32(GPU):
        pytest.skip("this GPU has no TF32")
    there = make("maml").to(GPU, torch.float32)
    there.backbone.compute_in(precision)
    exact = expected(learning(make("maml")), given(1, torch.float64))
    with arithmetic(precision, GPU):
        assert_close(learning(there)(given(1, torch.float32, GPU), OuterStep()), exact, share)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["maml", "cxgrad"])
def test_a_pass_is_the_same_every_time(name: str, precision: Precision) -> None:
    """To the bit, or its recording could not be proven: five inner steps on noise make much of a rounding."""
    if precision == "tf32" and not has_tf32(GPU):
        pytest.skip("this GPU has no TF32")
    method, notes = registry.algorithm(name), list[str]()
    model = tiny_algorithm(method, None, Conv4.Settings(filters=48), size=32).to(GPU, torch.float32)
    model.backbone.compute_in(precision)
    batches = [given(seed, torch.float32, GPU, size=32) for seed in range(graphs.WATCHED_RUN + 2)]
    with arithmetic(precision, GPU):
        work = learning(model)
        passes = Replayed(work, graphs.recorder(GPU), "Passes", notes.append)
        for batch in batches:
            found = kept(passes(batch))
        assert passes.is_replaying, notes
        for again in (kept(work(batches[-1], OuterStep())) for _ in range(3)):
            assert all(torch.equal(again[key], found[key]) for key in found)


def test_trials_are_made_once_and_their_times_are_kept(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = learning(make("maml").to(GPU))
    work(given(1, torch.float64, GPU), OuterStep())
    found = json.loads(empty_cache.read_text())
    assert {json.loads(question)[4] for question in found} == {"convolution", "block"}
    for trial in found.values():
        assert trial["milliseconds"][trial["chosen"]] > 0
        failed = [name for name, time in trial["milliseconds"].items() if time is None]
        assert not failed, f"{failed} failed in {trial}"
    trials.forget()
    monkeypatch.setattr(trials, "_milliseconds", lambda way, device: pytest.fail("tried again"))
    work(given(2, torch.float64, GPU), OuterStep())


def test_members_of_an_ensemble() -> None:
    members = [make("cxgrad"), make("cxgrad")]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.mul_(1.1)
    batches = [given(seed, torch.float64, tasks=3) for seed in range(6)]
    outputs_here = [[output.clone() for output in Committee(members).predict(batch, 4)] for batch in batches]
    there = Committee([member.to(GPU) for member in members], graphs.recorder(GPU))
    for seed, outputs in enumerate(outputs_here):
        for found, output in zip(there.predict(given(seed, torch.float64, GPU, tasks=3), 4), outputs, strict=True):
            torch.testing.assert_close(found.cpu(), output, rtol=1e-8, atol=1e-8)
    assert there.is_stacked


def test_as_many_tasks_as_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what a pass of eight tasks takes is room for some of them, as measured; where it was not, as halved."""
    method: Any = registry.algorithm("maml")
    model = tiny_algorithm(method, method.Settings(inner_steps=2), Conv4.Settings(filters=32), size=84).float()
    work, notes = learning(model.to(GPU)), list[str]()
    batch = given(0, torch.float32, GPU, tasks=8, size=84)

    def several(count: int) -> Results:
        return work(batch.select(slice(0, count)), OuterStep())

    gauge = memory.GpuGauge(GPU)
    several(8)
    one, eight = (gauge.peak(partial(several, count)) for count in (1, 8))
    assert one < eight <= 9 * one and gauge.free() > 0
    with monkeypatch.context() as patch:
        patch.setattr(memory.GpuGauge, "free", lambda gauge: eight // 2)
        size = memory.PassSize(None, GPU, 8, model, "passes", notes.append)
        size.measure(lambda part: work(part, OuterStep()), batch)
        assert size.tasks <= 4
    size = memory.PassSize(None, GPU, 8, model, "passes", notes.append)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved(GPU) + eight / 2
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(GPU).total_memory, GPU)
    try:
        size.run(several)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert size.tasks < 8 and len(notes) == 1


RUNS: dict[str, dict[str, Any]] = {
    "on the GPU": {},
    "from afar": {"images_on": "host", "augmentation": {"jitter": 0.2}},
    "from disk": {"images_on": "disk"},
    "operation by operation": {"record_graphs": False},
    "recomputed": {"algorithm": "cxgrad", "recompute": True},
    "in parts": {"algorithm": "mamlpp", "meta_batch": 3, "tasks_per_pass": 2, "record_gradients": True},
}
OPTIONS = "images_on", "record_graphs", "recompute", "record_gradients", "tasks_per_pass"


@pytest.mark.parametrize("case", RUNS)
def test_whole_runs(
    case: str,
    tiny_sets: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped, resumed and tested, they come to what a CPU comes to; replayed steps never wait for the GPU."""
    quiet = steps_that_may_not_wait(monkeypatch)
    changes = {"source": "tiny_rgb", "outer_lr": 1e-4, "epochs": 2, "iterations_per_epoch": 8, **RUNS[case]}
    options = {name: changes.pop(name) for name in OPTIONS if name in changes}
    config, logs = tiny.config(**changes), []
    for device in ("cpu", "cuda"):
        home, notes = tmp_path / device, Notes()
        with crashing_at(6, monkeypatch):
            training.train(config, home=home, device=device, **options)
        run = training.train(config, home=home, device=device, reporter=notes, **options)
        record = evaluation.evaluate(run, episodes=64, device=device, rules=["last"])
        (score,) = (found.interval.mean for found in record.evaluations.values())
        logs.append([*(line["train_loss"] for line in run.metrics), score])
        assert not any("operation by operation" in text for text in notes.texts), notes.texts
    assert logs[1] == pytest.approx(logs[0], rel=2e-3, abs=0.02)
    assert bool(quiet) == ("record_graphs" not in options)


def steps_that_may_not_wait(patch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the training steps that were replayed, in which waiting for the GPU is an error."""
    step, numbers = outer_loop.Trainer._step, list[int]()

    def quiet(trainer: outer_loop.Trainer, *given: Any) -> None:
        is_replaying = trainer.learning.is_replaying
        torch.cuda.set_sync_debug_mode("error" if is_replaying else "default")
        try:
            step(trainer, *given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        numbers.extend([trainer.iteration] if is_replaying else [])

    patch.setattr(outer_loop.Trainer, "_step", quiet)
    return numbers


@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(
    first: str,
    then: str,
    tiny_sets: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny.config(outer_lr=1e-4)
    straight = training.train(config, home=tmp_path / "straight", device=first)
    with crashing_at(6, monkeypatch):
        training.train(config, home=tmp_path / "moved", device=first)
    moved = training.train(config, home=tmp_path / "moved", device=then)
    for one, other in zip(straight.metrics, moved.metrics, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=2e-3)


def test_what_is_said_of_it() -> None:
    assert hardware.choose("auto") == hardware.choose("cuda:0") == GPU
    assert "GiB" in hardware.describe(GPU) and {"cuda", "cudnn"} <= hardware.versions().keys()


def test_it_can_be_measured() -> None:
    found = bench.measure("maml", "omniglot-5w1s", "training", GPU, rounds=1)
    assert found.tasks_per_second > 0 and found.peak_mb > 0 and found.ratio is not None
