"""What an episode is judged by: its share of correct predictions, or the mean squared error of predicted numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Measure(ABC):
    """How scores (`metazoo.objectives.scores`, one an episode) become the values that are averaged and printed."""

    name: ClassVar[str]
    """Its key in records, metrics and tables for machines."""
    title: ClassVar[str]
    """What sentences call it."""
    heading: ClassVar[str]
    """What tables call it, with its unit."""
    sign: ClassVar[int]
    """1 where the highest value is the best, -1 where the lowest is."""
    scale: ClassVar[int]
    """What values are multiplied by for a person to read."""
    digits: ClassVar[int]
    """How many are printed behind the point."""
    unit: ClassVar[str]

    @abstractmethod
    def values(self, scores: ArrayLike, queries: int) -> NDArray[np.float64]:
        """The value of every episode of `queries` query examples, in its natural unit."""

    @abstractmethod
    def mean(self, total: float, episodes: int, queries: int) -> float:
        """The mean value of episodes whose scores add up to `total`."""

    def cell(self, value: float, half_width: float | None = None) -> str:
        """A value in a table, with its half-width where there is one; the unit is in the title."""
        numbers = [value] if half_width is None else [value, half_width]
        return " ± ".join(f"{self.scale * number:.{self.digits}f}" for number in numbers)

    def text(self, value: float, half_width: float | None = None) -> str:
        """A value in a sentence, with its unit."""
        numbers = [value] if half_width is None else [value, half_width]
        return " ± ".join(f"{self.cell(number)}{self.unit}" for number in numbers)


class Accuracy(Measure):
    """Share of correct predictions; a score is their number."""

    name, title, heading = "accuracy", "accuracy", "accuracy in %"
    sign, scale, digits, unit = 1, 100, 2, "%"

    def values(self, scores: ArrayLike, queries: int) -> NDArray[np.float64]:
        return np.asarray(scores, dtype=float) / queries

    def mean(self, total: float, episodes: int, queries: int) -> float:
        return total / (episodes * queries)


class SquaredError(Measure):
    """Squared error, averaged over an episode's query examples and their numbers; a score is that already."""

    name, title, heading = "error", "mean squared error", "mean squared error (lower is better)"
    sign, scale, digits, unit = -1, 1, 3, ""

    def values(self, scores: ArrayLike, queries: int) -> NDArray[np.float64]:
        return np.asarray(scores, dtype=float)

    def mean(self, total: float, episodes: int, queries: int) -> float:
        return total / episodes


ACCURACY: Measure = Accuracy()
SQUARED_ERROR: Measure = SquaredError()
