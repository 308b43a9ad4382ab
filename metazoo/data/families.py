"""Families of functions: data sets whose tasks are drawn, never stored. A task is one function, to be learned from
a few of its points."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metazoo.data.dataset import FactSheet
from metazoo.data.inputs import NumberInputs
from metazoo.measures import SQUARED_ERROR

Values: TypeAlias = NDArray[np.float64]

Range: TypeAlias = tuple[float, float]
"""Lower and upper end, between which numbers are drawn uniformly."""


@dataclass(frozen=True, kw_only=True)
class FunctionFamily(FactSheet):
    """The fact sheet of a family of functions from d numbers to D numbers.

    Attributes:
        function: called as `function(x, name=value, ...)` with inputs `x` [T, n, d] and, for every parameter, an array
            [T, 1, 1] that broadcasts with them; returns [T, n, D], all of them float64. Row t is a function of its own.
        parameters: the range of each parameter, by name; a task draws all of them.
        inputs: the range of each of the d inputs.
        outputs: D, which is what a run's `ways` must be.
        grid: the query points of validation and test episodes are a fixed grid over the inputs, both ends included,
            with so many points along each.
    """

    kind = "functions"
    measure = SQUARED_ERROR

    function: Callable[..., Values]
    parameters: Mapping[str, Range]
    inputs: tuple[Range, ...]
    outputs: int = 1
    grid: int = 100

    @property
    def defaults(self) -> Mapping[str, Any]:
        return {"ways": self.outputs, "shots": 10, "queries": 10, "backbone": {"name": "mlp"}}

    def ways_text(self, ways: int) -> str:
        return ""

    def episode_text(self, ways: int, queries: int) -> str:
        return f"{queries} random query points in training, a grid of {len(self.grid_points)} in validation and test"

    def values(self, x: Values, drawn: Values) -> Values:
        """The values [T, n, D] of T functions at `x` [T, n, d], their parameters `drawn` [T, P] in order."""
        parameters = {name: drawn[:, index, None, None] for index, name in enumerate(self.parameters)}
        return np.asarray(self.function(x, **parameters), dtype=np.float64)

    @cached_property
    def grid_points(self) -> Values:
        """The fixed query points [n, d] of validation and test."""
        axes = [np.linspace(low, high, self.grid) for low, high in self.inputs]
        return np.array(list(itertools.product(*axes)))

    @property
    def network_inputs(self) -> NumberInputs:
        """What a network trained on it is fed."""
        return NumberInputs(length=len(self.inputs))

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over what the family is: its ranges, and values that its function gives."""
        shares = (np.arange(1, 8)[:, None] * np.sqrt(np.arange(2, 2 + len(self.parameters)))) % 1
        low, high = np.array(list(self.parameters.values())).T
        x = np.broadcast_to(self.grid_points, (len(shares), *self.grid_points.shape))
        # Rounded, because machines differ in a function's last digits; plus 0, so that there is only one zero.
        values = np.round(self.values(x, low + (high - low) * shares), 6) + 0.0
        content = [self.name, dict(self.parameters), self.inputs, self.outputs, self.grid, values.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
