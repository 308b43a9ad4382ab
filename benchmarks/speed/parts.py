"""Where the time of one of our meta-steps goes: `python -m metazoo.benchmarks.speed.parts miniimagenet-5w5s`.

Second-order MAML on one task and one CPU thread, by that thread's clock; of the repetitions the fastest. For every
convolution the rate is given, too, in operations of the plain algorithm: Winograd's makes do with a quarter of them.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from metazoo.benchmarks.speed.bench import matrix_gflops, shapes, sides
from metazoo.fast import native, winograd


@dataclass
class Part:
    calls: int = 0
    seconds: float = 0.0
    gflop: float = 0.0


class Watch:
    """Wraps functions so that each call's time is added to the part that `named` says, with its operations.

    Calls for which it says None are parts of another.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = defaultdict(Part)

    def on(self, function: Any, named: Callable[..., str | None], gflop: Callable[..., float] = lambda *a: 0.0) -> Any:
        def watched(*arguments: Any) -> Any:
            start = time.thread_time()
            result = function(*arguments)
            name = named(*arguments)
            if name is None:
                return result
            part = self.parts[name]
            part.calls += 1
            part.seconds += time.thread_time() - start
            part.gflop += gflop(*arguments)
            return result

        return watched


def name_of(operation: str, maps: torch.Tensor, *rest: object) -> str:
    """What the part of a convolution is called."""
    return f"{operation}, {maps.shape[0]} x {maps.shape[2]} px"


def gflop(maps: torch.Tensor, other: torch.Tensor, padding: int) -> float:
    """Of the plain algorithm for one 3x3 convolution of as many channels as filters, or one of its gradients."""
    images, channels, height, width = maps.shape
    return 2 * images * height * width * channels**2 * 9 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=shapes())
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step, _ = sides("maml", arguments.shape, "training", "cpu", "float32", 1, 1)
    watch = Watch()
    for operation in ("convolve", "gradient_at_maps", "gradient_at_weight"):
        function = getattr(winograd, operation)
        setattr(winograd, operation, watch.on(function, partial(name_of, operation), gflop))
    native.run = watch.on(native.run, lambda name, *rest: None if name.startswith("winograd") else name)
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
