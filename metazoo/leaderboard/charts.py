"""The geometry of the page's charts: scales, ticks, curves, and where the labels of points find room.

Lengths are SVG user units, which on a phone are about a pixel; those of bars are percent of their column's width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

POINTS = 200
"""A curve of more epochs is drawn through this many of them."""

_LETTER, _LINE = 6.2, 11.0
"""Width of a letter and height of a line of the charts' labels, roughly."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, drawn from `begin` to `end`, by their logarithm where asked; beyond, at the edge."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = ((math.log(x) if self.log else x) for x in (self.low, self.high, self._inside(value)))
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)

    def ticks(self, text: Callable[[float], str], most: int = 5, steps: Sequence[float] = ()) -> list[Tick]:
        """At round values, `most` of them at the most. Where `steps` says what is round: at these on a logarithmic
        scale, and at the multiples of one of them on a linear one."""
        if steps and self.log:
            values = [value for value in steps if self.low <= value <= self.high]
            values = values[:: math.ceil(len(values) / most) or 1]
        elif self.log:
            values = _round_logs(self.low, self.high, most)
        else:
            values = round_values(self.low, self.high, most, steps)
        return [Tick(self(value), text(value)) for value in values]

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Frame:
    """The empty chart: its size, the corners of what is drawn in, and its axes."""

    width: float
    height: float
    x: Scale
    y: Scale
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_title: str
    y_title: str


@dataclass(frozen=True)
class Curve:
    """A line through a run's epochs, and the band around it where its interval is known; both as SVG points."""

    line: str
    band: str = ""
    last: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Dot:
    """One method in a scatter plot; its label is empty where there was no room for it."""

    x: float
    y: float
    low: float
    high: float
    name: str
    text: str
    """What pointing at it says."""
    card: str
    """The anchor of its cell's card."""
    best: bool
    on_front: bool = False
    """No other method is better and costs less."""
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


def round_values(low: float, high: float, most: int, steps: Sequence[float] = ()) -> list[float]:
    """Multiples within the two, `most` at the most, of one of the rising `steps`, or of 1, 2, 5 times powers of ten."""
    power = math.floor(math.log10((high - low) / most))
    for step in (*steps, *(factor * 10.0**exponent for exponent in range(power, power + 3) for factor in (1, 2, 5))):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [number * step for number in range(first, last + 1)]
    raise AssertionError("a step of 10 times the range has at most two multiples in it")


def widened(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of values with some room on both sides; one value alone gets a range, too."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def top_of(values: Iterable[float]) -> float:
    """The end of an axis from 0 on which all values have room: the next round number, in steps of 5 or so."""
    highest = max(values, default=1.0)
    step = 10.0 ** math.floor(math.log10(highest)) / 2 if highest > 0 else 1.0
    return math.ceil(highest / step - 1e-9) * step or 1.0


def curve(frame: Frame, epochs: Sequence[float], values: Sequence[float], spreads: Sequence[float] = ()) -> Curve:
    """Values by epoch, with a band of plus-minus `spreads` where they are known; what is not finite is left out."""
    kept = [index for index, value in enumerate(values) if math.isfinite(value)]
    every = math.ceil(len(kept) / POINTS) or 1
    kept = sorted({*kept[::every], *kept[-1:]})
    if not kept:
        return Curve("")
    points = [(frame.x(epochs[index]), frame.y(values[index])) for index in kept]
    band: list[tuple[float, float]] = []
    if spreads and all(math.isfinite(spreads[index]) for index in kept):
        upper = [(frame.x(epochs[index]), frame.y(values[index] + spreads[index])) for index in kept]
        lower = [(frame.x(epochs[index]), frame.y(values[index] - spreads[index])) for index in kept]
        band = [*upper, *reversed(lower)]
    return Curve(_points(points), _points(band), points[-1])


def front(dots: Sequence[Dot], higher_is_better: bool) -> set[int]:
    """Which dots no other beats in both directions; costs grow to the right, and SVG's y grows downwards."""
    down = 1 if higher_is_better else -1
    return {
        index
        for index, dot in enumerate(dots)
        if not any(
            other.x <= dot.x and down * other.y <= down * dot.y and (other.x, other.y) != (dot.x, dot.y)
            for other in dots
        )
    }


def labelled(dots: Sequence[Dot], frame: Frame) -> list[Dot]:
    """The dots with labels beside those where one fits without touching another; those on the front come first."""
    taken = [(dot.x - 4, dot.y - 4, dot.x + 4, dot.y + 4) for dot in dots]
    done = list(dots)
    for index in sorted(range(len(dots)), key=lambda index: (not dots[index].on_front, not dots[index].best)):
        dot = dots[index]
        width = _LETTER * len(dot.name)
        for anchor, x, y in (
            ("start", dot.x + 7, dot.y),
            ("end", dot.x - 7, dot.y),
            ("middle", dot.x, dot.y - 10),
            ("middle", dot.x, dot.y + 10),
        ):
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, y - _LINE / 2, left + width, y + _LINE / 2)
            inside = box[0] >= frame.x.begin and box[2] <= frame.width and frame.y.end - 6 <= box[1]
            if inside and box[3] <= frame.y.begin and not any(_touch(box, other) for other in taken):
                taken.append(box)
                done[index] = replace(dot, label=dot.name, label_x=x, label_y=y, anchor=anchor)
                break
    return done


def steps(dots: Sequence[Dot], frame: Frame) -> str:
    """The line of the dots on the front, as SVG points: what can be had for at most so much."""
    corners: list[tuple[float, float]] = []
    for dot in sorted((dot for dot in dots if dot.on_front), key=lambda dot: dot.x):
        if corners:
            corners.append((dot.x, corners[-1][1]))
        corners.append((dot.x, dot.y))
    return _points([*corners, (frame.x.end, corners[-1][1])] if corners else [])


def _round_logs(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten within the two, thinned out to powers of ten where they are too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in values if low <= value <= high]
        if len(inside) <= most:
            return inside if len(inside) > 1 else round_values(low, high, most)
    return inside[:: math.ceil(len(inside) / most)]


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _points(corners: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
