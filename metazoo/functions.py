"""Episodes of a family of functions: which function task number `index` is, and at which points it is seen."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from numpy.typing import NDArray

from metazoo.data.families import FunctionFamily, Range
from metazoo.episodes import BLOCK, STREAM, Episodes, words
from metazoo.errors import UserError
from metazoo.placement import Place, sent


class FunctionStream:
    """The endless, fixed list of episodes of one split of a family, as float32 tensors on one device.

    An episode draws a function of its own, `shots` support points and, in the train split, `queries` query points, all
    uniformly. The query points of the other splits are the family's grid. Like the episodes of images it is a pure
    function of family, split, shots, queries, seed and index (where the grid is asked, `queries` plays no part). A
    value is that of the float32 input which the network is given. The splits are not disjoint sets of functions: no
    function is ever drawn twice.

    Raises UserError for a number below one.
    """

    def __init__(
        self, family: FunctionFamily, split: str, shots: int, queries: int, seed: int, device: torch.device | str
    ) -> None:
        for name, number in (("shots", shots), ("queries", queries)):
            if number < 1:
                raise UserError(f"Episodes need at least one of each: {name} is {number}; set it to 1 or more.")
        self.family, self.shots, self.device = family, shots, torch.device(device)
        self._grid = None if split == "train" else family.grid_points
        self._random_queries = queries if self._grid is None else 0
        self.queries = queries if self._grid is None else len(self._grid)
        """Query points of an episode."""
        self.place: Place | None = None
        identity = json.dumps([STREAM, family.name, split, shots, self._random_queries, seed])
        self._key = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
        self._block: tuple[int, list[torch.Tensor]] | None = None

    def batch(self, start: int, count: int) -> Episodes:
        """Episodes `start` to `start + count - 1`. Raises UserError unless start >= 0 and count >= 1."""
        if start < 0 or count < 1:
            raise UserError(f"Episodes count from 0 and come at least one at a time, not {count} from {start}.")
        parts = []
        for number in range(start // BLOCK, (start + count - 1) // BLOCK + 1):
            first = number * BLOCK
            wanted = slice(max(start - first, 0), min(start + count - first, BLOCK))
            parts.append([tensor[wanted] for tensor in self._block_of(number)])
        tensors = parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        support_x, support_y, query_x, query_y = tensors
        numbers = torch.arange(start, start + count)
        return Episodes(support_x, support_y, query_x, query_y, self.family.outputs, numbers)

    def _block_of(self, number: int) -> list[torch.Tensor]:
        if self._block is None or self._block[0] != number:
            self._block = number, [sent(part, self.device) for part in self._draw(number * BLOCK, BLOCK)]
        return self._block[1]

    def _draw(self, start: int, count: int) -> list[torch.Tensor]:
        """Support inputs and targets, query inputs and targets of `count` episodes."""
        family = self.family
        points = self.shots + self._random_queries
        seeds = words(self._key, np.arange(start, start + count, dtype=np.uint64))
        slots = np.arange(len(family.parameters) + points * len(family.inputs), dtype=np.uint64)
        shares = (words(seeds[:, None], slots) >> np.uint64(11)) * 2.0**-53
        parameters, x = np.split(shares, [len(family.parameters)], axis=1)
        parameters = _between(list(family.parameters.values()), parameters)
        x = _between(family.inputs, x.reshape(count, points, len(family.inputs)))
        support, query = x[:, : self.shots], x[:, self.shots :]
        if self._grid is not None:
            query = np.broadcast_to(self._grid, (count, *self._grid.shape))
        tensors = []
        for inputs in (support, query):
            seen = inputs.astype(np.float32)
            tensors += [seen, family.values(seen.astype(np.float64), parameters).astype(np.float32)]
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in tensors]


def _between(ranges: list[Range] | tuple[Range, ...], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers in the ranges [k] from shares [..., k] in [0, 1)."""
    low, high = np.array(ranges).T
    return low + (high - low) * shares
