"""sinusoid: regression of sine curves that differ in amplitude and phase. It needs no data."""

import numpy as np

from metazoo.data.families import FunctionFamily, Values


def sinusoid(x: Values, amplitude: Values, phase: Values) -> Values:
    return amplitude * np.sin(x - phase)


DATASET = FunctionFamily(
    name="sinusoid",
    title="Sinusoids",
    citation=(
        "Finn, Abbeel, Levine: Model-agnostic meta-learning for fast adaptation of deep networks. ICML 2017, section "
        "5.1. Tested as in Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson: Fast context adaptation via meta-learning. "
        "ICML 2019."
    ),
    terms="A formula.",
    where="Nothing to get: tasks are drawn as they are needed.",
    function=sinusoid,
    parameters={"amplitude": (0.1, 5.0), "phase": (0.0, np.pi)},
    inputs=((-5.0, 5.0),),
)
