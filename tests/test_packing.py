"""Packing: the same store whatever the images came in, and a sentence where there can be none."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from archives import EACH, SIDE, SPLITS, encoded, pixels, tiny_sheet, tiny_tree, write_folder, write_tar, write_zip
from menagerie import NAMES, by_split, empty_home, left_in, tiny_folder  # noqa: F401
from PIL import Image

from metazoo.data.dataset import Count, Layout
from metazoo.data.packing import pack
from metazoo.data.pictures import decode
from metazoo.errors import UserError


def backwards(tree):
    return dict(reversed(tree.items()))


def forms(path: Path) -> dict[str, list[Path]]:
    """The same images in all the forms a user may have."""
    tree, levelled = tiny_tree(), tiny_tree(split_level=True)
    deep = {f"data/images/{name}": content for name, content in tree.items()}
    bitmaps = {n.replace(".png", ".bmp"): encoded(pixels(n.split("/")[0], int(n[4]), SIDE), "BMP") for n in tree}
    parts = by_split(tree)
    halves = [dict(list(tree.items())[part::2]) for part in (0, 1)]
    return {
        "folder": [write_folder(path / "a", tree)],
        "folder with splits": [write_folder(path / "b", levelled)],
        "folder deep down, with clutter": [write_folder(path / "c", deep | {"data/README.txt": b"hello"})],
        "tar": [write_tar(path / "d.tar", backwards(tree))],
        "tar.gz with splits": [write_tar(path / "e.tgz", levelled, "w:gz")],
        "zip": [write_zip(path / "f.zip", backwards(tree))],
        "three tars": [write_tar(path / f"g_{split}.tar", part) for split, part in parts.items()],
        "three tars, backwards": [write_tar(path / f"h_{split}.tar", parts[split]) for split in reversed(parts)],
        "halves of each class": [write_zip(path / "i.zip", halves[0]), write_folder(path / "i", halves[1])],
        "every class under train and test": [
            write_folder(path / "j", {f"{('train', 'test')[k % 2]}/{n}": c for k, (n, c) in enumerate(tree.items())})
        ],
        "another lossless file format": [write_folder(path / "k", bitmaps)],
    }


@pytest.mark.parametrize("order", ["name", "content"])
def test_every_form_gives_the_same_store(tmp_path, home, order):
    stores = {}
    for form, sources in forms(tmp_path).items():
        stores[form] = pack(tiny_sheet(ordered_by=order), sources, home=home / form)
    assert len({store.manifest.identity for store in stores.values()}) == 1
    for split in SPLITS:
        assert len({store.file(split).read_bytes() for store in stores.values()}) == 1


def test_by_content_the_names_of_images_play_no_part(tmp_path, folder, home):
    renamed = {}
    for class_name in NAMES:
        for index, other in enumerate((2, 0, 3, 1)):
            renamed[f"{class_name}/new_{other}.png"] = encoded(pixels(class_name, index))
    other = write_folder(tmp_path / "renamed", renamed)
    for order, same in (("content", True), ("name", False)):
        sheet = tiny_sheet(ordered_by=order)
        one, two = pack(sheet, [folder], home=home / order / "1"), pack(sheet, [other], home=home / order / "2")
        assert (one.manifest.identity == two.manifest.identity) is same


def test_by_content_the_order_is_the_same_at_every_size(folder, home):
    sheet = tiny_sheet(ordered_by="content")
    small, large = (pack(sheet, [folder], size, home).split("train").images for size in (SIDE, 2 * SIDE))
    for row, image in enumerate(small):
        enlarged = Image.fromarray(image.transpose(1, 2, 0)).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(large[row], np.asarray(enlarged).transpose(2, 0, 1))


def test_the_rows_of_a_class_are_its_images(folder, home):
    store = pack(tiny_sheet(), [folder], home=home)
    for split, names in SPLITS.items():
        images = store.split(split)
        assert (images.dataset, images.name, images.class_names) == ("menagerie", split, names)
        assert images.images.shape == (EACH * len(names), 3, SIDE, SIDE) and images.images.dtype == np.uint8
        assert not images.images.flags.writeable
        assert len(images) == EACH * len(names)
        for number, name in enumerate(names):
            start, size = images.class_starts[number], images.class_sizes[number]
            expected = np.stack([pixels(name, index).transpose(2, 0, 1) for index in range(EACH)])
            np.testing.assert_array_equal(images.images[start : start + size], expected)


def test_classes_of_different_sizes_keep_their_ranges(tmp_path, home):
    tree = tiny_tree()
    for name in ("ant/1.png", "bee/0.png", "bee/3.png"):
        del tree[name]
    sheet = tiny_sheet(images_per_class=None, expected={}, ordered_by="content")
    images = pack(sheet, [write_tar(tmp_path / "t.tar", tree)], home=home).split("train")
    assert images.class_sizes.tolist() == [3, 2, 4] and images.class_starts.tolist() == [0, 3, 5]
    found = {image.tobytes() for image in images.images[3:5]}
    assert found == {pixels("bee", index).transpose(2, 0, 1).tobytes() for index in (1, 2)}


def test_mean_and_deviation_are_of_the_train_split(folder, home):
    store = pack(tiny_sheet(), [folder], home=home)
    values = store.split("train").images / 255.0
    np.testing.assert_allclose(store.manifest.mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(store.manifest.std, values.std(axis=(0, 2, 3)), rtol=1e-12)


def test_quarter_turns_are_classes_of_their_own(folder, home):
    turns = (0, 90, 180, 270)
    expected = {split: Count(4 * len(names), 4 * EACH * len(names)) for split, names in SPLITS.items()}
    plain = pack(tiny_sheet(), [folder], home=home / "plain").split("test")
    turned = pack(tiny_sheet(rotations=turns, expected=expected), [folder], home=home / "turned").split("test")
    assert turned.class_names == ("fox@0", "fox@180", "fox@270", "fox@90", "gnu@0", "gnu@180", "gnu@270", "gnu@90")
    for number, name in enumerate(turned.class_names):
        source, degrees = name.split("@")
        original = plain.images[plain.class_names.index(source) * EACH :][:EACH]
        rotated = np.rot90(original, int(degrees) // 90, axes=(2, 3))
        np.testing.assert_array_equal(turned.images[number * EACH : (number + 1) * EACH], rotated)


def test_inverted_images_are_white_on_black(tmp_path, home):
    ink = Image.new("1", (15, 15), 1)
    ink.putpixel((2, 7), 0)
    folder = write_folder(tmp_path / "ink", dict.fromkeys(tiny_tree(), encoded(ink)))
    store = pack(tiny_sheet(channels=1, inverted=True, size=15), [folder], home=home)
    expected = np.zeros((1, 15, 15))
    expected[0, 7, 2] = 255
    np.testing.assert_array_equal(store.split("val").images[0], expected)


@pytest.mark.parametrize("resample", ["bicubic", "lanczos", "bilinear"])
def test_images_are_resized_straight_to_the_square(tmp_path, home, resample):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    folder = write_folder(tmp_path / "wide", dict.fromkeys(tiny_tree(), encoded(image)))
    store = pack(tiny_sheet(resample=resample), [folder], 12, home)
    expected = np.asarray(image.resize((12, 12), Image.Resampling[resample.upper()])).transpose(2, 0, 1)
    np.testing.assert_array_equal(store.split("test").images[3], expected)
    assert (store.path.name, store.manifest.size, store.manifest.resize) == ("menagerie-12", 12, resample)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_images_of_any_mode_become_rgb_or_grey(tmp_path, home, mode):
    image = Image.fromarray(pixels("ant", 0)).convert(mode)
    stored = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    folder = write_folder(tmp_path / "modes", {n.replace("png", "tiff"): stored for n in tiny_tree()})
    for channels, name in ((1, "L"), (3, "RGB")):
        store = pack(tiny_sheet(channels=channels), [folder], home=home / name)
        expected = np.asarray(image.convert(name)).reshape(SIDE, SIDE, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(store.split("train").images[0], expected)


def refused(sentence, sheet, sources, home, size=None):
    with pytest.raises(UserError, match=sentence) as caught:
        pack(sheet, sources, size, home)
    assert left_in(home) == []
    return str(caught.value)


def test_an_image_that_does_not_decode_is_named(tmp_path, home):
    whole = tiny_tree()["eel/2.png"]
    for damage in (b"", b"not an image", whole[:60], whole[:-30], whole[:50] + b"\xff" + whole[51:]):
        path = write_tar(tmp_path / "menagerie.tar", tiny_tree() | {"eel/2.png": damage})
        refused(r"The image 'menagerie\.tar/eel/2\.png' does not decode", tiny_sheet(), [path], home)


def test_a_changed_byte_of_a_png_never_becomes_other_pixels():
    whole = np.asarray(Image.fromarray(pixels("eel", 2)).resize((24, 24)))
    content, refusals = encoded(whole), 0
    for position in range(len(content)):
        damaged = content[:position] + bytes([content[position] ^ 0x5A]) + content[position + 1 :]
        try:
            image = decode(damaged, "eel/2.png", 3)
        except UserError as error:
            assert "'eel/2.png' does not decode" in str(error)
            refusals += 1
        else:
            np.testing.assert_array_equal(image, whole)
    assert refusals > 0.9 * len(content)


def test_missing_classes_are_named(tmp_path, home):
    parts = by_split(tiny_tree())
    path = write_tar(tmp_path / "train.tar", parts["train"])
    sentence = r"4 of the 7 classes of Menagerie are missing \(val, test: dog, eel, fox, gnu\)"
    refused(sentence, tiny_sheet(), [path], home)


def test_a_class_with_an_image_too_few_is_named(tmp_path, home):
    tree = tiny_tree()
    del tree["cat/3.png"]
    sentence = "class 'cat' of Menagerie has 3 images where 4 are expected"
    refused(sentence, tiny_sheet(), [write_folder(tmp_path / "f", tree)], home)
    sentence = "train split of Menagerie has 3 classes with 11 images where 3 with 12 are expected"
    refused(sentence, tiny_sheet(images_per_class=None), [tmp_path / "f"], home)


def test_splits_that_share_a_class_are_refused(folder, home):
    layout = Layout({"train": {"ant": ["1"]}, "test": {"ant": ["2"]}}, lambda: iter(()), "a test")
    sheet = tiny_sheet(expected={}, images_per_class=None, recognisers=(lambda *_: layout,))
    refused("class 'ant' of Menagerie is in both train and test", sheet, [folder], home)


def test_an_image_in_two_classes_is_refused(folder, home):
    layout = Layout({"train": {"ant": ["1"], "bee": ["2", "1"]}}, lambda: iter(()), "a test")
    sheet = tiny_sheet(expected={}, images_per_class=None, recognisers=(lambda *_: layout,))
    refused("image '1' of Menagerie occurs twice", sheet, [folder], home)


def test_folders_of_another_split_are_refused(tmp_path, home):
    tree = tiny_tree(split_level=True)
    tree = {name.replace("test/fox", "train/fox"): content for name, content in tree.items()}
    sentence = "'fox' lies under 'train' and belongs to the test split"
    refused(sentence, tiny_sheet(), [write_folder(tmp_path / "f", tree)], home)


def test_another_data_set_is_told(tmp_path, home):
    other = write_tar(tmp_path / "birds.tar", {"birds/001.Albatross/1.png": b"x"})
    sentence = r"This is not Menagerie \(.*birds\.tar\): .* folders such as '001.Albatross'"
    sentence = refused(sentence, tiny_sheet(), [other], home)
    assert "Ask the tests." in sentence
    refused("it holds no images", tiny_sheet(), [write_tar(tmp_path / "text.tar", {"a.txt": b"x"})], home)
    outer = write_folder(tmp_path / "outer", {"train.tar": b"x", "val.tar": b"x"})
    refused(r"archives \(train\.tar, val\.tar\): give those", tiny_sheet(), [outer], home)


def test_a_source_is_needed(home):
    refused("Menagerie needs a source: give --from PATH", tiny_sheet(), [], home)


@pytest.mark.parametrize("size", [0, -3, 100_000])
def test_a_size_that_makes_no_sense_is_refused(folder, home, size):
    refused("Images cannot be stored at", tiny_sheet(), [folder], home, size)


def test_a_full_disk_is_told_and_nothing_is_left(folder, home):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system refuses longer files, as a full disk does
    try:
        with pytest.raises(UserError, match=r"menagerie-8 could not be written: File too large.*--home") as caught:
            pack(tiny_sheet(), [folder], home=home)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value.__cause__, OSError)
    assert left_in(home) == []


def test_too_little_room_is_told_before_anything_is_written(folder, home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**9, free=500))
    refused(r"the disk is full \(0 MB are needed", tiny_sheet(), [folder], home)


def test_a_home_that_cannot_be_is_told(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/home/menagerie-8 could not be written: Not a directory"):
        pack(tiny_sheet(), [folder], home=tmp_path / "file" / "home")
