"""What the outer loop tells a method of the step it is about to make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import Tensor

from metazoo.gradient_norms import NormSums

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""A share of the training, in settings: schedules inside a method are shares, so that they fit any budget."""


@dataclass(frozen=True)
class Clock:
    """How far the training has come. It remembers what it was asked: a step is another one where the answer is."""

    epoch: float = math.inf
    epochs: int = 1
    answers: dict[float | None, float] = field(default_factory=dict, compare=False, repr=False)
    """By share of the training whether it was in that share; at None the epoch itself, if that was asked for."""

    def ask(self, share: float | None) -> float:
        """Whether the training is in its first `share`, or, for None, how many epochs are finished."""
        return self.answers.setdefault(share, self._answer(share))

    def agrees(self, answers: Mapping[float | None, float]) -> bool:
        """Whether it would give the same answers as another clock has given."""
        return all(self._answer(share) == answer for share, answer in answers.items())

    def _answer(self, share: float | None) -> float:
        return self.epoch if share is None else self.epoch < round(share * self.epochs)


@dataclass(frozen=True, init=False)
class OuterStep:
    """One outer step. The defaults are those of a step after all schedules have run out."""

    first_order: bool
    """Ignore second derivatives in the meta-gradient."""
    taps: tuple[str, ...]
    """Names of the backbone's modules (`body.block4.norm`) whose outputs in the query pass are wanted."""
    masks: Mapping[str, Tensor]
    """Factors `[T, ...]` for tensors of the backbone, by name: each task starts at weight times mask, and where a mask
    is 0 nothing moves. They are how a wrapper thins a method's network."""
    gradient_norms: NormSums | None
    """Where the norms of the inner loop's gradients are to be counted, if anybody asked for them."""
    clock: Clock
    """What `epoch`, `epochs` and `within` read."""

    def __init__(
        self,
        first_order: bool = False,
        epoch: float = math.inf,
        epochs: int = 1,
        taps: tuple[str, ...] = (),
        masks: Mapping[str, Tensor] | None = None,
        gradient_norms: NormSums | None = None,
        clock: Clock | None = None,
    ):
        values = {
            "first_order": first_order,
            "taps": taps,
            "masks": {} if masks is None else masks,
            "gradient_norms": gradient_norms,
            "clock": Clock(epoch, epochs) if clock is None else clock,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def epoch(self) -> float:
        """Finished epochs; infinite where there is no training whose clock could be read."""
        return self.clock.ask(None)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return self.clock.epochs

    def within(self, share: float) -> bool:
        """Whether the training is in its first `share` (of its epochs, rounded to whole ones)."""
        return bool(self.clock.ask(share))
