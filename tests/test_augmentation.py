"""Augmentation: what is done to the images of training, and to no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from sinusoids import config as sinusoid_config
from tiny import tiny_sets  # noqa: F401
from torch import Tensor

from metazoo import training
from metazoo.augmentation import DRAWN, Augmentation, augmented
from metazoo.config import RunConfig, resolve
from metazoo.domains import Stream, open_domain
from metazoo.errors import UserError
from metazoo.schema import parse

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def sets(tiny_sets: None) -> None:  # noqa: F811
    """The tiny data sets are known to every test here."""


def stream(split: str = "train", augmentation: dict[str, Any] | None = None, **changes: Any) -> Stream:
    config = resolve(tiny.config(augmentation=augmentation, **{"source": "tiny_rgb", **changes}), tiny.SIZE)
    domain = open_domain(config.source)
    return domain.episodes(config, split, config.seed, CPU, domain.inputs)


def some(channels: int = 3, count: int = 200) -> tuple[Tensor, Tensor]:
    """Images of 9 by 12 pixels without black, and random numbers for them."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 + 0.9 * torch.rand(count, channels, 9, 12, generator=generator)
    return images, torch.rand(count, len(DRAWN), generator=generator, dtype=torch.float64)


def test_a_crop_is_a_window_of_the_bordered_image_at_every_place_alike() -> None:
    images, numbers = some(count=600)
    border = 2
    bordered = torch.nn.functional.pad(images, (border,) * 4)
    places = []
    for image, frame in zip(augmented(images, numbers, Augmentation(crop=border)), bordered, strict=True):
        windows = [
            (down, right)
            for down in range(2 * border + 1)
            for right in range(2 * border + 1)
            if torch.equal(frame[:, down : down + 9, right : right + 12], image)
        ]
        assert len(windows) == 1
        places += windows
    counts = np.unique(places, axis=0, return_counts=True)[1]
    assert len(counts) == 25 and counts.min() >= 8  # 24 of each are expected


def test_half_of_the_images_are_mirrored() -> None:
    images, numbers = some(count=600)
    changed = augmented(images, numbers, Augmentation(flip=True))
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(changed, images, strict=True)]
    assert all(m or torch.equal(new, old) for m, new, old in zip(mirrored, changed, images, strict=True))
    assert 250 < sum(mirrored) < 350


