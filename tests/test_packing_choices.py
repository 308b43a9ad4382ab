"""What a store can be made of, and how: pieces of files, boxes, ways to resize, processes; identical images."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from archives import EACH, SIDE, SPLITS, encoded, pixels, tiny_sheet, tiny_tree, write_folder, write_tar
from lethal import Lethal
from menagerie import empty_home, left_in, tiny_folder  # noqa: F401
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from metazoo.data import packer, pictures
from metazoo.data.dataset import Layout
from metazoo.data.packing import pack
from metazoo.data.pictures import RESIZES, Cropped, Piece, Recipe, decode, fingerprint, stored
from metazoo.data.rows import CHUNK, sums_of
from metazoo.data.store import Manifest
from metazoo.data.workers import Workers
from metazoo.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)


def as_jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(content: bytes, mode: str = "RGB") -> np.ndarray:
    values = np.asarray(Image.open(io.BytesIO(content)).convert(mode))
    return values.reshape(*values.shape[:2], -1)


@pytest.fixture
def without_pillow(monkeypatch):
    def opened(*_: object) -> None:
        raise AssertionError("it was left to Pillow")

    monkeypatch.setattr(pictures, "_opened", opened)


@pytest.mark.parametrize("quality", [1, 40, 97])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"comment": "x" * 300}, {"restart_marker_blocks": 3}]
)
def test_a_jpeg_of_the_usual_kind_is_decoded_as_pillow_decodes_it(without_pillow, subsampling, quality, options):
    for width in (1, 8, 31, 84):
        image = Image.fromarray(NOISE).resize((width, 85))
        content = as_jpeg(image, subsampling=subsampling, quality=quality, **options)
        np.testing.assert_array_equal(decode(content, "it", 3), by_pillow(content))


def test_jpegs_of_other_kinds_are_left_to_pillow():
    image = Image.fromarray(NOISE)
    contents = [as_jpeg(image.convert(mode)) for mode in ("L", "CMYK", "YCbCr")]
    contents += [as_jpeg(image, keep_rgb=True), as_jpeg(image, exif=b"Exif\0\0" + bytes(40))]
    for content in contents:
        for channels, wanted in ((3, "RGB"), (1, "L")):
            np.testing.assert_array_equal(decode(content, "it", channels), by_pillow(content, wanted))


def test_the_shape_of_a_jpeg_is_looked_at_before_memory_is_taken(monkeypatch):
    content = as_jpeg(Image.fromarray(NOISE))
    monkeypatch.setattr(pictures.simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(pictures, "LARGE", 90 * 70 - 1)
    np.testing.assert_array_equal(decode(content, "it", 3), by_pillow(content))
    header = content.index(b"\xff\xc0") + 5
    with pytest.raises(UserError, match=r"'it' does not decode \(.*decompression bomb"):
        decode(content[:header] + b"\xff\xff\xff\xff" + content[header + 4 :], "it", 3)


def test_a_damaged_jpeg_is_refused_or_what_pillow_makes_of_it():
    content = as_jpeg(Image.fromarray(NOISE))
    for length in range(0, len(content) - 2, 41):
        with pytest.raises(UserError, match="'it' does not decode"):
            decode(content[:length], "it", 3)
    for position in range(2, len(content), 23):
        damaged = content[:position] + bytes([content[position] ^ 0x5A]) + content[position + 1 :]
        try:
            expected = by_pillow(damaged)
        except Exception:
            with pytest.raises(UserError, match="'it' does not decode"):
                decode(damaged, "it", 3)
        else:
            np.testing.assert_array_equal(decode(damaged, "it", 3), expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"not an image", "it is no image of a kind that Pillow reads")],
)
def test_what_is_no_image_is_refused_in_a_sentence(content, reason):
    with pytest.raises(UserError) as refusal:
        decode(content, "it", 3)
    assert str(refusal.value) == f"The image 'it' does not decode ({reason}); get its source again."


def test_a_piece_is_read_where_it_lies(tmp_path):
    image = Image.fromarray(pixels("ant", 0))
    file = tmp_path / "file"
    file.write_bytes(b"before" + encoded(image) + pixels("bee", 1).tobytes())
    end = len(encoded(image)) + 6
    np.testing.assert_array_equal(decode(Piece(str(file), 6, end - 6), "it", 3), image)
    as_array = Piece(str(file), end, SIDE * SIDE * 3, (SIDE, SIDE, 3))
    np.testing.assert_array_equal(decode(as_array, "it", 3), pixels("bee", 1))
    for piece in (Piece(str(file), end, 1000), Piece(str(tmp_path / "gone"))):
        with pytest.raises(UserError, match="'it' does not decode"):
            decode(piece, "it", 3)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (4, 0)])
def test_an_image_without_pixels_is_refused(shape):
    with pytest.raises(UserError, match=r"'it' does not decode"):
        decode(np.zeros(shape, np.uint8), "it", 3)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 4)])
def test_arrays_are_images_of_whatever_kind(shape):
    values = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    for channels, mode in ((1, "L"), (3, "RGB")):
        expected = np.asarray(Image.fromarray(values).convert(mode)).reshape(5, 4, channels)
        np.testing.assert_array_equal(decode(values, "it", channels), expected)


def test_of_a_cropped_picture_the_box_is_stored():
    content = encoded(NOISE)
    box = (10, 20, 50, 81)
    np.testing.assert_array_equal(decode(Cropped(content, box), "it", 3), NOISE[20:81, 10:50])
    np.testing.assert_array_equal(decode(Cropped(content, (-1, -9, 71, 91)), "it", 3), NOISE)
    for outside in ((70, 0, 90, 5), (0, 90, 5, 95), (5, 5, 5, 9), (-5, -5, 0, 0)):
        with pytest.raises(UserError, match=r"'it' does not decode \(the box .* is not inside its 70 x 90 pixels\)"):
            decode(Cropped(content, outside), "it", 3)


@pytest.mark.parametrize("size", [12, 84])
@pytest.mark.parametrize("shape", [(90, 70), (61, 100), (100, 100), (84, 84), (33, 47)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_images_are_resized_as_torchvision_does_it(size, shape, resample):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    interpolation = getattr(torchvision.InterpolationMode, resample.upper())
    expected = {
        "straight": image.resize((size, size), Image.Resampling[resample.upper()]),
        "shorter_side": torchvision.center_crop(torchvision.resize(image, [size], interpolation), [size]),
        "enlarged": torchvision.center_crop(
            torchvision.resize(image, [round(size * 8 / 7)] * 2, interpolation), [size]
        ),
    }
    assert set(expected) == set(RESIZES)
    for resize, other in expected.items():
        found = stored(np.asarray(image), Recipe(3, size, resample, resize=resize))
        np.testing.assert_array_equal(found, np.asarray(other).transpose(2, 0, 1), resize)


def test_the_way_to_resize_is_part_of_the_identity_and_a_store_has_one(tmp_path, home):
    image = encoded(NOISE)
    folder = write_folder(tmp_path / "noise", dict.fromkeys(tiny_tree(), image))
    identities = {}
    for resize in RESIZES:
        store = pack(tiny_sheet(), [folder], home=home, resize=resize, force=True)
        identities[resize] = store.manifest.identity
        assert store.fits(tiny_sheet()) and Manifest.read(store.path / "manifest.json") == store.manifest
    assert len(set(identities.values())) == 3
    assert store.manifest.resize == "enlarged bicubic"
    assert pack(tiny_sheet(), [folder], home=home).manifest == store.manifest  # none was asked for
    with pytest.raises(UserError, match=r"menagerie-8 is there already, resized 'enlarged bicubic' and not 'bicubic'"):
        pack(tiny_sheet(), [folder], home=home, resize="straight")
    with pytest.raises(UserError, match="no way to resize called 'centre'"):
        pack(tiny_sheet(), [folder], home=home, resize="centre")
    assert pack(tiny_sheet(), [folder], home=home, force=True).manifest.identity == identities["straight"]


def test_the_manifests_of_the_first_stores_are_read(tmp_path, folder, home):
    path = pack(tiny_sheet(), [folder], home=home).path / "manifest.json"
    content = json.loads(path.read_text())
    del content["twins"]
    path.write_text(json.dumps(content))
    first = Manifest.read(path)
    assert first.twins is None and first.identity == content["identity"]
    assert first.resize == "bicubic"


@pytest.mark.parametrize("order", ["name", "content"])
def test_any_number_of_processes_gives_the_same_store(tmp_path, home, order, monkeypatch):
    monkeypatch.setattr(packer, "BATCH", 3)
    monkeypatch.setattr(packer, "SMALL", 0)
    sheet = tiny_sheet(ordered_by=order, rotations=(0, 90), expected={})
    images = list(tiny_tree().items())
    whole = write_tar(tmp_path / "whole.tar", dict(reversed(images)))
    mixed = write_tar(tmp_path / "mixed.tar", dict(sorted(images, key=lambda image: image[0][-5:])))
    stores = [pack(sheet, [whole], home=home / str(count), workers=count) for count in (0, 1, 3)]
    stores += [pack(sheet, [mixed], home=home / f"mixed {count}", workers=count) for count in (0, 2)]
    assert len({store.manifest.identity for store in stores}) == 1
    assert len({str(store.manifest.twins) for store in stores}) == 1
    for split in SPLITS:
        assert len({store.file(split).read_bytes() for store in stores}) == 1
    assert sorted(path.name for path in stores[2].path.iterdir()) == [
        "manifest.json",
        "test.bin",
        "train.bin",
        "val.bin",
    ]


def test_an_image_that_a_process_cannot_decode_is_named(tmp_path, home):
    source = write_tar(tmp_path / "t.tar", tiny_tree() | {"eel/2.png": b"no image"})
    with pytest.raises(UserError, match=r"The image 't\.tar/eel/2\.png' does not decode"):
        pack(tiny_sheet(), [source], home=home, workers=2)
    assert left_in(home) == []


def test_a_process_that_dies_is_a_sentence():
    with Workers(2, Lethal()) as pool:
        assert [future.result() for future in [pool.submit("fine", value) for value in range(9)]] == list(range(1, 10))
        with pytest.raises(
            UserError, match=r"A process that was packing images ended before its time with status -9 \(so"
        ):
            pool.submit("die").result()


def test_processes_end_with_the_block():
    with pytest.raises(KeyboardInterrupt), Workers(2, Lethal()) as pool:
        processes = [process._popen for process in pool._processes]
        pool.submit("fine", 1).result()
        raise KeyboardInterrupt
    assert all(process.poll() is not None for process in processes)


def test_identical_images_are_found(tmp_path, home):
    tree = tiny_tree()
    tree["bee/3.png"] = tree["ant/0.png"]
    tree["cat/1.png"] = tree["cat/0.png"] = encoded(Image.fromarray(pixels("gnu", 2)), "BMP")
    for order in ("name", "content"):
        store = pack(tiny_sheet(ordered_by=order), [write_folder(tmp_path / "twins", tree)], home=home / order)
        twins = store.manifest.twins
        assert (twins.within, twins.across, twins.total) == ({"train": 1}, 1, 2)
        assert [set(group) for group in twins.groups] == [
            {"twins/cat/0.png", "twins/cat/1.png", "twins/gnu/2.png"},
            {"twins/ant/0.png", "twins/bee/3.png"},
        ]
        assert Manifest.read(store.path / "manifest.json").twins == twins
        again = replace(store, manifest=replace(store.manifest, twins=None)).twins()  # as in a store from before
        assert (again.within, again.across) == (twins.within, twins.across)
    assert set(again.groups[1]) == {"train/ant/0", "train/bee/3"} or order == "content"


def test_the_order_by_content_stays_what_it_is(folder, home):
    """Stores that were packed before have this order, and runs and records hang on it."""
    store = pack(tiny_sheet(ordered_by="content"), [folder], home=home)
    assert store.manifest.splits["train"].sha256 == "892dc21df3f7df30091bf551539df77d23f950cda60d9431f2198241edefe6a6"


def test_no_two_images_are_the_same_where_all_differ(folder, home):
    twins = pack(tiny_sheet(), [folder], home=home).manifest.twins
    assert (twins.within, twins.across, twins.groups) == ({}, 0, ())


def test_large_images_have_fingerprints_too():
    large = np.tile(NOISE, (2, 2, 1))
    mark = fingerprint(large)
    assert len(mark) == 16 and mark == fingerprint(large.copy())
    assert fingerprint(large.reshape(140, 180, 3)) != mark  # the same bytes, of another shape
    assert fingerprint(np.ascontiguousarray(large[::-1])) != mark


def handed_over(monkeypatch):
    """How many images each batch has, and which class each of its images is of, batch by batch."""
    sizes, classes = [], []
    put = packer.RowWriter.put

    def watched(self, batch):
        sizes.append(len(batch.names))
        classes.append(batch.classes.tolist())
        return put(self, batch)

    monkeypatch.setattr(packer.RowWriter, "put", watched)
    return sizes, classes


def test_classes_are_handed_over_as_a_whole(monkeypatch, folder, home):
    monkeypatch.setattr(packer, "BATCH", 3)
    sizes, classes = handed_over(monkeypatch)
    monkeypatch.setattr(packer, "SHARE", 1)
    monkeypatch.setattr(packer.RowWriter, "order", lambda *_: pytest.fail("it was in order"))
    pack(tiny_sheet(ordered_by="content"), [folder], home=home)
    assert sizes == [EACH] * 7 and classes == [[index] * EACH for index in range(7)]


@pytest.mark.parametrize("limit", ["BLOCK_BYTES", "SHARE"])
def test_a_class_that_is_too_large_is_handed_over_in_parts(monkeypatch, folder, home, limit):
    before = pack(tiny_sheet(ordered_by="content"), [folder], home=home / "before").manifest
    monkeypatch.setattr(packer, "BATCH", 3)
    monkeypatch.setattr(packer, limit, {"BLOCK_BYTES": 3 * SIDE * SIDE * 3, "SHARE": 9}[limit])
    sizes, _ = handed_over(monkeypatch)
    assert pack(tiny_sheet(ordered_by="content"), [folder], home=home).manifest == before
    assert sizes == [3] * 9 + [1]


@pytest.mark.parametrize(("images", "side"), [(3, 300), (257, 8)])
def test_the_sums_are_exact(images, side):
    values = np.full((images, 2, side, side), 255, np.uint8)
    values[:, 1] = np.random.default_rng(0).integers(0, 256, (images, side, side))
    whole = values.astype(np.int64)
    np.testing.assert_array_equal(sums_of(values), [whole.sum(axis=(0, 2, 3)), (whole**2).sum(axis=(0, 2, 3))])
    assert CHUNK <= 257


def test_batches_stay_small_whatever_the_pictures(monkeypatch, folder, home):
    sizes, _ = handed_over(monkeypatch)
    monkeypatch.setattr(packer, "BATCH_BYTES", 3 * SIDE * SIDE * 3)
    layout = tiny_sheet().layout([folder])
    arrays = Layout(
        layout.classes,
        lambda: ((name, pixels("ant", index)) for index, (name, _) in enumerate(layout.images())),
        "arrays",
    )
    pack(tiny_sheet(recognisers=(lambda *_: arrays,)), [folder], home=home)
    assert max(sizes) == 4 and sum(sizes) == 28
