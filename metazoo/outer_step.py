"""What the outer loop tells a method of the step it is about to make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import Tensor

from metazoo.gradient_norms import MeanNorms

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""A share of the training, in settings: schedules inside a method are shares, so that they fit any budget."""


@dataclass(frozen=True)
class OuterStep:
    """One outer step. The defaults are those of a step after all schedules have run out."""

    first_order: bool = False
    """Ignore second derivatives in the meta-gradient."""
    epoch: float = math.inf
    """Finished epochs; infinite where there is no training whose clock could be read."""
    epochs: int = 1
    """Epochs of the whole training."""
    taps: tuple[str, ...] = ()
    """Names of the backbone's modules (`body.block4.norm`) whose outputs in the query pass are wanted."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Factors `[T, ...]` for tensors of the backbone, by name: each task starts at weight times mask, and where a mask
    is 0 nothing moves. They are how a wrapper thins a method's network."""
    gradient_norms: MeanNorms | None = None
    """Where the norms of the inner loop's gradients are to be counted, if anybody asked for them."""

    def within(self, share: float) -> bool:
        """Whether the training is in its first `share` (of its epochs, rounded to whole ones)."""
        return self.epoch < round(share * self.epochs)
