"""The geometry of the page's charts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from metazoo.leaderboard.charts import (
    POINTS,
    Dot,
    Frame,
    Scale,
    curve,
    front,
    labelled,
    round_values,
    steps,
    top_of,
    widened,
)


def frame(width: float = 360, height: float = 248) -> Frame:
    x, y = Scale(0, 100, 40, width - 8), Scale(0, 1, height - 30, 8)
    return Frame(width, height, x, y, [], [], "", "")


def dot(x: float, y: float, name: str = "method") -> Dot:
    return Dot(x, y, y, y, name, name, "card", False)


def test_a_scale_maps_its_ends_and_keeps_what_is_beyond_at_the_edge():
    scale = Scale(20, 60, 100, 0)
    assert (scale(20), scale(40), scale(60)) == (100, 50, 0)
    assert (scale(-5), scale(99)) == (100, 0)
    log = Scale(1, 100, 0, 10, log=True)
    assert log(10) == pytest.approx(5)


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 50, 5, [0, 20, 40]),
        (33.1, 46.9, 5, [35, 40, 45]),
        (0.18, 0.83, 5, [0.2, 0.4, 0.6, 0.8]),
        (1095, 1285, 5, [1100, 1150, 1200, 1250]),
        (0.0, 1.0, 6, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_round_values(low, high, most, expected):
    assert round_values(low, high, most) == pytest.approx(expected)


def test_ticks_of_time_are_whole_seconds_or_minutes():
    minute = 60.0
    linear = Scale(4 * minute, 19 * minute, 0, 100).ticks(
        lambda s: f"{s / minute:g}", steps=(1, 10, minute, 5 * minute)
    )
    assert [tick.text for tick in linear] == ["5", "10", "15"]
    log = Scale(20, 4000, 0, 100, log=True).ticks(lambda s: f"{s:g}", steps=(1, 10, 30, 60, 600, 3600))
    assert [tick.text for tick in log] == ["30", "60", "600", "3600"]


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (3, 40), (0.02, 0.9), (15, 18), (1, 1e9)])
def test_a_logarithmic_scale_has_at_least_two_ticks_and_not_too_many(low, high):
    ticks = Scale(low, high, 0, 100, log=True).ticks(str)
    assert 2 <= len(ticks) <= 6
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)


@pytest.mark.parametrize(
    ("values", "top"), [([0.459, 0.2], 0.5), ([0.754], 0.8), ([], 1.0), ([0.0], 1.0), ([0.5], 0.5)]
)
def test_bars_end_at_the_next_round_number(values, top):
    assert top_of(values) == pytest.approx(top)
    assert all(value <= top_of(values) for value in values)


def test_one_value_has_room_around_it():
    for value in (0.0, 0.3, -2.0):
        low, high = widened([value])
        assert low < value < high


def test_a_curve_passes_over_what_is_no_number_and_ends_with_the_last_epoch():
    drawn = curve(frame(), [1, 2, 3], [0.5, math.nan, 1.0], [0.1, math.nan, 0.1])
    assert len(drawn.line.split()) == 2 and len(drawn.band.split()) == 4
    assert drawn.last == (pytest.approx(frame().x(3)), 8)
    assert curve(frame(), [1], [math.nan]).line == ""
    long = curve(frame(), range(1, 1001), [0.5] * 1000)
    assert len(long.line.split()) <= POINTS + 1
    assert long.last[0] == pytest.approx(frame().x(100))


def test_a_band_that_is_not_known_everywhere_is_not_drawn():
    assert curve(frame(), [1, 2], [0.5, 0.6], [0.1, math.nan]).band == ""


def test_the_front_is_what_nothing_beats_in_both():
    # x is the cost, and the smaller y is the higher place.
    cheap, good, dear, poor = dot(10, 90), dot(50, 20), dot(90, 30), dot(20, 95)
    assert front([cheap, good, dear, poor], higher_is_better=True) == {0, 1}
    assert front([cheap, good, dear, poor], higher_is_better=False) == {0, 3}
    assert front([cheap, cheap], higher_is_better=True) == {0, 1}, "equals do not beat each other"


def test_the_line_of_the_front_is_a_staircase_to_the_right_edge():
    dots = [replace(dot(50, 20), on_front=True), dot(70, 50), replace(dot(10, 90), on_front=True)]
    assert steps(dots, frame()) == "10.0,90.0 50.0,90.0 50.0,20.0 352.0,20.0"
    assert steps([dot(1, 1)], frame()) == ""


def test_labels_never_touch_and_stay_inside():
    crowd = [dot(60 + 9 * index, 100 + 3 * index, f"method {index}") for index in range(25)]
    done = labelled(crowd, frame())
    boxes = []
    for each in done:
        if each.label:
            width = 5.6 * len(each.label)
            left = each.label_x - {"start": 0, "middle": width / 2, "end": width}[each.anchor]
            boxes.append((left, each.label_y - 5.5, left + width, each.label_y + 5.5))
    assert boxes, "some have room"
    assert len(boxes) < len(crowd), "not all have"
    for number, one in enumerate(boxes):
        assert one[0] >= 40 and one[2] <= 360
        for other in boxes[:number]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]


def test_those_on_the_front_are_labelled_first():
    crowd = [dot(100, 100, "x" * 20), dot(101, 100, "y" * 20), replace(dot(100, 101, "z" * 20), on_front=True)]
    assert labelled(crowd, frame())[2].label
