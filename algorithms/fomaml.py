"""First-order MAML: MAML whose meta-gradient ignores second derivatives."""

from __future__ import annotations

from metazoo.algorithms.maml import MAML


class FOMAML(MAML):
    name = "fomaml"
    title = "FOMAML"
    stops_gradient = "the inner gradients"

    class Settings(MAML.Settings):
        first_order: bool = True
