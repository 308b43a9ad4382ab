"""Episodes: the same list for ever, batches of it, and refusals of what is none."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from toys import split_of

from metazoo.data.store import Split
from metazoo.episodes import BLOCK, EpisodeRows, Episodes, EpisodeSampler, EpisodeStream, ImageTable, words
from metazoo.errors import UserError


def assert_same(one: EpisodeRows, other: EpisodeRows) -> None:
    for a, b in zip(one.arrays(), other.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)


def digest(rows: EpisodeRows) -> str:
    return hashlib.sha256(b"".join(array.astype("<i8").tobytes() for array in rows.arrays())).hexdigest()


# The stream


def test_words_are_splitmix64() -> None:
    # The first outputs of Vigna's splitmix64.c for the states 0 and 1234567.
    assert [hex(word) for word in words(0, np.arange(3, dtype=np.uint64))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]
    assert list(words(1234567, np.arange(2, dtype=np.uint64))) == [6457827717110365317, 3203168211198807973]


def defined_episode(split: Split, ways: int, shots: int, queries: int, seed: int, index: int) -> list[list[int]]:
    """One episode as the module's text defines it, with nothing but Python's integers and sort."""

    def word(seed: int, slot: int) -> int:
        state = (seed + (slot + 1) * 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    def floyd(size: int, drawn: list[int]) -> list[int]:
        chosen: list[int] = []
        for top, random in zip(range(size - len(drawn), size), drawn, strict=True):
            pick = random * (top + 1) >> 64
            chosen.append(top if pick in chosen else pick)
        return chosen

    def shuffled_by(keys: list[int], items: list) -> list:
        return [item for _, item in sorted(zip(keys, items, strict=True))]

    identity = json.dumps(["metazoo episodes 1", split.dataset, split.name, ways, shots, queries, seed])
    key = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    episode, slots = word(key, index), itertools.count()

    def take(count: int) -> list[int]:
        return [word(episode, next(slots)) for _ in range(count)]

    each = shots + queries
    draws = floyd(len(split.class_names), take(ways))
    classes = shuffled_by(take(ways), draws)
    image_draws, image_keys = take(ways * each), take(ways * each)
    images = []
    for label, number in enumerate(classes):
        draws = floyd(int(split.class_sizes[number]), image_draws[label::ways])
        images.append(
            [int(split.class_starts[number]) + i for i in shuffled_by(image_keys[label * each :][:each], draws)]
        )
    support = [(row, label) for label in range(ways) for row in images[label][:shots]]
    query = [(row, label) for label in range(ways) for row in images[label][shots:]]
    sets = [shuffled_by(take(len(pairs)), pairs) for pairs in (support, query)]
    return [classes, *(list(column) for pairs in sets for column in zip(*pairs, strict=True))]


@pytest.mark.parametrize("index", [0, BLOCK - 1, BLOCK, 123_456])
@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 2, 3), (1, 1, 1), (7, 1, 19)])
def test_an_episode_is_what_the_definition_says(ways: int, shots: int, queries: int, index: int) -> None:
    split = split_of([30, 20, 40, 25, 30, 22, 21])
    rows = EpisodeSampler(split, ways, shots, queries, seed=1).rows(index, 1)
    assert [array[0].tolist() for array in rows.arrays()] == defined_episode(split, ways, shots, queries, 1, index)


def test_the_stream_is_the_one_of_the_first_release() -> None:
    rows = EpisodeSampler(split_of([30, 20, 40, 25, 30, 22, 21]), ways=5, shots=2, queries=3, seed=1).rows(0, 4)
    assert rows.classes.tolist() == [[4, 1, 6, 3, 2], [5, 1, 4, 2, 3], [6, 1, 5, 4, 3], [3, 4, 0, 6, 2]]
    assert rows.support_rows[0].tolist() == [169, 178, 45, 39, 114, 71, 125, 68, 113, 131]
    assert digest(rows) == "6437e6606aa419002ea4edfb0ebd396f6cf6cb028f33acd4e5d90a3b9abdffe6"
    omniglot = EpisodeSampler(split_of([20] * 60, name="test", dataset="omniglot"), 20, 1, 15, seed=0).rows(1000, 3)
    assert digest(omniglot) == "e95f868d1884e0cc3df069a82ba037472e81c9ac1c5f555ae14e92a47a08c917"


@pytest.mark.parametrize("start", [0, BLOCK - 2, 3 * BLOCK, 10**12])
@pytest.mark.parametrize("step", [1, 3, BLOCK, 2 * BLOCK + 1])
def test_episodes_do_not_depend_on_how_many_are_asked_for_at_once(start: int, step: int) -> None:
    split = split_of([9, 12, 10, 30])
    whole = EpisodeSampler(split, 3, 1, 4, seed=5).rows(start, 2 * BLOCK + 3)
    sampler = EpisodeSampler(split, 3, 1, 4, seed=5)
    parts = [sampler.rows(start + first, min(step, len(whole) - first)) for first in range(0, len(whole), step)]
    assert_same(
        whole, EpisodeRows(*(np.concatenate(arrays) for arrays in zip(*map(EpisodeRows.arrays, parts), strict=True)))
    )


def test_episodes_do_not_depend_on_what_was_asked_before() -> None:
    split = split_of([9, 12, 10, 30])
    sampler = EpisodeSampler(split, 3, 1, 4, seed=5)
    for start in (700, 3, 5000, 3):
        sampler.rows(start, 7)
    assert_same(sampler.rows(126, 5), EpisodeSampler(split, 3, 1, 4, seed=5).rows(126, 5))


def test_what_a_caller_does_to_its_rows_stays_with_the_caller() -> None:
    sampler = EpisodeSampler(split_of([20] * 6), 5, 1, 5, seed=0)
    before = digest(sampler.rows(0, 4))
    for array in sampler.rows(0, 4).arrays():
        array[:] = -1
    assert digest(sampler.rows(0, 4)) == before


def test_the_size_of_the_images_plays_no_part() -> None:
    small, large = (split_of([16, 20, 16, 18, 16, 16], shape) for shape in ((1, 28, 28), (3, 84, 84)))
    assert_same(EpisodeSampler(small, 5, 1, 15, 3).rows(0, 50), EpisodeSampler(large, 5, 1, 15, 3).rows(0, 50))


def test_everything_in_the_identity_gives_episodes_of_its_own() -> None:
    sizes = [40] * 12
    base = EpisodeSampler(split_of(sizes), 5, 1, 5, seed=1).rows(0, 200).classes
    others = {
        "data set": EpisodeSampler(split_of(sizes, dataset="tools"), 5, 1, 5, seed=1),
        "split": EpisodeSampler(split_of(sizes, name="test"), 5, 1, 5, seed=1),
        "shots": EpisodeSampler(split_of(sizes), 5, 2, 5, seed=1),
        "queries": EpisodeSampler(split_of(sizes), 5, 1, 6, seed=1),
        "seed": EpisodeSampler(split_of(sizes), 5, 1, 5, seed=2),
        "negative seed": EpisodeSampler(split_of(sizes), 5, 1, 5, seed=-1),
        "ways": EpisodeSampler(split_of(sizes), 6, 1, 5, seed=1),
    }
    for name, sampler in others.items():
        agreement = (sampler.rows(0, 200).classes[:, :5] == base).mean()
        assert agreement < 0.15, f"{name}: {agreement:.0%} of the classes agree where 8% would by chance"


# What people get wrong


@pytest.mark.parametrize(
    ("numbers", "words_of_it"),
    [
        ((10, 1, 3), ["The train split of toys", "has 5 classes", "10-way", "at least 10", "lower ways"]),
        ((3, 5, 15), ["'class3'", "train split of toys", "has 12 images", "at least 20", "lower shots or queries"]),
        ((0, 1, 1), ["ways is 0"]),
        ((5, -1, 1), ["shots is -1"]),
        ((5, 1, 0), ["queries is 0"]),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(numbers: tuple[int, int, int], words_of_it: list[str]) -> None:
    with pytest.raises(UserError) as error:
        EpisodeSampler(split_of([20, 25, 30, 12, 19]), *numbers, seed=0)
    assert all(part in str(error.value) for part in words_of_it), str(error.value)


def test_a_class_may_be_used_up_to_its_last_image() -> None:
    rows = EpisodeSampler(split_of([6, 6, 6]), 3, 2, 4, seed=0).rows(0, 20)
    together = np.sort(np.concatenate((rows.support_rows, rows.query_rows), axis=1), axis=1)
    np.testing.assert_array_equal(together, np.tile(np.arange(18), (20, 1)))


@pytest.mark.parametrize(("start", "count"), [(-1, 4), (0, 0), (5, -2)])
def test_rows_refuses_what_is_no_range_of_episodes(start: int, count: int) -> None:
    with pytest.raises(UserError, match=f"not {count} from {start}"):
        EpisodeSampler(split_of([6, 6, 6]), 3, 2, 4, seed=0).rows(start, count)


# Batches


def test_a_batch_holds_the_images_of_its_rows() -> None:
    split = split_of([20, 24, 20, 33, 20, 20], shape=(3, 5, 5))
    table = ImageTable(split, "cpu", torch.float64)
    stream = EpisodeStream(EpisodeSampler(split, 5, 2, 6, seed=1), table)
    batch, rows = stream.batch(126, 4), stream.sampler.rows(126, 4)
    assert len(batch) == 4 and batch.ways == 5
    assert batch.support_x.shape == (4, 10, 3, 5, 5) and batch.query_x.shape == (4, 30, 3, 5, 5)
    assert batch.support_x.is_contiguous() and batch.query_x.is_contiguous()
    assert torch.equal(batch.support_x, table.gather(rows.support_rows))
    assert torch.equal(batch.query_x, table.gather(rows.query_rows))
    assert torch.equal(batch.support_y, torch.from_numpy(rows.support_labels))
    assert torch.equal(batch.query_y, torch.from_numpy(rows.query_labels))
    alone = stream.batch(128, 1)
    assert torch.equal(alone.query_x[0], batch.query_x[2]) and torch.equal(alone.query_y[0], batch.query_y[2])


def test_chunks_are_the_same_episodes_in_order() -> None:
    split = split_of([20] * 6)
    batch = EpisodeStream(EpisodeSampler(split, 5, 1, 6, seed=1), ImageTable(split, "cpu")).batch(0, 7)
    chunks = list(batch.chunks(3))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1] and all(chunk.ways == 5 for chunk in chunks)
    for name in ("support_x", "support_y", "query_x", "query_y"):
        assert torch.equal(torch.cat([getattr(chunk, name) for chunk in chunks]), getattr(batch, name))
    assert chunks[1].query_x.data_ptr() == batch.query_x[3:].data_ptr()
    with pytest.raises(ValueError, match="not 0"):
        next(batch.chunks(0))


def test_a_table_of_another_split_is_refused() -> None:
    train, test = split_of([20] * 6), split_of([20] * 6, name="test")
    with pytest.raises(ValueError, match="different splits"):
        EpisodeStream(EpisodeSampler(train, 5, 1, 6, seed=1), ImageTable(test, "cpu"))


@pytest.mark.parametrize(
    "changes",
    [
        {"support_x": torch.zeros(2, 5, 1, 4)},
        {"support_y": torch.zeros(2, 4, dtype=torch.int64)},
        {"query_x": torch.zeros(3, 10, 1, 4, 4), "query_y": torch.zeros(3, 10, dtype=torch.int64)},
        {"query_x": torch.zeros(2, 10, 1, 4, 5)},
        {"query_x": torch.zeros(2, 10, 1, 4, 4, dtype=torch.uint8)},
        {"query_y": torch.zeros(2, 10, dtype=torch.int32)},
        {"ways": 3},
        {"query_x": torch.zeros(2, 0, 1, 4, 4), "query_y": torch.zeros(2, 0, dtype=torch.int64)},
    ],
)
def test_tensors_that_do_not_fit_together_are_no_episodes(changes: dict[str, Any]) -> None:
    fitting: dict[str, Any] = {
        "support_x": torch.zeros(2, 5, 1, 4, 4),
        "support_y": torch.zeros(2, 5, dtype=torch.int64),
        "query_x": torch.zeros(2, 10, 1, 4, 4),
        "query_y": torch.zeros(2, 10, dtype=torch.int64),
        "ways": 5,
    }
    assert len(Episodes(**fitting)) == 2
    with pytest.raises(ValueError):
        Episodes(**{**fitting, **changes})
