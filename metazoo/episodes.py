"""Episodes: which images make up task number `index`, and the batches of tensors made from them.

Every random number is a hash of what it is for, so episode `index` is the same wherever and whenever it is asked for:
there is no generator whose state could depend on the batch size, the order of requests, the device or a resumed run.
The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
constants of Vigna's splitmix64.c), used as a counter: word `slot` of episode `index` is word `slot` of the SplitMix64
stream whose seed is word `index` of the stream seeded by SHA-256 of the episodes' identity. Within one stream the
words are distinct, so sorting by them shuffles without ties, on every machine alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from metazoo.data.store import Split
from metazoo.errors import UserError
from metazoo.images import ImageTable
from metazoo.placement import Place

__all__ = ["EpisodeRows", "EpisodeSampler", "EpisodeStream", "Episodes", "ImageTable"]

# Part of every episode's identity: to be raised when the same seed is to mean other episodes.
STREAM = "metazoo episodes 1"
# Episodes are drawn this many at a time, which costs little more than drawing one. It changes the speed and no episode.
BLOCK = 128


@dataclass(frozen=True, eq=False)
class EpisodeRows:
    """Which rows of a split make up T episodes, and their labels; int64 arrays.

    `classes` [T, N] is the class behind each label: label `l` of episode `t` means class `classes[t, l]` of the
    split. `support_rows` and `support_labels` are [T, N*K], `query_rows` and `query_labels` [T, N*Q], each set in an
    order of its own that says nothing about labels.
    """

    classes: np.ndarray
    support_rows: np.ndarray
    support_labels: np.ndarray
    query_rows: np.ndarray
    query_labels: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The five arrays, in the order of the fields."""
        return self.classes, self.support_rows, self.support_labels, self.query_rows, self.query_labels


