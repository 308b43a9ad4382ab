"""Where the time of one of our meta-steps goes: `python -m metazoo.benchmarks.speed.parts miniimagenet-5w5s`.

Second-order MAML on one task and one CPU thread, by that thread's clock; of the repetitions the fastest. For every
convolution the rate is given, too.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from metazoo import convolution, native
from metazoo.benchmarks.speed.bench import matrix_gflops, shapes, sides


@dataclass
class Part:
    calls: int = 0
    seconds: float = 0.0
    gflop: float = 0.0


class Watch:
    """Wraps functions so that each call's time is added to the part that `named` says, with its operations."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = defaultdict(Part)

    def on(self, function: Any, named: Callable[..., str], gflop: Callable[..., float] = lambda *a: 0.0) -> Any:
        def watched(*arguments: Any) -> Any:
            start = time.thread_time()
            result = function(*arguments)
            part = self.parts[named(*arguments)]
            part.calls += 1
            part.seconds += time.thread_time() - start
            part.gflop += gflop(*arguments)
            return result

        return watched


def gflop(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Of one 3x3 convolution with padding 1."""
    return 2 * x.shape[0] * x.shape[2] * x.shape[3] * weight.numel() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=shapes())
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step, _ = sides("maml", arguments.shape, "training", "cpu", "float32", 1, 1)
    watch = Watch()
    convolution._BACKWARD = watch.on(
        convolution._BACKWARD,
        lambda g, x, w, *options: f"convolution, gradients, {x.shape[0]} x {x.shape[2]} px",
        lambda g, x, w, *options: gflop(x, w) * sum(options[-1]),
    )
    torch.conv2d = watch.on(
        torch.conv2d,
        lambda x, w, *options: f"convolution, {x.shape[0]} x {x.shape[2]} px",
        lambda x, w, *options: gflop(x, w),
    )
    native.run = watch.on(native.run, lambda name, *rest: name)
    step()
    best: tuple[float, dict[str, Part]] = (float("inf"), {})
    for _ in range(arguments.repetitions):
        watch.parts.clear()
        start = time.thread_time()
        step()
        best = min(best, (time.thread_time() - start, dict(watch.parts)), key=lambda pair: pair[0])
    total, parts = best
    print(f"matrix product {matrix_gflops(torch.device('cpu')):.0f} Gflop/s; one task {total * 1e3:.1f} ms")
    for name, part in sorted(parts.items(), key=lambda item: -item[1].seconds):
        rate = f"{part.gflop / part.seconds:6.1f} Gflop/s" if part.gflop else ""
        print(f"{name:40}{part.calls:5} calls {part.seconds * 1e3:9.2f} ms {part.seconds / total:6.1%}  {rate}")
    rest = total - sum(part.seconds for part in parts.values())
    print(f"{'everything else':40}{'':11} {rest * 1e3:9.2f} ms {rest / total:6.1%}")


if __name__ == "__main__":
    main()
