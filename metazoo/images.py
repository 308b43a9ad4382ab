"""The images of one split as a table on a device, from which episodes are gathered without worker processes."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from metazoo.data.store import Split
from metazoo.placement import Placement, choose, sent

# On a CPU a large batch is made this many values at a time: what one step writes, the next still finds in the cache.
VALUES_AT_A_TIME = 1 << 20


class ImageTable:
    """The uint8 images of a split, gathered by row as normalised floating-point tensors on `device`.

    `placement` says where the table lies, one of `Placement`; by default `placement.choose` does. On a GPU the images
    of a batch that are not there already travel through pinned host memory. The results are the same, bit for bit.

    A pixel p in 0..255 becomes p * scale + shift, where scale = 1 / (255 std) and shift = -mean / std, with `mean`
    and `std` one number per channel in units of [0, 1] (default 0 and 1). The product is rounded before the sum, not
    fused with it, so that a CPU and a GPU give the same bits.

    Raises ValueError for a type that is not floating, means or stds that are not one per channel, or a std not above 0.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        placement: Placement | None = None,
    ) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"Images are gathered in a floating-point type, not {dtype}.")
        self.split, self.device, self.dtype = split, torch.device(device), dtype
        self.image_shape: tuple[int, ...] = tuple(split.images.shape[1:])
        channels = self.image_shape[0]
        means = [0.0] * channels if mean is None else [float(value) for value in mean]
        stds = [1.0] * channels if std is None else [float(value) for value in std]
        if len(means) != channels or len(stds) != channels:
            raise ValueError(f"{channels} channels need as many means and stds, not {len(means)} and {len(stds)}.")
        if min(stds) <= 0:
            raise ValueError(f"A channel's std must be above 0, not {min(stds)}.")
        self._scale = self._per_channel([1 / (255 * s) for s in stds])
        self._shift = self._per_channel([-m / s for m, s in zip(means, stds, strict=True)]) if any(means) else None

        images = _tensor(split.images).flatten(1)
        self.place = choose(images.nbytes, self.device, placement)
        if self.place.placement == "disk":
            self._images = images
        else:  # a copy: `to` alone would leave a mapped file where it is
            self._images = images.to(self.device if self.place.placement == "device" else "cpu", copy=True)
        self._pixel_blocks, self._image_blocks = _Blocks(), _Blocks()

    def __len__(self) -> int:
        return len(self._images)

    def gather(self, rows: torch.Tensor | np.ndarray) -> torch.Tensor:
        """The images of `rows` (int64 of any shape [*]) as [*, C, H, W]; IndexError for a row not in the table."""
        index = torch.as_tensor(rows)
        flat = index.reshape(-1)
        if self.device.type == "cpu":
            images = self._gathered_by_parts(flat)
        elif self._images.device.type == "cpu":
            size = len(flat), self._images.shape[1]
            staging = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            pixels = self.send(torch.index_select(self._images, 0, flat.cpu(), out=staging))
            images = self._normalised(pixels.to(self.dtype))
        else:
            images = self._normalised(self._images.index_select(0, self.send(flat)).to(self.dtype))
        return images.view(*index.shape, *self.image_shape)

    def _gathered_by_parts(self, rows: torch.Tensor) -> torch.Tensor:
        width = self._images.shape[1]
        images = self._image_blocks.take((len(rows), width), self.dtype)
        size = max(1, VALUES_AT_A_TIME // width)
        for part, own in zip(images.split(size), rows.split(size), strict=True):
            pixels = self._pixel_blocks.take((len(own), width), torch.uint8)
            part.copy_(torch.index_select(self._images, 0, own, out=pixels))
            self._normalised(part)
        return images

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` on the table's device."""
        return sent(tensor, self.device)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Pixel values [n, C*H*W] times scale plus shift, in place."""
        by_channel = images.view(len(images), self.image_shape[0], -1)
        by_channel.mul_(self._scale)
        if self._shift is not None:
            by_channel.add_(self._shift)
        return images

    def _per_channel(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)[:, None]


def _tensor(images: np.ndarray) -> torch.Tensor:
    """`images` as a tensor of the same memory; torch warns of read-only maps, as if it were to write there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(images)


class _Blocks:
    """Host memory for batches, used again once no tensor refers to it any more.

    A batch is several megabytes, which the C library returns to the system when it is freed and fetches page by page
    when it is next needed; that can cost several times as much as filling it.
    """

    def __init__(self) -> None:
        self._free: deque[torch.Tensor] = deque(maxlen=2)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor; its memory returns here when the last tensor that shares it is gone."""
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        try:
            block = self._free.pop()
        except IndexError:
            block = torch.empty(0, dtype=torch.uint8)
        if len(block) < nbytes:
            block = torch.empty(nbytes, dtype=torch.uint8)
        # torch keeps this array alive for as long as any tensor uses the memory, views included.
        lent = block.numpy()
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent)[:nbytes].view(dtype).view(shape)
