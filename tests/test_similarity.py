"""Linear CKA: what it must not see, what it must, and values that were worked out without it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metazoo.analysis.cka import linear_cka


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_value_worked_out_by_hand() -> None:
    # Centred, X = (-1, 0, 1)' and Y = (-1, 2, -1)' for features of one column: Y'X = 0. With a second column of X in Y,
    # |Y'X|^2 = 2^2, |X'X| = 2, |Y'Y| = sqrt(6^2 + 2^2).
    first = torch.tensor([[[0.0], [1.0], [2.0]]])
    assert linear_cka(first, torch.tensor([[[5.0], [8.0], [5.0]]])).item() == pytest.approx(0, abs=1e-15)
    second = torch.tensor([[[5.0, 0.0], [8.0, 1.0], [5.0, 2.0]]])
    assert linear_cka(first, second).item() == pytest.approx(4 / (2 * math.sqrt(40)), rel=1e-14)


def test_the_definition_in_feature_space() -> None:
    first, second = noise(2, 6, 5), noise(2, 6, 9, seed=1)
    for task in (0, 1):
        x, y = (part[task].numpy() - part[task].numpy().mean(axis=0) for part in (first, second))
        norms = [np.linalg.norm(product) for product in (y.T @ x, x.T @ x, y.T @ y)]
        expected = norms[0] ** 2 / (norms[1] * norms[2])
        assert linear_cka(first, second)[task].item() == pytest.approx(expected, rel=1e-12)


def test_equal_features_are_at_exactly_1() -> None:
    for seed in range(50):
        features = noise(3, 9, 4, 4, seed=seed).float()
        assert linear_cka(features, features.clone()).tolist() == [1.0, 1.0, 1.0]


def test_rotation_scale_and_shift_of_the_features_are_not_seen() -> None:
    first, second = noise(1, 8, 5), noise(1, 8, 5, seed=1)
    rotation, _ = torch.linalg.qr(noise(5, 5, seed=2))
    changed = 3.7 * second @ rotation + 11
    torch.testing.assert_close(linear_cka(first, changed), linear_cka(first, second), rtol=1e-12, atol=0)
    torch.testing.assert_close(linear_cka(second, changed), torch.ones(1, dtype=torch.float64), rtol=1e-12, atol=0)


def test_other_linear_maps_and_the_order_of_images_are_seen() -> None:
    features = noise(1, 30, 6)
    stretched = features * torch.tensor([9.0, 1, 1, 1, 1, 1])
    shuffled = features[:, torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    assert linear_cka(features, stretched).item() < 0.9 and linear_cka(features, shuffled).item() < 0.6


def test_it_is_between_0_and_1_symmetric_and_for_maps_of_any_shape() -> None:
    first, second = noise(4, 7, 3, 2, 2), noise(4, 7, 5, seed=1)
    found = linear_cka(first, second)
    assert found.shape == (4,) and bool(((found > 0) & (found < 1)).all())
    assert torch.equal(found, linear_cka(second, first))
    assert torch.equal(found, linear_cka(first.flatten(2), second))


def test_small_features_far_from_zero_are_told_apart() -> None:
    """In float32 the mean would drown them."""
    wave = torch.sin(torch.arange(12.0)).view(1, 12, 1)
    features = (1000 + wave).float()
    assert linear_cka(features, wave).item() == pytest.approx(1, abs=1e-6)


def test_features_that_do_not_vary_have_no_similarity() -> None:
    assert math.isnan(linear_cka(torch.ones(1, 4, 3), noise(1, 4, 3)).item())
