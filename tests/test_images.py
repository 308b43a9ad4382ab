"""Images of episodes: normalised on the device that holds them, in memory that is used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import split_of

from metazoo.data.store import Split
from metazoo.episodes import EpisodeSampler, EpisodeStream, ImageTable
from metazoo.placement import Placement


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("placement", ["device", "host", "disk"])
def test_gather_normalises_the_images_of_its_rows(dtype: torch.dtype, placement: Placement) -> None:
    split = split_of([9, 11], shape=(3, 4, 4))
    rows = np.array([[0, 19, 3], [3, 7, 0]])
    pixels = split.images[rows].astype(np.float64) / 255
    plain = ImageTable(split, "cpu", dtype, placement=placement).gather(rows)
    assert plain.shape == (2, 3, 3, 4, 4) and plain.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(plain.numpy(), pixels, atol=tolerance)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 0.5)
    table = ImageTable(split, torch.device("cpu"), dtype, mean=mean, std=std, placement=placement)
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


def test_a_packed_file_is_mapped_and_copied_only_on_demand(tmp_path: Path) -> None:
    split = split_of([9, 11], shape=(1, 6, 6))
    file = tmp_path / "train.bin"
    file.write_bytes(split.images.tobytes())
    mapped = np.memmap(file, np.uint8, mode="r", shape=split.images.shape)
    table = ImageTable(Split(**{**vars(split), "images": mapped}), "cpu")  # warnings are errors here
    assert table._images.data_ptr() == mapped.ctypes.data
    assert torch.equal(table.gather(np.arange(20)), ImageTable(split, "cpu").gather(np.arange(20)))
    for placement in ("device", "host"):
        copied = ImageTable(Split(**{**vars(split), "images": mapped}), "cpu", placement=placement)
        assert copied._images.data_ptr() != mapped.ctypes.data
        assert torch.equal(table.gather(np.arange(20)), copied.gather(np.arange(20)))


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("placement", ["device", "host", "disk"])
def test_a_gpu_gives_the_same_bits(placement: Placement) -> None:
    split = split_of([20] * 8, shape=(3, 8, 8))
    sampler = EpisodeSampler(split, 5, 1, 15, seed=0)
    settings: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.21, 0.22, 0.23)}
    here = EpisodeStream(sampler, ImageTable(split, "cpu", **settings)).batch(3, 4)
    there = EpisodeStream(sampler, ImageTable(split, "cuda", placement=placement, **settings)).batch(3, 4)
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
