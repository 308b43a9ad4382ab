"""What a step says of the training: its epoch, and which of its uses another epoch would change."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metazoo.outer_step import Clock, OuterStep


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    "name", ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "gt", "ge", "eq"]
)
def test_a_reading_is_a_number(name: str, swapped: bool) -> None:
    function = getattr(operator, name)
    for other in (2, 2.5, 7.0):
        reading = OuterStep(epoch=7, epochs=10).epoch
        found, expected = (function(other, e) if swapped else function(e, other) for e in (reading, 7))
        assert float(found) == expected and bool(found) == bool(expected)


def test_it_is_used_like_a_number() -> None:
    epoch: Any = OuterStep(epoch=3, epochs=10).epoch
    assert (int(epoch), round(epoch), f"{epoch:.1f}", repr(epoch), -epoch, abs(1 - epoch), hash(epoch)) == (
        *(3, 3, "3.0", "3", -3, 2, 3),
    )
    assert math.cos(math.pi * epoch) == -1 and [epoch] == pytest.approx([3.0])
    assert torch.equal(torch.ones(2) * epoch / epoch + (epoch - epoch), torch.ones(2))
    assert math.isinf(OuterStep().epoch) and not OuterStep().within(1.0)


@pytest.mark.parametrize(
    ("use", "same_until"),
    [
        (lambda epoch: max(0.0, 1 - epoch / 6), 5),
        (lambda epoch: min(1.0, max(0.0, (4 - epoch) / 2)), 9),
        (lambda epoch: min(epoch, 3), 9),
        (lambda epoch: 1 if epoch < 8 else 2, 7),
        (lambda epoch: bool(epoch), 9),
        (lambda epoch: 2 * epoch + 1, 9),
        (lambda epoch: float(2 * epoch + 1), 5),
        (lambda epoch: torch.ones(()) * (2 * epoch + 1), 5),
        (lambda epoch: math.floor(epoch / 4), 5),
        (lambda epoch: [epoch].index(5), 5),
    ],
)
def test_what_was_asked_is_remembered_and_no_more(use: Callable[[Any], object], same_until: int) -> None:
    """Used in epoch 5, another epoch gives the same up to this one of 10."""
    clock = Clock(5, 10)
    use(OuterStep(clock=clock).epoch)
    same = [epoch for epoch in range(5, 10) if Clock(epoch, 10).agrees(clock.answers)]
    assert same == list(range(5, same_until + 1))
