"""Episodes are uniform in every respect, and worth nothing to a predictor that does not look."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare
from toys import classes_of, split_of

from metazoo.data.store import Split
from metazoo.episodes import EpisodeRows, EpisodeSampler, bounded, distinct, words

# Seeds are fixed, so a test here passes always or fails always. A fair stream with unlucky seeds would fail one of the
# chi-square tests below with a probability of about 2 %.
UNLIKELY = 1e-4


def assert_uniform(values: np.ndarray, cells: int) -> None:
    assert chisquare(np.bincount(values.ravel(), minlength=cells)).pvalue > UNLIKELY


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
