"""First-order ANIL: ANIL whose meta-gradient ignores second derivatives."""

from __future__ import annotations

from metazoo.algorithms.anil import ANIL


class FOANIL(ANIL):
    name = "foanil"
    title = "FOANIL"
    stops_gradient = "the inner gradients"

    class Settings(ANIL.Settings):
        first_order: bool = True
