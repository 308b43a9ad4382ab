"""What the network of a run is fed: what of its source it must be given again wherever it is tested."""

from __future__ import annotations

from typing import Literal

from metazoo.schema import Strict


class ImageInputs(Strict):
    """Square images."""

    kind: Literal["images"] = "images"
    channels: int
    mean: list[float]
    """Of the source's training split, per channel, in [0, 1]."""
    std: list[float]

    def shape(self, size: int | None) -> tuple[int, ...]:
        """`(C, H, W)` of an image of `size` pixels."""
        assert size is not None, "images have a size"
        return self.channels, size, size


class NumberInputs(Strict):
    """Vectors of numbers, as they are."""

    kind: Literal["functions"] = "functions"
    length: int

    def shape(self, size: int | None) -> tuple[int, ...]:
        """`(d,)`."""
        return (self.length,)


Inputs = ImageInputs | NumberInputs
