"""Training and evaluation of a method timed beside the plain loop; what `metazoo bench` runs."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from metazoo import allocator, graphs, registry
from metazoo.backbones import Conv4
from metazoo.benchmarks.speed.plain import SETTINGS, baseline
from metazoo.benchmarks.speed.shapes import SHAPES, Shape, episodes_of
from metazoo.cost import Arithmetic
from metazoo.episodes import Episodes
from metazoo.errors import UserError, unknown
from metazoo.graphs import Replayed
from metazoo.hardware import peak_memory_mb
from metazoo.meta_pass import MetaPass, Prediction, together
from metazoo.precision import Precision, arithmetic, check_trainable

Work = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Measured:
    """One method on one shape of episodes; what has no plain loop here has None in its place."""

    method: str
    shape: str
    work: Work
    precision: Precision
    tasks_per_second: float
    plain_tasks_per_second: float | None
    ratio: float | None
    """The plain loop's time over ours: median over the rounds, and its quartiles."""
    ratio_quartiles: tuple[float, float] | None
    peak_mb: float
    """What one pass over the tasks adds to the process, or on a GPU to its allocator."""
    plain_peak_mb: float | None
    gflop_per_task: float | None
    """Operations of the plain loop's convolutions and matrix products, multiplications and additions."""
    share_of_peak: float | None
    """These operations by our time, over the matrix product's rate (`matrix_gflops`)."""


def shapes() -> dict[str, Shape]:
    """The shapes of episodes by name, such as `miniimagenet-5w5s`."""
    return {f"{shape.name}-{shape.ways}w{shape.shots}s": shape for shape in SHAPES}


def shape_called(name: str) -> Shape:
    """The shape of that name, or a UserError."""
    if name not in shapes():
        raise unknown("shape", name, shapes())
    return shapes()[name]


def measure(
    method: str,
    shape_name: str,
    work: Work,
    device: torch.device,
    precision: Precision = "float32",
    tasks: int = 2,
    tasks_per_pass: int | None = None,
    rounds: int = 5,
) -> Measured:
    """Time `rounds` rounds of both sides in alternation, after one that warms up, on a GPU until ours is replayed.

    On a CPU with one thread the clock is that thread's own, so that other work on the machine does not count. In tf32
    both sides multiply in it; in bfloat16 ours alone.
    """
    check_trainable(precision, device)
    with arithmetic(precision, device):
        return _measure(method, shape_name, work, device, precision, tasks, tasks_per_pass, rounds)


def _measure(
    method: str,
    shape_name: str,
    work: Work,
    device: torch.device,
    precision: Precision,
    tasks: int,
    tasks_per_pass: int | None,
    rounds: int,
) -> Measured:
    arguments = method, shape_name, work, str(device), precision, tasks, tasks_per_pass
    ours, theirs = sides(*arguments)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    ahead = graphs.WATCHED_RUN + 1 if device.type == "cuda" else 1
    for number in range(ahead + rounds):
        pair = [("ours", ours), ("theirs", theirs)]
        for name, side in pair if number % 2 else reversed(pair):
            if side is not None:
                seconds[name].append(_seconds(side, device))
    seconds = {name: found[ahead:] for name, found in seconds.items()}
    peaks = [in_fresh_process(_peak_mb, side, *arguments) for side in ("ours", "theirs")]
    our_rate = tasks / statistics.median(seconds["ours"])
    if theirs is None:
        return Measured(method, shape_name, work, precision, our_rate, None, None, None, peaks[0], None, None, None)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    with Arithmetic() as counted:
        theirs()
    gflop = counted.flop / tasks / 1e9
    return Measured(
        method,
        shape_name,
        work,
        precision,
        our_rate,
        tasks / statistics.median(seconds["theirs"]),
        statistics.median(ratios),
        (low, high),
        peaks[0],
        peaks[1],
        gflop,
        gflop * our_rate / matrix_gflops(device),
    )


def sides(
    method: str,
    shape_name: str,
    work: Work,
    device: str,
    precision: Precision,
    tasks: int,
    tasks_per_pass: int | None,
) -> tuple[Callable[[], None], Callable[[], None] | None]:
    """Our work and the plain loop's, on the same episodes and from the same weights."""
    shape, place = shape_called(shape_name), torch.device(device)
    torch.manual_seed(0)
    network = Conv4((shape.channels, shape.size, shape.size), shape.ways, Conv4.Settings(filters=shape.filters))
    algorithm = registry.create(method, network, SETTINGS.get(method, {})).to(place)
    plain_loop = baseline(method, algorithm)
    network.compute_in(precision)
    episodes = episodes_of(shape, tasks, place)
    size = tasks_per_pass or (1 if place.type == "cpu" else tasks)

    parameters = [parameter for group in algorithm.outer_groups() for parameter in group.parameters]
    recorder = graphs.recorder(place)
    learning = Replayed(MetaPass(algorithm, parameters, 1 / tasks), recorder)
    predicting = Replayed(Prediction(algorithm), recorder)

    def learn() -> None:
        together(learning, list(episodes.chunks(size)))

    def predict() -> None:
        for chunk in episodes.chunks(size):
            predicting(chunk)

    if work == "evaluation":
        return predict, plain_loop and partial(_in_any_order, plain_loop[1], episodes)
    return learn, plain_loop and partial(_in_any_order, plain_loop[0], episodes)


def _in_any_order(work: Callable[[Episodes], object], episodes: Episodes) -> None:
    """Work in which a GPU's convolutions may add up in any order, as they may unless torch is told otherwise."""
    cudnn: Any = torch.backends.cudnn
    before, cudnn.deterministic = cudnn.deterministic, False
    try:
        work(episodes)
    finally:
        cudnn.deterministic = before


def matrix_gflops(device: torch.device, size: int | None = None) -> float:
    """Billions of operations a second in the product of two float32 matrices: what the shares are shares of.

    They have 1024 rows on a CPU and 8192 on a GPU, which has done with 1024 before it can be asked the time.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    left, right = torch.rand(2, size, size, device=device)
    times = [_seconds(lambda: left @ right, device) for _ in range(9)]
    return 2 * size**3 / statistics.median(times) / 1e9


def copy_gigabytes(device: torch.device, size: int | None = None) -> float:
    """Gigabytes a second, read and written, in the copy of `size` bytes to memory that is there already."""
    size = size or (2**27 if device.type == "cpu" else 2**30)
    source = torch.rand(size // 4, device=device)
    target = torch.rand_like(source)
    return 2 * size / statistics.median(_seconds(lambda: target.copy_(source), device) for _ in range(9)) / 1e9


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, for both sides; a UserError where it is not glibc."""
    if not allocator.keep_freed_memory():
        raise UserError("This system's C library is not glibc, so it cannot be told to keep freed memory.")


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _peak_mb(side: str, *arguments: Any) -> float | None:
    torch.set_num_threads(1)
    work = sides(*arguments)[side == "theirs"]
    if work is None:
        return None
    place = torch.device(arguments[3])
    if place.type == "cuda":
        with arithmetic(arguments[4], place):
            for _ in range(graphs.WATCHED_RUN - 1):
                work()  # with trials, which are made once; the next run is as large as a recorded one
            held = torch.cuda.memory_allocated(place)
            torch.cuda.reset_peak_memory_stats(place)
            work()
        return (torch.cuda.max_memory_allocated(place) - held) / 2**20
    held_mb = peak_memory_mb(place)
    work()
    return peak_memory_mb(place) - held_mb


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