class EpisodeSampler:
    """The endless, fixed list of episodes of one split.

    A pure function of data set, split, ways, shots, queries, seed and index. An episode draws `ways` classes uniformly
    without replacement, in uniform order (the order is the labelling), and in each of them `shots + queries` images
    uniformly without replacement. Classes may differ in size. The images' size plays no part: a data set packed at 28
    and at 84 pixels gives the same rows.

    Raises UserError when the split cannot supply such episodes: too few classes, a class with too few images, or a
    number below one.
    """

    def __init__(self, split: Split, ways: int, shots: int, queries: int, seed: int) -> None:
        for name, number in (("ways", ways), ("shots", shots), ("queries", queries)):
            if number < 1:
                raise UserError(f"Episodes need at least one of each: {name} is {number}; set it to 1 or more.")
        where = f"the {split.name} split of {split.dataset}"
        if ways > len(split.class_names):
            raise UserError(
                f"{where[0].upper()}{where[1:]} has {len(split.class_names)} classes, "
                f"{ways}-way episodes need at least {ways}; lower ways."
            )
        smallest = int(np.argmin(split.class_sizes))
        if split.class_sizes[smallest] < shots + queries:
            raise UserError(
                f"Class '{split.class_names[smallest]}' in {where} has {split.class_sizes[smallest]} images, "
                f"{shots}-shot episodes with {queries} queries need at least {shots + queries}; lower shots or queries."
            )
        self.split = split
        self.ways, self.shots, self.queries, self.seed = int(ways), int(shots), int(queries), int(seed)
        self._starts = np.array(split.class_starts, dtype=np.int64)
        self._sizes = np.array(split.class_sizes, dtype=np.int64)
        identity = json.dumps([STREAM, split.dataset, split.name, self.ways, self.shots, self.queries, self.seed])
        self._key = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
        self._block: tuple[int, EpisodeRows] | None = None

    def rows(self, start: int, count: int) -> EpisodeRows:
        """Episodes `start` to `start + count - 1`, in arrays that are the caller's own.

        Raises UserError unless start >= 0 and count >= 1.
        """
        if start < 0 or count < 1:
            raise UserError(f"Episodes count from 0 and come at least one at a time, not {count} from {start}.")
        parts = []
        for number in range(start // BLOCK, (start + count - 1) // BLOCK + 1):
            first = number * BLOCK
            wanted = slice(max(start - first, 0), min(start + count - first, BLOCK))
            parts.append([array[wanted] for array in self._block_of(number).arrays()])
        return EpisodeRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _block_of(self, number: int) -> EpisodeRows:
        if self._block is None or self._block[0] != number:
            self._block = number, self._draw(number * BLOCK, BLOCK)
        return self._block[1]

    def _draw(self, start: int, count: int) -> EpisodeRows:
        ways, shots, queries = self.ways, self.shots, self.queries
        each = shots + queries
        seeds = words(self._key, np.arange(start, start + count, dtype=np.uint64))
        uses = [ways, ways, ways * each, ways * each, ways * shots, ways * queries]
        class_draw, class_order, image_draw, image_order, support_order, query_order = np.split(
            np.arange(sum(uses), dtype=np.uint64), np.cumsum(uses)[:-1]
        )

        draws = words(seeds, class_draw[:, None])
        classes = _shuffled(distinct(draws, np.full(count, len(self._sizes))), words(seeds[:, None], class_order))

        draws = words(seeds[:, None], image_draw.reshape(each, 1, ways)).reshape(each, count * ways)
        order = words(seeds[:, None], image_order).reshape(count * ways, each)
        images = _shuffled(distinct(draws, self._sizes[classes].ravel()), order).reshape(count, ways, each)
        images += self._starts[classes][:, :, None]

        support = np.argsort(words(seeds[:, None], support_order), axis=1)
        query = np.argsort(words(seeds[:, None], query_order), axis=1)
        return EpisodeRows(
            classes,
            np.take_along_axis(images[:, :, :shots].reshape(count, -1), support, axis=1),
            support // shots,
            np.take_along_axis(images[:, :, shots:].reshape(count, -1), query, axis=1),
            query // queries,
        )


def words(seeds: int | np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Outputs number `slots` (from 0) of the SplitMix64 generators seeded by `seeds`, broadcast together; uint64."""
    state = (slots + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(seeds, dtype=np.uint64)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def bounded(random: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Integers in [0, bounds) from 64-bit words by multiply-shift, floor(random * bounds / 2**64); int64.

    For bounds up to 2**31. No value is likelier than another by a factor of more than 1 + 2**-32.
    """
    size = np.asarray(bounds, dtype=np.uint64)
    low = ((random & np.uint64(0xFFFFFFFF)) * size) >> np.uint64(32)
    return (((random >> np.uint64(32)) * size + low) >> np.uint64(32)).astype(np.int64)


def distinct(random: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """For each column r of `random` [k, R], k different integers below `sizes[r]`; [k, R] int64.

    Every set of k is equally likely, but not every order within it: shuffle before use. Floyd's algorithm (Bentley and
    Floyd, CACM 30(9), 1987), all columns at once: the cost depends on k and not on the sizes.
    """
    count = len(random)
    tops = sizes - count + np.arange(count, dtype=np.int64)[:, None]
    chosen = bounded(random, tops + 1)
    for draw in range(1, count):
        taken = (chosen[:draw] == chosen[draw]).any(axis=0)
        np.copyto(chosen[draw], tops[draw], where=taken)
    return chosen


def _shuffled(columns: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The columns of `columns` [k, R] as rows [R, k], each in the order of its random words `order` [R, k]."""
    return np.take_along_axis(columns.T, np.argsort(order, axis=1), axis=1)


@dataclass(frozen=True, eq=False)
class Episodes:
    """T episodes as tensors on one device, ready for a learner.

    Classification: `support_x` [T, N*K, C, H, W] and `query_x` [T, N*Q, C, H, W] are of a floating type, `support_y`
    [T, N*K] and `query_y` [T, N*Q] int64 labels in [0, ways). Regression: inputs [T, n, ...] and targets
    [T, n, ways] of a floating type, `ways` numbers to be hit by each. Raises ValueError when the shapes or types do
    not fit together.
    """

    support_x: torch.Tensor
    support_y: torch.Tensor
    query_x: torch.Tensor
    query_y: torch.Tensor
    ways: int
    numbers: torch.Tensor | None = None
    """Which episodes of their stream they are, [T] int64 on the CPU; what a method draws at random, it draws by it."""

    def __post_init__(self) -> None:
        tasks, each = self.support_x.shape[:1], self.support_x.shape[2:]
        regression = self.support_y.dtype.is_floating_point
        for name, x, y in (("support", self.support_x, self.support_y), ("query", self.query_x, self.query_y)):
            if x.shape[:2] != y.shape[:2] or y.ndim != 2 + regression or x.shape[:1] != tasks or x.shape[2:] != each:
                raise ValueError(f"{name} images {tuple(x.shape)} and labels {tuple(y.shape)} do not fit the episodes.")
            if y.dtype != (x.dtype if regression else torch.int64) or not x.dtype.is_floating_point:
                raise ValueError(f"{name} images and labels must be floating and int64, not {x.dtype} and {y.dtype}.")
            if y.shape[1] == 0 or (y.shape[2] != self.ways if regression else y.shape[1] % self.ways):
                raise ValueError(f"{y.shape[1]} {name} images cannot be shared equally by {self.ways} ways.")
        if self.numbers is not None and self.numbers.shape != tasks:
            raise ValueError(f"{len(self)} episodes have {tuple(self.numbers.shape)} numbers.")

    def __len__(self) -> int:
        return len(self.support_x)

    def select(self, tasks: slice | list[int]) -> Episodes:
        """Some of the episodes, by position; a slice copies nothing."""
        support, query = (self.support_x[tasks], self.support_y[tasks]), (self.query_x[tasks], self.query_y[tasks])
        return Episodes(*support, *query, self.ways, None if self.numbers is None else self.numbers[tasks])

    def repeated(self, times: int) -> Episodes:
        """All of the episodes, and all of them again, `times` times."""
        return Episodes(
            torch.cat([self.support_x] * times),
            torch.cat([self.support_y] * times),
            torch.cat([self.query_x] * times),
            torch.cat([self.query_y] * times),
            self.ways,
            None if self.numbers is None else self.numbers.repeat(times),
        )

    def chunks(self, size: int) -> Iterator[Episodes]:
        """The same episodes, `size` at a time (the last chunk may be smaller), as views that copy nothing."""
        if size < 1:
            raise ValueError(f"A chunk holds at least one episode, not {size}.")
        for start in range(0, len(self), size):
            yield self.select(slice(start, start + size))

    def uniform(self, count: int, purpose: str) -> torch.Tensor:
        """Numbers in [0, 1) for each episode, [T, count] float64 on the CPU: the same whenever that episode comes.

        Different `purpose`s give unrelated numbers. Raises ValueError for episodes that have no `numbers`.
        """
        if self.numbers is None:
            raise ValueError("These episodes are not numbered, so nothing can be drawn for each of them.")
        key = int.from_bytes(hashlib.sha256(f"{STREAM} {purpose}".encode()).digest()[:8], "big")
        seeds = words(key, self.numbers.numpy().astype(np.uint64))
        drawn = words(seeds[:, None], np.arange(count, dtype=np.uint64))
        return torch.from_numpy((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53)


class EpisodeStream:
    """The episodes of a sampler with their images: batches of tensors on the table's device.

    Raises ValueError when the table holds the images of another split than the sampler draws from.
    """

    def __init__(self, sampler: EpisodeSampler, table: ImageTable) -> None:
        if _identity(sampler.split) != _identity(table.split):
            raise ValueError("The sampler and the image table belong to different splits.")
        self.sampler, self.table = sampler, table
        self.queries = sampler.ways * sampler.queries
        """Query images of an episode."""
        self.place: Place | None = table.place

    def batch(self, start: int, count: int) -> Episodes:
        """Episodes `start` to `start + count - 1`, as `EpisodeSampler.rows` names them; their images in one gather."""
        rows = self.sampler.rows(start, count)
        sizes = rows.support_rows.size, rows.query_rows.size
        images = self.table.gather(np.concatenate((rows.support_rows, rows.query_rows), axis=None))
        labels = self.table.send(torch.from_numpy(np.concatenate((rows.support_labels, rows.query_labels), axis=None)))
        support_x, query_x = (part.view(count, -1, *images.shape[1:]) for part in images.split(sizes))
        support_y, query_y = (part.view(count, -1) for part in labels.split(sizes))
        numbers = torch.arange(start, start + count)
        return Episodes(support_x, support_y, query_x, query_y, self.sampler.ways, numbers)


def _identity(split: Split) -> tuple[str, str, tuple[int, ...]]:
    return split.dataset, split.name, split.images.shape