def test_jitter_changes_brightness_contrast_and_saturation_one_image_at_a_time() -> None:
    images, numbers = some()
    changed = augmented(images, numbers, Augmentation(jitter=0.5))
    for image, drawn, found in zip(images.numpy(), numbers.numpy(), changed.numpy(), strict=True):
        brightness, contrast, saturation = (1 + 0.5 * (2 * number - 1) for number in drawn[3:])
        expected = np.clip(image * brightness, 0, 1)
        grey = 0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2]
        expected = np.clip(contrast * expected + (1 - contrast) * grey.mean(), 0, 1)
        grey = 0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2]
        expected = np.clip(saturation * expected + (1 - saturation) * grey, 0, 1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert changed.min() >= 0 and changed.max() <= 1


def test_grey_images_have_no_saturation() -> None:
    images, numbers = some(channels=1)
    other = numbers.clone()
    other[:, DRAWN.index("saturation")] = 0.5
    how = Augmentation(jitter=0.5)
    assert torch.equal(augmented(images, numbers, how), augmented(images, other, how))
    assert not torch.equal(augmented(images, numbers, how), images)


def test_every_number_is_used_and_the_largest_stays_inside() -> None:
    images, numbers = some()
    how = Augmentation(crop=2, flip=True, jitter=0.5)
    whole = augmented(images, numbers, how)
    for index in range(len(DRAWN)):
        other = numbers.clone()
        other[:, index] = (other[:, index] + 0.5) % 1
        assert not torch.equal(augmented(images, other, how), whole), DRAWN[index]
    assert augmented(images, torch.full_like(numbers, 1 - 2.0**-53), how).shape == images.shape
    assert torch.equal(images, some()[0]), "the images of the table were written to"


def test_an_episode_is_augmented_alike_in_any_batch_and_after_any_resume() -> None:
    how = {"crop": 2, "flip": True, "jitter": 0.4}
    whole = stream(augmentation=how).batch(0, 7)
    for start, count in ((0, 2), (3, 1), (5, 2)):
        part = stream(augmentation=how).batch(start, count)
        for name in ("support_x", "query_x", "support_y", "query_y"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[start : start + count]), name


def test_every_image_of_the_support_and_the_query_set_has_numbers_of_its_own() -> None:
    how = {"jitter": 0.9}
    plain, changed = stream().batch(0, 4), stream(augmentation=how).batch(0, 4)
    # Brightness only, as what it does to the mean of an image is close to one factor.
    factors = [
        (new.mean(dim=(2, 3, 4)) / old.mean(dim=(2, 3, 4))).flatten().tolist()
        for new, old in ((changed.support_x, plain.support_x), (changed.query_x, plain.query_x))
    ]
    together = [round(factor, 4) for both in factors for factor in both]
    assert len(set(together)) == len(together) and max(together) > 1.2 and min(together) < 0.8
    assert torch.equal(plain.query_y, changed.query_y)


def test_another_seed_draws_other_numbers() -> None:
    episodes = stream().batch(0, 2)
    purposes = [f"augmentation of the {name} set, seed {seed}" for name in ("support", "query") for seed in (0, 1)]
    drawn = [episodes.uniform(5, purpose) for purpose in purposes]
    assert all(not torch.equal(one, other) for index, one in enumerate(drawn) for other in drawn[index + 1 :])
    one, other = (stream(augmentation={"flip": True}, seed=seed) for seed in (0, 1))
    assert getattr(one, "seed", None) == 0 and getattr(other, "seed", None) == 1


@pytest.mark.parametrize("normalisation", ["none", "source"])
def test_it_comes_before_images_are_standardised(normalisation: str) -> None:
    how = {"crop": 3}
    raw = stream(augmentation=how).batch(0, 2).query_x
    found = stream(augmentation=how, normalisation=normalisation).batch(0, 2).query_x
    inputs: Any = open_domain("tiny_rgb").inputs
    mean, std = (inputs.mean, inputs.std) if normalisation == "source" else ([0.0] * 3, [1.0] * 3)
    expected = (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(found, expected)
    assert (raw == 0).any(), "no border of black in sight"


@pytest.mark.parametrize("split", ["val", "test"])
def test_images_of_validation_and_test_are_left_alone(split: str) -> None:
    plain, other = stream(split), stream(split, {"crop": 3, "flip": True, "jitter": 0.4})
    assert torch.equal(plain.batch(0, 3).support_x, other.batch(0, 3).support_x)
    assert torch.equal(plain.batch(0, 3).query_x, other.batch(0, 3).query_x)


def test_a_training_with_it_is_another_run_and_without_it_the_one_it_was(tmp_path: Path) -> None:
    plain = training.train(tiny.config(), home=tmp_path)
    changed = training.train(tiny.config(augmentation={"crop": 2, "jitter": 0.4}), home=tmp_path)
    assert changed.folder != plain.folder and "augmentation" not in (plain.folder / "config.yaml").read_text()
    assert [line["train_loss"] for line in plain.metrics] != [line["train_loss"] for line in changed.metrics]
    assert changed.config.training.augmentation == Augmentation(crop=2, jitter=0.4)
    again = parse(RunConfig, changed.config.model_dump(mode="json"), "config")
    assert again == changed.config and training.train(again, home=tmp_path).folder == changed.folder


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"crops": 2}, "did you mean 'crop'"),
        ({}, "needs a crop, a flip or a jitter"),
        ({"jitter": 1.5}, "less than or equal to 1"),
        ({"crop": -1}, "greater than or equal to 0"),
    ],
)
def test_an_impossible_augmentation_is_a_sentence(how: dict[str, Any], complaint: str) -> None:
    values = tiny.config().model_dump(mode="json")
    values["training"]["augmentation"] = how
    with pytest.raises(UserError, match=complaint):
        parse(RunConfig, values, "config")


def test_a_border_as_wide_as_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crop is 12 and the images of tiny have 12 pixels"):
        training.train(tiny.config(augmentation={"crop": tiny.SIZE}), home=tmp_path)
    assert not any(tmp_path.iterdir())


def test_functions_have_nothing_to_augment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images to augment"):
        training.train(sinusoid_config(augmentation={"flip": True}), home=tmp_path)
