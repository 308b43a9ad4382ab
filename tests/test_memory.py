"""Tasks in a pass: as many as the memory has room for, by what passes of one and of two tasks need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from metazoo import memory
from metazoo.errors import UserError
from metazoo.memory import PassSize, tasks_that_fit
from metazoo.testing import tiny_episodes

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Card:
    """A GPU of which `total` bytes are free and a pass needs `fixed` and `each` for every task."""

    def __init__(self, total: int, each: int, fixed: int = 0):
        self.total, self.each, self.fixed = total, each, fixed
        self.passes: list[int] = []
        self.last = 0

    def work(self, tasks: int) -> int:
        self.passes.append(tasks)
        self.last = self.fixed + tasks * self.each
        if self.last > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return tasks

    def free(self) -> int:
        return self.total

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.last


@pytest.mark.parametrize(
    ("total", "fixed", "most", "expected"),
    [
        (1000, 0, 4, 4),
        (100, 0, 4, 4),
        (90, 0, 4, 2),  # 3 fit; two passes of 2 take as long as one of 3 and one of 1
        (60, 0, 4, 2),
        (60, 0, 3, 2),
        (100, 50, 4, 1),  # of 80, 50 are for the pass itself
        (110, 40, 4, 2),
        (1000, 0, 32, 32),
        (400, 0, 32, 16),
        (40, 0, 4, 1),
        (39, 0, 4, 1),  # a pass of two finds no room
        (1000, 0, 1, 1),
    ],
)
def test_as_many_tasks_as_fit_in_parts_of_one_size(total: int, fixed: int, most: int, expected: int) -> None:
    card = Card(total, 20, fixed)
    assert tasks_that_fit(card.work, most, card) == expected
    assert set(card.passes) <= {1, 2}
    assert fixed + expected * 20 <= max(0.8 * total, fixed + 20)


def test_a_card_on_which_not_even_one_task_fits_says_so() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        tasks_that_fit(Card(10, 20).work, 4, Card(10, 20))


def size(
    card: Card, monkeypatch: pytest.MonkeyPatch, asked: int | None = None, most: int = 8, notes: list[str] | None = None
) -> PassSize:
    monkeypatch.setattr(memory, "gauge", lambda device: card)
    note = (lambda text: None) if notes is None else notes.append
    return PassSize(asked, GPU, most, nn.Conv2d(1, 1, 1), "training passes", note)


def test_it_is_measured_once_and_only_where_nothing_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(100, 20)
    chosen = size(card, monkeypatch)
    assert chosen.tasks == 8
    for _ in range(2):
        chosen.measure(lambda part: card.work(len(part)), tiny_episodes(3))
    assert chosen.tasks == 4 and card.passes == [1, 1, 2]
    asked = size(card, monkeypatch, asked=7)
    asked.measure(lambda part: card.work(len(part)), tiny_episodes(3))
    assert asked.tasks == 7 and card.passes == [1, 1, 2]


def test_on_a_cpu_nothing_is_measured() -> None:
    for network, most in ((nn.Conv2d(1, 1, 1), 1), (nn.Linear(1, 1), 8)):
        chosen = PassSize(None, CPU, 8, network)
        chosen.measure(lambda part: pytest.fail("measured"), tiny_episodes(3))
        assert chosen.tasks == most
    with pytest.raises(UserError, match="at least one task"):
        PassSize(0, CPU, 8, nn.Linear(1, 1))


def test_where_memory_does_not_suffice_all_the_same_it_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    card, notes = Card(50, 20), list[str]()
    chosen = size(card, monkeypatch, most=7, notes=notes)
    assert chosen.run(card.work) == 2 and card.passes == [7, 4, 2] and chosen.tasks == 2
    said = "Memory did not suffice for training passes of 7 tasks; they have 2 from here on, which changes no result"
    assert notes == [f"{said} (--tasks-per-pass 2 begins with that)."]
    card.total = 30
    assert chosen.run(card.work) == 1 and len(notes) == 1, "once"
    with pytest.raises(torch.OutOfMemoryError):
        size(card, monkeypatch, asked=7).run(card.work)
    with pytest.raises(torch.OutOfMemoryError):
        size(Card(10, 20), monkeypatch).run(Card(10, 20).work)

    def broken(tasks: int) -> int:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        size(card, monkeypatch).run(broken)
