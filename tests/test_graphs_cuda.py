"""What is said to CUDA: in which order, on which streams, and what is left behind where it refuses."""

from __future__ import annotations

import gc

import pytest
import torch
from fake_cuda import FakeCuda

from metazoo import graphs
from metazoo.graphs import CudaGraphs, Unrecordable
from metazoo.meta_pass import Results

GPU = torch.device("cuda", 0)
REFUSED = "CUDA error: operation failed due to a previous error during capture\nMore of it."


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def test_a_cpu_has_no_recorder_and_a_gpu_has(cuda: FakeCuda) -> None:
    assert graphs.recorder(torch.device("cpu")) is None
    assert isinstance(graphs.recorder(GPU), CudaGraphs)


def test_a_run_has_its_own_stream_and_both_wait_for_each_other(cuda: FakeCuda) -> None:
    recorder = CudaGraphs(GPU)
    seen: list[str] = []

    def work() -> Results:
        seen.append(cuda.streams[-1])
        cuda.log.append("work")
        return {"loss": torch.ones(())}

    assert recorder.run(work)["loss"] == 1
    assert seen == ["side"] and cuda.log == ["side waits for default", "work", "default waits for side"]


def test_after_work_that_fails_the_streams_are_in_order(cuda: FakeCuda) -> None:
    def work() -> Results:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs(GPU).run(work, watched=True)
    assert cuda.log[-1] == "default waits for side" and cuda.streams == ["default"] and cuda.sync_mode == 0


def test_a_watched_run_may_not_wait(cuda: FakeCuda) -> None:
    modes = []

    def waiting() -> Results:
        modes.append(cuda.sync_mode)
        raise RuntimeError("called a synchronizing CUDA operation")

    cuda.sync_mode = "warn"
    with pytest.raises(Unrecordable, match="asks the GPU for a value, or copies to it"):
        CudaGraphs(GPU).run(waiting, watched=True)
    assert modes == ["error"] and cuda.sync_mode == "warn", "the mode is put back"
    with pytest.raises(RuntimeError, match="synchronizing"):
        CudaGraphs(GPU).run(waiting)
    assert modes[-1] == "warn"


def test_recordings_share_a_pool_and_a_stream_and_are_replayed_where_one_is(cuda: FakeCuda) -> None:
    recorder, collecting = CudaGraphs(GPU), []
    results: Results = {"loss": torch.ones(())}

    def work() -> Results:
        collecting.append(gc.isenabled())
        return results

    recording = recorder.record(work)
    assert cuda.log == ["record from pool 1 on side, thread_local", "recorded"]
    assert collecting == [False] and gc.isenabled()
    assert recording.replay() is results
    recording.drop()
    assert cuda.log[2:] == ["replay", "synchronize", "reset"]


def test_a_pool_ends_with_the_last_of_its_recordings(cuda: FakeCuda) -> None:
    recorder = CudaGraphs(GPU)
    first, second = (recorder.record(lambda: {"loss": torch.ones(())}) for _ in range(2))
    first.drop()
    third = recorder.record(lambda: {"loss": torch.ones(())})
    assert cuda.pools == 1
    for recording in (second, third):
        recording.drop()
    recorder.record(lambda: {"loss": torch.ones(())})
    assert cuda.pools == 2


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (
            RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture. More."),
            "Cannot copy between",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "memory has no room for it"),
    ],
)
@pytest.mark.parametrize("leaves", [True, False])
def test_a_recording_that_fails_says_what_went_wrong_first(
    cuda: FakeCuda, cause: Exception, reason: str, leaves: bool
) -> None:
    def work() -> Results:
        raise cause

    cuda.leaves_its_stream = leaves
    cuda.failure = RuntimeError(REFUSED)
    with pytest.raises(Unrecordable, match=reason):
        CudaGraphs(GPU).record(work)
    assert cuda.streams == ["default"] and gc.isenabled()


def test_a_recording_that_only_its_end_refuses_says_so(cuda: FakeCuda) -> None:
    cuda.failure = RuntimeError(REFUSED)
    with pytest.raises(Unrecordable, match="previous error during capture"):
        CudaGraphs(GPU).record(lambda: {"loss": torch.ones(())})


def test_ctrl_c_during_a_recording_is_not_lost(cuda: FakeCuda) -> None:
    def work() -> Results:
        raise KeyboardInterrupt

    cuda.failure = RuntimeError(REFUSED)
    with pytest.raises(KeyboardInterrupt):
        CudaGraphs(GPU).record(work)


def test_an_error_that_is_not_cudas_is_not_swallowed(cuda: FakeCuda) -> None:
    def work() -> Results:
        raise ValueError("a method's own")

    with pytest.raises(ValueError, match="a method's own"):
        CudaGraphs(GPU).record(work)
