"""What a CUDA graph is, on a CPU: a frozen sequence of operations on fixed memory.

A tape notes every operation that reaches torch's dispatcher, those of backward passes included, with the tensors it
read. Played again, the operations run in the same order without the Python that made them: on the same memory where a
tensor was there before, on what the tape itself has computed otherwise. As on a GPU, an operation whose result decides
what comes next cannot be noted: `.item()`, `nonzero`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from metazoo.episodes import Episodes
from metazoo.graphs import Unrecordable
from metazoo.meta_pass import Results
from metazoo.testing import tiny_episodes

ASKING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Slot:
    """A tensor of the tape: one that was there before, or what was last computed in its place."""

    def __init__(self, value: Tensor | None):
        self.was_there = value is not None
        self.value = value


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, list[Any], Any, list[Slot | None]]] = []
        self.slots: dict[int, Slot] = {}
        self.kept: list[Tensor] = []  # so that no number of `slots` is given to another tensor

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_to_wait(operation)
        read, form = pytree.tree_flatten((args, kwargs or {}))
        read = [self.slot(value, value) if isinstance(value, Tensor) else value for value in read]
        given = operation(*args, **(kwargs or {}))
        slots = [self.slot(leaf) if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(given)]
        self.operations.append((operation, read, form, slots))
        return given

    def slot(self, tensor: Tensor, value: Tensor | None = None) -> Slot:
        if id(tensor) not in self.slots:
            self.slots[id(tensor)] = Slot(value)
            self.kept.append(tensor)
        return self.slots[id(tensor)]

    def play(self) -> None:
        for operation, read, form, slots in self.operations:
            values = [value.value if isinstance(value, Slot) else value for value in read]
            args, kwargs = pytree.tree_unflatten(values, form)
            for slot, leaf in zip(slots, pytree.tree_leaves(operation(*args, **kwargs)), strict=True):
                if slot is not None and not slot.was_there:
                    slot.value = leaf


class Watch(TorchDispatchMode):
    """Lets operations run that never have to wait for a device."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_to_wait(operation)
        return operation(*args, **(kwargs or {}))


class Tapes:
    """Records passes on tapes. Unless it `watches`, only the recording finds out that a pass would have to wait."""

    def __init__(self, watches: bool = True):
        self.watches = watches
        self.runs, self.records, self.drops = 0, 0, 0

    def run(self, work: Callable[[], Results], watched: bool = False) -> Results:
        self.runs += 1
        if not (watched and self.watches):
            return work()
        with Watch():
            return work()

    def record(self, work: Callable[[], Results]) -> TapeRecording:
        self.records += 1
        tape = Tape()
        with tape:
            results = work()
        return TapeRecording(self, tape, results)


class TapeRecording:
    def __init__(self, recorder: Tapes, tape: Tape, results: Results):
        self.recorder, self.tape, self.results = recorder, tape, results
        self.slots = {name: tape.slots.get(id(tensor)) for name, tensor in results.items()}
        self.plays = 0

    def replay(self) -> Results:
        self.plays += 1
        with torch.no_grad():
            self.tape.play()
            for name, slot in self.slots.items():
                if slot is not None and slot.value is not None:
                    self.results[name].copy_(slot.value)  # always the same memory, as a CUDA graph's
        return self.results

    def drop(self) -> None:
        self.recorder.drops += 1


def refuse_to_wait(operation: Any) -> None:
    if ASKING & set(operation.tags):
        raise Unrecordable(f"{operation} asks for a value")


def one_hot(labels: Tensor, ways: int) -> Tensor:
    """As `F.one_hot` does it on a GPU; on a CPU it looks whether the labels are in range."""
    return (labels.unsqueeze(-1) == torch.arange(ways)).long()


def episodes(seed: int, tasks: int = 2, **shape: int) -> Episodes:
    return replace(tiny_episodes(tasks, seed=seed, **shape), numbers=torch.arange(seed * tasks, (seed + 1) * tasks))


def kept(results: Results) -> Results:
    return {name: tensor.clone() for name, tensor in results.items()}


def assert_equal(results: Results, expected: Results) -> None:
    assert results.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(results[name], tensor, rtol=1e-10, atol=1e-12)
