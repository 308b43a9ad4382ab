"""Pickles of data sets: read whoever wrote them, nothing in them run, and what is long left in its file."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from archives import python2_pickle

from metazoo.data.arrays import FileArray, Span, read_npy
from metazoo.data.pickles import LONG, entries, read_pickle
from metazoo.data.pictures import Piece
from metazoo.errors import UserError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 30, 20, 3), dtype=np.uint8)


def read(content: bytes) -> tuple[io.BytesIO, Any]:
    file = io.BytesIO(content)
    return file, read_pickle(file, "train.pkl")


def test_a_pickle_of_python_2_is_read():
    values = np.arange(12, dtype=np.uint8).reshape(2, 6)
    part = {b"data": values, b"labels": [3, 70_000], b"filenames": [b"a.png", b"\xff\x00.png"], b"batch_label": None}
    file, found = read(python2_pickle(part))
    np.testing.assert_array_equal(found.pop(b"data").read(file), values)
    assert found == {key: value for key, value in part.items() if key != b"data"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_of_python_3_is_read(protocol):
    part = {"data": np.arange(6, dtype=np.float32).reshape(2, 3), "raw": b"\x00\xff", "names": ("a", ["b"], {"c"})}
    file, found = read(pickle.dumps(part | {"empty": b"", "number": np.int64(7)}, protocol))
    np.testing.assert_array_equal(found["data"].read(file), part["data"])
    assert (found["raw"], found["names"], found["empty"], found["number"]) == (part["raw"], part["names"], b"", 7)


def test_keys_of_both_pythons_are_the_same():
    assert entries({b"image_data": 1}) == entries({"image_data": 1}) == {"image_data": 1}


@pytest.mark.parametrize("writer", ["python 2", *PROTOCOLS])
def test_images_stay_in_the_file_and_are_read_by_row(writer):
    part = {"images": IMAGES, "files": [IMAGES[0].tobytes(), b"short"]}
    content = python2_pickle({k.encode(): v for k, v in part.items()}) if writer == "python 2" else b""
    file, found = read(content or pickle.dumps(part, int(writer)))
    images, (long, short) = entries(found)["images"], entries(found)["files"]
    assert isinstance(images, FileArray) and len(images) == 5
    for row, expected in zip(images.rows(file), IMAGES, strict=True):
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(images.read(file), IMAGES)
    assert short == b"short"
    assert (long.read(file) if isinstance(long, Span) else long) == IMAGES[0].tobytes()
    assert isinstance(long, Span) == (writer != 0), "protocol 0 is text, which has to be read"


@pytest.mark.parametrize("protocol", [1, 2, 5])
def test_rows_are_pieces_of_the_file_where_their_bytes_are_in_it(protocol, tmp_path):
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps(IMAGES, protocol))
    with open(path, "rb") as file:
        images = read_pickle(file, "train.pkl")
        pieces = images.pieces(Piece(str(path)))
        if protocol < 3:  # there, bytes are written as characters
            assert pieces is None
            return
        for piece, expected in zip(pieces, IMAGES, strict=True):
            file.seek(piece.offset)
            assert file.read(piece.size) == expected.tobytes() and piece.shape == expected.shape


def test_the_same_array_twice_is_read_twice():
    labels = np.arange(4)
    file, found = read(pickle.dumps([labels, labels]))
    assert all((array.read(file) == labels).all() for array in found)


def test_columns_are_kept_apart_from_rows():
    file, found = read(pickle.dumps(np.asfortranarray(np.arange(6).reshape(2, 3)), 2))
    np.testing.assert_array_equal(found.read(file), np.arange(6).reshape(2, 3))


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "train.pkl"
    path.write_bytes(python2_pickle({b"image_data": np.zeros((2000, 84, 84, 3), np.uint8)}))
    assert path.stat().st_size > 42e6
    tracemalloc.start()
    with open(path, "rb") as file:
        images = read_pickle(file, "train.pkl")[b"image_data"]
        assert sum(1 for _ in images.rows(file)) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_npy_is_read_by_row(version):
    file = io.BytesIO()
    np.lib.format.write_array(file, IMAGES, version)
    file.seek(0)
    for row, expected in zip(read_npy(file).rows(file), IMAGES, strict=True):
        np.testing.assert_array_equal(row, expected)


def test_an_npy_of_objects_is_refused():
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([{}, []], dtype=object))
    file.seek(0)
    with pytest.raises(ValueError, match="objects"):
        read_npy(file)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "function",
    [os.system, os.mkdir, eval, exec, getattr, open, np.load, np.fromfile, np.memmap, bytearray],
    ids=lambda function: function.__name__,
)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, function, protocol):
    target = tmp_path / "touched"
    argument = f"mkdir {target}" if function is os.system else str(target)
    content = pickle.dumps({b"data": Hostile(function, argument)}, protocol)
    with pytest.raises(UserError, match=r"train\.pkl is not a pickle of plain arrays \(it asks for"):
        read(content)
    assert not target.exists()


def call(module: bytes, name: bytes, *arguments: bytes) -> bytes:
    return (
        pickle.GLOBAL + module + b"\n" + name + b"\n" + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE
    )


@pytest.mark.parametrize(
    "content",
    [
        call(b"numpy", b"ndarray", b"J\xff\xff\xff\x7f"),  # an array of 2 GB
        call(b"__builtin__", b"bytes", b"J\xff\xff\xff\x7f"),  # so many zeros
        pickle.BINBYTES8 + b"\xff" * 8 + b"x" * LONG,  # a string longer than any file
        pickle.LONG4 + b"\xff\xff\xff\x7f" + b"x" * LONG,
        pickle.BINSTRING + b"\xff\xff\xff\xff",  # of negative length
        call(b"_codecs", b"encode", b"X\x01\x00\x00\x00a", b"X\x03\x00\x00\x00zip"),
        pickle.GLOBAL + b"_codecs\nencode\n" + pickle.EMPTY_DICT + pickle.BUILD,  # what would change a function
        pickle.EXT1 + b"\x01",
        pickle.PERSID + b"x\n",
    ],
)
def test_what_would_fill_the_memory_or_change_the_reader_is_refused(content):
    with pytest.raises(UserError, match="not a pickle of plain arrays"):
        read(content + pickle.STOP)


def test_an_array_that_says_more_than_it_holds_is_refused():
    whole = pickle.dumps(IMAGES)
    for shape in (b"K\x06", b"K\x04"):
        with pytest.raises(UserError, match="not a pickle of plain arrays"):
            read(whole.replace(b"K\x05K\x1eK\x14K\x03", shape + b"K\x1eK\x14K\x03"))


def test_a_pickle_cut_short_is_a_sentence():
    whole = python2_pickle({b"data": np.zeros((3, 5), np.uint8), b"images": IMAGES, b"fine_labels": [1, 2, 3]})
    for length in (*range(400), *range(400, len(whole), 97), len(whole) - 1):
        with pytest.raises(UserError, match="not a pickle of plain arrays"):
            read(whole[:length])
