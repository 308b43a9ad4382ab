"""What an interval speaks of: what is thought to be drawn anew, and how far a mean would then move.

The values are accuracies (or errors, or differences of two methods) of S trained networks on the same E test episodes.
Three things could have come out otherwise: the episodes, the test classes behind them, and the trainings. Each
population below lets some of these vary and keeps the others as they are, so its interval says nothing of the others.
docs/protocol.md has what they mean for a reader, and their measured coverage.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from metazoo.errors import UserError

Over = Literal["episodes", "classes", "trainings"]
"""The populations by name."""

LEVEL = 0.95
"""Confidence level of every interval that is printed."""


@dataclass(frozen=True)
class Spread:
    """Standard error of a mean, in the unit of its values, and the degrees of freedom of Student's t it goes with."""

    error: float
    freedom: float

    def half_width(self, level: float = LEVEL) -> float:
        """Half-width of the interval at that level."""
        return float(stats.t.ppf(0.5 + level / 2.0, self.freedom)) * self.error if self.error else 0.0

    def p_value(self, mean: float) -> float:
        """Two-sided, of the true mean being 0."""
        # A constant leaves only rounding as its spread.
        if self.error <= 1e-12:
            return 1.0 if abs(mean) <= 1e-12 else 0.0
        return 2.0 * float(stats.t.sf(abs(mean) / self.error, self.freedom))


class Population(ABC):
    """What could have been drawn otherwise."""

    name: ClassVar[Over]
    title: ClassVar[str]
    """What tables call its interval."""
    meaning: ClassVar[str]
    """What its interval speaks of, and of what it does not."""

    @abstractmethod
    def spread(self, values: NDArray[np.float64]) -> Spread:
        """Of the mean of `values` [S, E]. Raises UserError where they are too few for this population."""


class Episodes(Population):
    """Other episodes of the same test classes and images, for the same trained networks.

    Given classes and images, episodes are drawn independently, so this is the usual interval of a mean: Student's t
    over the E means of the S networks.
    """

    name, title = "episodes", "95 % interval over episodes"
    meaning = (
        "for these trained networks and these test classes, had other episodes been drawn; how other classes would do, "
        "or trainings with other seeds, is not in it"
    )

    def spread(self, values: NDArray[np.float64]) -> Spread:
        episodes = values.mean(axis=0)
        return Spread(float(episodes.std(ddof=1)) / math.sqrt(episodes.size), episodes.size - 1)


