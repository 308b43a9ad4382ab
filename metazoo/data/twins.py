"""Images of a data set that are the same, pixel for pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LISTED = 100
MEMBERS = 10


@dataclass(frozen=True)
class Twins:
    """Groups of identical images.

    Attributes:
        within: split -> how many groups lie in it alone.
        across: how many groups lie in more than one split: training saw what is tested.
        groups: the names of the images of each group, those across splits first; of very many, the first ones.
    """

    within: Mapping[str, int]
    across: int
    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Twins:
        """From a manifest. Raises KeyError, TypeError or ValueError if it is not what `asdict` made."""
        return cls(dict(content["within"]), int(content["across"]), tuple(map(tuple, content["groups"])))

    @property
    def total(self) -> int:
        return self.across + sum(self.within.values())


def find_twins(marks: np.ndarray, split_of: Callable[[int], str], name: Callable[[int], str]) -> Twins:
    """The groups of images with the same fingerprint.

    Args:
        marks: uint8 [n, 16], a fingerprint an image.
        split_of, name: the split of image i, and what to call it.
    """
    keys = np.ascontiguousarray(marks).view("V16").ravel()
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]  # as the one before
    starts = np.flatnonzero(same & ~np.concatenate([[False], same[:-1]]))
    within: dict[str, int] = {}
    across: list[tuple[str, ...]] = []
    alone: list[tuple[str, ...]] = []
    number = 0
    for start in starts:
        end = int(start) + 1
        while end < len(same) and same[end]:
            end += 1
        members = [int(image) for image in order[start : end + 1]]
        splits = list(dict.fromkeys(split_of(image) for image in members))
        listed = across if len(splits) > 1 else alone
        if len(listed) < LISTED:
            listed.append(tuple(name(image) for image in members[:MEMBERS]))
        if len(splits) > 1:
            number += 1
        else:
            within[splits[0]] = within.get(splits[0], 0) + 1
    return Twins(within, number, tuple([*across, *alone][:LISTED]))
