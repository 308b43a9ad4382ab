"""Methods that exist only as rows of the golden table."""

from __future__ import annotations

from metazoo.algorithm import Algorithm


class Steady(Algorithm):
    name = "golden_steady"
    title = "Steady"

    class Settings(Algorithm.Settings):
        inner_lr: float = 0.01


class Slow(Steady):
    name = "golden_slow"
    title = "Slow & sure"


class Half(Steady):
    name = "golden_half"
    title = "Half_way"


class Loud(Steady):
    name = "golden_loud"
    title = "Loud"


class Late(Steady):
    name = "golden_late"
    title = "Late"
