"""Episodes: the same list for ever, uniform in every respect, and worth nothing to a predictor that does not look."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from metazoo.data.store import Split
from metazoo.episodes import (
    BLOCK,
    EpisodeRows,
    Episodes,
    EpisodeSampler,
    EpisodeStream,
    ImageTable,
    bounded,
    distinct,
    words,
)
from metazoo.errors import UserError
from metazoo.images import fits

# Seeds are fixed, so a test here passes always or fails always. A fair stream with unlucky seeds would fail one of the
# chi-square tests below with a probability of about 2 %.
UNLIKELY = 1e-4


def split_of(
    sizes: list[int], shape: tuple[int, int, int] = (1, 2, 2), name: str = "train", dataset: str = "toys"
) -> Split:
    """A split whose images are all different: image r is filled from its row number."""
    rows = sum(sizes)
    images = (np.arange(rows)[:, None] * 7 + np.arange(int(np.prod(shape)))) % 251
    return Split(
        dataset=dataset,
        name=name,
        images=images.astype(np.uint8).reshape(rows, *shape),
        class_names=tuple(f"class{c}" for c in range(len(sizes))),
        class_starts=np.cumsum(sizes) - np.array(sizes),
        class_sizes=np.array(sizes),
    )


def classes_of(rows: np.ndarray, split: Split) -> np.ndarray:
    return np.searchsorted(split.class_starts, rows, side="right") - 1


def assert_same(one: EpisodeRows, other: EpisodeRows) -> None:
    for a, b in zip(one.arrays(), other.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)


def digest(rows: EpisodeRows) -> str:
    return hashlib.sha256(b"".join(array.astype("<i8").tobytes() for array in rows.arrays())).hexdigest()


def assert_uniform(values: np.ndarray, cells: int) -> None:
    assert chisquare(np.bincount(values.ravel(), minlength=cells)).pvalue > UNLIKELY


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


# The drawing


def test_bounded_is_the_high_part_of_the_product() -> None:
    random = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)
    random[:2] = 0, 2**64 - 1
    for bound in (1, 2, 3, 600, 2**31):
        expected = [int(word) * bound >> 64 for word in random]
        assert bounded(random, np.full(len(random), bound)).tolist() == expected


def test_distinct_draws_every_set_equally_often() -> None:
    random = words(11, np.arange(3 * 20_000, dtype=np.uint64)).reshape(3, -1)
    chosen = np.sort(distinct(random, np.full(20_000, 6)), axis=0)
    assert (np.diff(chosen, axis=0) > 0).all() and chosen.min() == 0 and chosen.max() == 5
    _, counts = np.unique(chosen, axis=1, return_counts=True)
    assert len(counts) == 20 and chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 1, 15), (5, 5, 15), (1, 1, 1), (8, 3, 13), (8, 16, 4)])
def test_every_episode_is_well_formed(ways: int, shots: int, queries: int) -> None:
    split = split_of([20, 31, 20, 24, 600, 22, 20, 41])  # some classes are used up entirely by K + Q = 20
    rows = EpisodeSampler(split, ways, shots, queries, seed=7).rows(0, 300)
    assert rows.classes.shape == (300, ways)
    assert rows.support_rows.shape == rows.support_labels.shape == (300, ways * shots)
    assert rows.query_rows.shape == rows.query_labels.shape == (300, ways * queries)
    assert all(array.dtype == np.int64 for array in rows.arrays())
    together = np.sort(np.concatenate((rows.support_rows, rows.query_rows), axis=1), axis=1)
    assert (np.diff(together, axis=1) > 0).all(), "an image is used twice in an episode"
    assert (np.diff(np.sort(rows.classes, axis=1), axis=1) > 0).all(), "a class is used twice in an episode"
    for images, labels, each in (
        (rows.support_rows, rows.support_labels, shots),
        (rows.query_rows, rows.query_labels, queries),
    ):
        np.testing.assert_array_equal(classes_of(images, split), np.take_along_axis(rows.classes, labels, axis=1))
        np.testing.assert_array_equal(np.sort(labels, axis=1), np.tile(np.repeat(np.arange(ways), each), (300, 1)))


def test_ordered_draws_of_classes_are_uniform() -> None:
    rows = EpisodeSampler(split_of([8, 8, 8, 8]), ways=3, shots=1, queries=1, seed=2).rows(0, 12_000)
    _, counts = np.unique(rows.classes, axis=0, return_counts=True)
    assert len(counts) == 4 * 3 * 2 and chisquare(counts).pvalue > UNLIKELY


def test_classes_are_uniform_under_every_label() -> None:
    rows = EpisodeSampler(split_of([8] * 23), ways=5, shots=1, queries=1, seed=3).rows(0, 8_000)
    for label in range(5):
        assert_uniform(rows.classes[:, label], 23)


def test_images_are_uniform_within_classes_of_any_size() -> None:
    split = split_of([6, 17, 40])
    rows = EpisodeSampler(split, ways=3, shots=1, queries=2, seed=4).rows(0, 12_000)
    for images, labels in ((rows.support_rows, rows.support_labels), (rows.query_rows, rows.query_labels)):
        of_class = np.take_along_axis(rows.classes, labels, axis=1)
        for number, (start, size) in enumerate(zip(split.class_starts, split.class_sizes, strict=True)):
            # The first image of the class in each episode: one a class and episode, so these are independent.
            first = np.argmax(of_class == number, axis=1)
            assert_uniform(images[np.arange(len(images)), first] - start, size)


def test_pairs_of_support_and_query_images_are_uniform() -> None:
    rows = EpisodeSampler(split_of([5]), ways=1, shots=1, queries=2, seed=5).rows(0, 12_000)
    drawn = np.concatenate((rows.support_rows, rows.query_rows), axis=1)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 5 * 4 * 3 and chisquare(counts).pvalue > UNLIKELY


def test_every_order_within_support_and_query_is_equally_likely() -> None:
    rows = EpisodeSampler(split_of([8] * 6), ways=3, shots=1, queries=2, seed=6).rows(0, 12_000)
    orders = [
        np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        for labels in (rows.support_labels, rows.query_labels)
    ]
    assert [len(values) for values, _, _ in orders] == [6, 90]
    for _, _, counts in orders:
        assert chisquare(counts).pvalue > UNLIKELY
    joint = np.histogram2d(orders[0][1].ravel(), orders[1][1].ravel(), bins=(6, 90))[0]
    assert chi2_contingency(joint).pvalue > UNLIKELY, "the two orders hang together"


def test_labels_are_uniform_at_every_position() -> None:
    rows = EpisodeSampler(split_of([25] * 9), ways=5, shots=5, queries=15, seed=7).rows(0, 4_000)
    pvalues = [
        chisquare(np.bincount(labels[:, position], minlength=5)).pvalue
        for labels in (rows.support_labels, rows.query_labels)
        for position in range(labels.shape[1])
    ]
    assert len(pvalues) == 100 and min(pvalues) > UNLIKELY
    assert 0.35 < np.mean(pvalues) < 0.65, "uniform p-values have mean 0.5, with a standard deviation of 0.03"


def test_an_episode_says_nothing_about_the_next_nor_a_seed_about_another() -> None:
    split = split_of([8] * 7)
    one, other = (EpisodeSampler(split, ways=2, shots=1, queries=1, seed=seed).rows(0, 10_001) for seed in (8, 9))
    first, label = one.classes[:, 0], one.support_labels[:, 0]
    for a, b in ((first[:-1], first[1:]), (label[:-1], label[1:]), (first, other.classes[:, 0]), (first, label)):
        table = np.histogram2d(a, b, bins=(len(np.unique(a)), len(np.unique(b))))[0]
        assert chi2_contingency(table).pvalue > UNLIKELY


# Predictors that know nothing of the images


EPISODES = 3_000


@pytest.fixture(scope="module")
def five_way() -> tuple[Split, EpisodeRows]:
    split = split_of([40, 25, 60, 33, 21, 40, 50, 28])
    return split, EpisodeSampler(split, ways=5, shots=1, queries=15, seed=42).rows(0, EPISODES)


def assert_at_chance(predicted: np.ndarray, labels: np.ndarray) -> None:
    """Mean accuracy is 1 in 5 to within four standard errors over episodes, at most two points."""
    accuracy = (predicted == labels).mean(axis=1)
    margin = 4 * accuracy.std(ddof=1) / np.sqrt(len(accuracy))
    assert margin < 0.02
    assert abs(accuracy.mean() - 0.2) <= margin + 1e-12, f"{accuracy.mean():.4f} is not 0.2 to within {margin:.4f}"


def best_label(keys: np.ndarray, labels: np.ndarray, cells: int) -> np.ndarray:
    """For each key the label it had most often."""
    return np.histogram2d(keys.ravel(), labels.ravel(), bins=(np.arange(cells + 1), np.arange(6)))[0].argmax(axis=1)


def test_an_oracle_is_right_and_a_constant_is_at_chance(five_way: tuple[Split, EpisodeRows]) -> None:
    split, rows = five_way
    query_classes = classes_of(rows.query_rows, split)
    support_classes = classes_of(rows.support_rows, split)
    match = (query_classes[:, :, None] == support_classes[:, None, :]).argmax(axis=2)
    oracle = np.take_along_axis(rows.support_labels, match, axis=1)
    assert (oracle == rows.query_labels).all()
    for label in range(5):
        assert ((rows.query_labels == label).mean(axis=1) == 0.2).all()

    shuffled = np.random.default_rng(0).permuted(rows.support_labels, axis=1)
    assert_at_chance(np.take_along_axis(shuffled, match, axis=1), rows.query_labels)


def test_the_position_of_a_query_tells_nothing(five_way: tuple[Split, EpisodeRows]) -> None:
    _, rows = five_way
    learnt, held_out = rows.query_labels[: EPISODES // 2], rows.query_labels[EPISODES // 2 :]
    positions = np.broadcast_to(np.arange(75), learnt.shape)
    assert_at_chance(best_label(positions, learnt, 75)[positions], held_out)
    assert_at_chance(np.tile(rows.support_labels, 15), rows.query_labels)
    assert_at_chance(np.repeat(rows.support_labels, 15, axis=1), rows.query_labels)


def test_the_class_and_the_row_tell_nothing_about_the_label(five_way: tuple[Split, EpisodeRows]) -> None:
    split, rows = five_way
    classes = classes_of(rows.query_rows, split)
    half = EPISODES // 2
    assert_at_chance(best_label(classes[:half], rows.query_labels[:half], 8)[classes[half:]], rows.query_labels[half:])
    in_storage_order = np.argsort(np.argsort(rows.query_rows, axis=1), axis=1) // 15
    assert_at_chance(in_storage_order, rows.query_labels)


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


# Images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("resident", [True, False])
def test_gather_normalises_the_images_of_its_rows(dtype: torch.dtype, resident: bool) -> None:
    split = split_of([9, 11], shape=(3, 4, 4))
    rows = np.array([[0, 19, 3], [3, 7, 0]])
    pixels = split.images[rows].astype(np.float64) / 255
    plain = ImageTable(split, "cpu", dtype, resident=resident).gather(rows)
    assert plain.shape == (2, 3, 3, 4, 4) and plain.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(plain.numpy(), pixels, atol=tolerance)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 0.5)
    table = ImageTable(split, torch.device("cpu"), dtype, mean=mean, std=std, resident=resident)
    expected = (pixels - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(table.gather(torch.from_numpy(rows)).numpy(), expected, atol=10 * tolerance)
    with pytest.raises(IndexError):
        table.gather(np.array([20]))


def test_a_batch_made_in_parts_is_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of([20] * 5, shape=(3, 4, 4))
    rows = np.random.default_rng(0).integers(0, 100, (4, 9))
    whole = ImageTable(split, "cpu", mean=(0.1, 0.5, 0.9)).gather(rows)
    for values in (1, 48 * 7, 48 * 36, 10**6):
        monkeypatch.setattr("metazoo.images.VALUES_AT_A_TIME", values)
        assert torch.equal(ImageTable(split, "cpu", mean=(0.1, 0.5, 0.9)).gather(rows), whole)


def test_a_packed_file_is_mapped_and_not_copied(tmp_path: Path) -> None:
    split = split_of([9, 11], shape=(1, 6, 6))
    file = tmp_path / "train.bin"
    file.write_bytes(split.images.tobytes())
    mapped = np.memmap(file, np.uint8, mode="r", shape=split.images.shape)
    table = ImageTable(Split(**{**vars(split), "images": mapped}), "cpu")  # warnings are errors here
    assert table._images.data_ptr() == mapped.ctypes.data
    assert torch.equal(table.gather(np.arange(20)), ImageTable(split, "cpu").gather(np.arange(20)))


def test_memory_of_a_batch_is_used_again_only_when_nobody_holds_it() -> None:
    split = split_of([20] * 5, shape=(3, 8, 8))
    table = ImageTable(split, "cpu")
    first = table.gather(np.arange(50))
    view, copy, address = first[10:12, 0], first[10:12, 0].clone(), first.data_ptr()
    del first
    second = table.gather(np.arange(50, 100))
    assert second.data_ptr() != address and torch.equal(view, copy)
    del view
    third = table.gather(np.arange(30))
    assert third.data_ptr() == address, "the memory of the first batch was not used again"
    assert torch.equal(third, ImageTable(split, "cpu").gather(np.arange(30)))
    assert torch.equal(second, ImageTable(split, "cpu").gather(np.arange(50, 100)))


def test_a_table_lives_on_a_gpu_that_has_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert fits(500, torch.device("cuda")) and not fits(501, torch.device("cuda"))
    assert fits(10**15, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_gives_the_same_bits(resident: bool) -> None:
    split = split_of([20] * 8, shape=(3, 8, 8))
    sampler = EpisodeSampler(split, 5, 1, 15, seed=0)
    settings: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.21, 0.22, 0.23)}
    here = EpisodeStream(sampler, ImageTable(split, "cpu", **settings)).batch(3, 4)
    there = EpisodeStream(sampler, ImageTable(split, "cuda", resident=resident, **settings)).batch(3, 4)
    for name in ("support_x", "support_y", "query_x", "query_y"):
        assert getattr(there, name).is_cuda
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dtype": torch.uint8}, "floating-point"),
        ({"mean": (0.5,)}, "not 1 and 3"),
        ({"std": (1.0, 1.0)}, "not 3 and 2"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
    ],
)
def test_tables_with_impossible_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ImageTable(split_of([4], shape=(3, 2, 2)), "cpu", **settings)


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