class Classes(Population):
    """Other test classes with images of their own, for the same trained networks: the class-and-image interval.

    Episodes share classes, and so their values are not independent: 600 episodes of 20 classes are 20 classes, each
    seen 150 times. The model is a value that is a mean plus the effects of the episode's N classes plus what is left,
    y_e = m + sum of a_c over the classes c of e + r_e, with the a_c drawn independently, a class bringing its images
    along (they are nested in it, so their effects are part of a_c and r_e). Both variances come from two quadratic
    forms in the centred values r, r'r and r'Kr with K the number of classes that two episodes share, whose expectations
    are linear in them (Rao's MINQUE(0)): unbiased for any distribution. The variance of the mean follows, never taken
    to be below that over episodes. Degrees of freedom are Satterthwaite's, never taken to be below a third of those of
    the classes: the plug-in value is unstable where class effects are small, and with this bound the coverage measured
    in benchmarks/statistics_coverage.py is 94 to 96 % where they matter and above where they do not.

    `sets` [E, N] holds the classes of each episode. Where no two episodes share one, they are independent and the
    interval is that over episodes. Raises UserError where all episodes have the same classes.
    """

    name, title = "classes", "95 % interval over classes and their images"
    meaning = (
        "for these trained networks, had other test classes been drawn, as many as these and with images of their own; "
        "how trainings with other seeds would differ is not in it"
    )

    def __init__(self, sets: NDArray[np.int64]) -> None:
        episodes, ways = sets.shape
        members = np.zeros((episodes, int(sets.max()) + 1))
        np.add.at(members, (np.arange(episodes)[:, None], sets), 1.0)
        members = members[:, members.any(axis=0)]
        self._members = members - members.mean(axis=0)
        shared = self._members.T @ self._members
        of_classes, of_rest = float(np.trace(shared)), float(episodes - 1)
        if of_classes < 1e-9 * episodes:
            raise UserError(
                f"Every test episode has the same {ways} classes, so nothing can be said of other classes; "
                "lower ways, or use the interval over episodes."
            )
        # E[r'r] = a of_classes + b of_rest and E[r'Kr] = a of_squares + b of_classes, for the variances a and b.
        of_squares = float(np.sum(shared * shared))
        self._expectations = np.array([[of_classes, of_rest], [of_squares, of_classes]])
        self._disjoint = of_rest * of_squares - of_classes**2 < 1e-9 * of_classes**2
        if self._disjoint:
            return
        # Variance of the mean: a times how often two episodes' classes coincide, plus b / E.
        wanted = np.array([float(np.sum(members.sum(axis=0) ** 2)) / episodes**2, 1.0 / episodes])
        forms = np.linalg.solve(self._expectations.T, wanted)
        largest = np.linalg.eigvalsh(shared)[::-1][: episodes - 1]
        self._eigenvalues = np.pad(largest, (0, episodes - 1 - len(largest)))
        self._forms, self._weights = forms, forms[0] + forms[1] * self._eigenvalues
        self._freedom = of_classes**2 / of_squares

    def spread(self, values: NDArray[np.float64]) -> Spread:
        episodes = values.mean(axis=0)
        if len(episodes) != len(self._members):
            raise ValueError(f"classes of {len(self._members)} episodes and values of {len(episodes)}")
        usual = Episodes().spread(values)
        if self._disjoint or usual.error <= 1e-12:
            return usual
        rest = episodes - episodes.mean()
        squares = np.array([rest @ rest, np.sum((rest @ self._members) ** 2)])
        of_class, of_rest = np.linalg.solve(self._expectations, squares)
        variance = max(float(self._forms @ squares), usual.error**2)
        components = self._weights * (max(of_class, 0.0) * self._eigenvalues + of_rest)
        return Spread(math.sqrt(variance), max(variance**2 / float(components @ components), self._freedom / 3.0))


class Trainings(Population):
    """Trainings with other seeds, tested on other episodes of the same test classes: of the method, not of a network.

    Every network sees the same episodes, so seeds and episodes are crossed. The variance of the mean has a part of the
    seeds, one of the episodes and one of both together, from the mean squares of the two-way table; degrees of
    freedom are Satterthwaite's, which few seeds keep few.
    """

    name, title = "trainings", "95 % interval over trainings and episodes"
    meaning = (
        "for the method at these settings, had it been trained with other seeds and tested on other episodes of these "
        "test classes; how other classes would do is not in it"
    )

    def spread(self, values: NDArray[np.float64]) -> Spread:
        seeds, episodes = values.shape
        if seeds < 2:
            raise UserError("An interval over trainings needs at least 2 seeds; name more in 'seeds' of the suite.")
        of_seeds, of_both = _mean_squares(values)
        terms = [
            (of_seeds / (seeds * episodes), seeds - 1),
            (float(values.mean(axis=0).var(ddof=1)) / episodes, episodes - 1),
            (-of_both / (seeds * episodes), (seeds - 1) * (episodes - 1)),
        ]
        # No less than either part alone: the difference of mean squares can fall below.
        variance = max(sum(term for term, _ in terms), terms[0][0], terms[1][0])
        doubt = sum(term**2 / freedom for term, freedom in terms)
        return Spread(math.sqrt(variance), variance**2 / doubt if doubt else episodes - 1)


EPISODES: Population = Episodes()
TRAININGS: Population = Trainings()


def training_spread(values: NDArray[np.float64]) -> float:
    """Standard deviation of the true means of S trained networks [S, E], S at least 2: what training alone does.

    The spread of the seeds' measured means has the noise of E episodes in it too; that is taken off.
    """
    of_seeds, of_both = _mean_squares(values)
    return math.sqrt(max(of_seeds - of_both, 0.0) / values.shape[1])


def _mean_squares(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of the seeds and of the interaction, in the two-way table [S, E]."""
    seeds, episodes = values.shape
    by_seed, by_episode = values.mean(axis=1, keepdims=True), values.mean(axis=0)
    rest = values - by_seed - by_episode + values.mean()
    return episodes * float(by_seed.var(ddof=1)), float(np.sum(rest**2)) / max((seeds - 1) * (episodes - 1), 1)
