"""Trains a run in processes that are killed with SIGKILL again and again, until one of them finishes it.

    python killed_training.py HOME

In HOME/operations the n-th process dies just before its n-th file operation, so that every step of a save is hit; in
HOME/clock each dies at a random moment. Each process also saves after every iteration.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch.utils.tensorboard  # noqa: F401  (imported once, before the processes are forked)

from metazoo import outer_loop, registry, training

CONFIG = tiny.config(algorithm="noisy")


def train_under_fire(home: Path, how: str) -> None:
    """Train the run in `home`, in one process after the other, until one survives."""
    chance = random.Random(0)
    for number in itertools.count(1):
        if number > 400:
            sys.exit("the run does not come to its end")
        child = os.fork()
        if child == 0:
            if how == "operations":
                die_before_operation(number)
            training.train(CONFIG, home=home / how, device="cpu")
            os._exit(0)
        if how == "clock":
            time.sleep(chance.uniform(0.02, 0.1 + 0.03 * number))  # longer and longer, to come to an end on any machine
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status) == 0:
                print(f"{how}: survived {number - 1} kills")
                return
            sys.exit("a training failed")


def die_before_operation(number: int) -> None:
    """Kill this process before the `number`-th call of anything that changes the disk."""
    left = itertools.count(number, -1)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "replace", "truncate", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))


if __name__ == "__main__":
    tiny.install()
    registry.load_plugin(Path(__file__).with_name("noisy.py"))
    outer_loop.CHECKPOINT_SECONDS = 0.0
    for way in ("operations", "clock"):
        train_under_fire(Path(sys.argv[1]), way)
