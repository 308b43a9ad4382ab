"""What the outer loop tells a method of the step it is about to make."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias, cast

from pydantic import Field
from torch import Tensor

from metazoo.gradient_norms import NormSums

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""A share of the training, in settings: schedules inside a method are shares, so that they fit any budget."""


Formula: TypeAlias = tuple[tuple[Callable[[Any, Any], Any], float, bool], ...]
"""How a number follows from the epoch: operations one after the other, each with a number on its right, or its left."""


@dataclass(frozen=True)
class Clock:
    """How far the training has come. It remembers what it was asked: a step is another one where the answer is."""

    epoch: float = math.inf
    epochs: int = 1
    answers: dict[Formula, float] = field(default_factory=dict, compare=False, repr=False)
    """What came out of the formulas that anything depended on."""

    def ask(self, formula: Formula) -> float:
        return self.answers.setdefault(formula, self.value(formula))

    def agrees(self, answers: Mapping[Formula, float]) -> bool:
        """Whether it would give the same answers as another clock has given."""
        return all(self.value(formula) == answer for formula, answer in answers.items())

    def value(self, formula: Formula) -> float:
        """What comes out of a formula; not remembered."""
        value = self.epoch
        for operation, other, swapped in formula:
            value = operation(other, value) if swapped else operation(value, other)
        return value


def _arithmetic(operation: Callable[[Any, Any], Any], swapped: bool = False) -> Callable[[Reading, Any], Any]:
    def method(reading: Reading, other: Any) -> Any:
        if isinstance(other, (int, float)):
            return Reading(reading.clock, (*reading.formula, (operation, other, swapped)))
        value = float(reading)
        return operation(other, value) if swapped else operation(value, other)

    return method


def _comparison(operation: Callable[[Any, Any], Any]) -> Callable[[Reading, Any], Any]:
    def method(reading: Reading, other: Any) -> Any:
        if isinstance(other, (int, float)):
            return reading.clock.ask((*reading.formula, (operation, other, False)))
        return operation(float(reading), other)

    return method


class Reading:
    """A number that follows from the epoch; calculate with it as with a float.

    Sums and products with plain numbers are readings again. Where one is compared, or becomes a plain number (by
    `float`, or with a tensor), the clock remembers what came out, and nothing else: `max(0, 10 - epoch)` is the same in
    every epoch from the tenth on.
    """

    def __init__(self, clock: Clock, formula: Formula = ()):
        self.clock, self.formula = clock, formula

    __add__, __radd__ = _arithmetic(operator.add), _arithmetic(operator.add, swapped=True)
    __sub__, __rsub__ = _arithmetic(operator.sub), _arithmetic(operator.sub, swapped=True)
    __mul__, __rmul__ = _arithmetic(operator.mul), _arithmetic(operator.mul, swapped=True)
    __truediv__, __rtruediv__ = _arithmetic(operator.truediv), _arithmetic(operator.truediv, swapped=True)
    __floordiv__, __rfloordiv__ = _arithmetic(operator.floordiv), _arithmetic(operator.floordiv, swapped=True)
    __mod__, __rmod__ = _arithmetic(operator.mod), _arithmetic(operator.mod, swapped=True)
    __pow__, __rpow__ = _arithmetic(operator.pow), _arithmetic(operator.pow, swapped=True)
    __lt__, __le__ = _comparison(operator.lt), _comparison(operator.le)
    __gt__, __ge__ = _comparison(operator.gt), _comparison(operator.ge)
    __eq__, __ne__ = _comparison(operator.eq), _comparison(operator.ne)

    def __float__(self) -> float:
        return float(self.clock.ask(self.formula))

    def __neg__(self) -> Reading:
        return self * -1

    def __abs__(self) -> Reading:
        return -self if self < 0 else self

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __int__(self) -> int:
        return int(float(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)

    def __hash__(self) -> int:
        return hash(float(self))

    def __format__(self, form: str) -> str:
        return format(float(self), form)

    def __repr__(self) -> str:
        return repr(self.clock.value(self.formula))


numbers.Real.register(Reading)


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
        """Finished epochs, as a `Reading`; infinite where there is no training whose clock could be read."""
        return cast(float, Reading(self.clock))

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return self.clock.epochs

    def within(self, share: float) -> bool:
        """Whether the training is in its first `share` (of its epochs, rounded to whole ones)."""
        return self.epoch < round(share * self.epochs)
