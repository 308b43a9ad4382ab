"""The quick table of contents of a tar says what `tarfile` says, or nothing."""

from __future__ import annotations

import io
import tarfile

import pytest

from metazoo.data.tars import plain_members


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a/b.png", "./a/b.png", f"{'long/' * 30}b.png", "ä/b.png", "a"])
def test_the_quick_table_of_contents_is_tarfile_s(tmp_path, form, name):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for member, size in (
            (tarfile.TarInfo(name), 513),
            (tarfile.TarInfo("c/d.png"), 0),
            (tarfile.TarInfo("e"), 1024),
        ):
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(range(256)) * 4))
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    assert (found := plain_members(path)) in (None, expected)
    assert found is not None or len(name) > 100 or not name.isascii()
    whole = path.read_bytes()
    end = expected[-1][1] + expected[-1][2]
    for length in range(0, end, 100):
        path.write_bytes(whole[:length])
        assert plain_members(path) is None
    for position in range(0, 512, 7):
        for flipped in (0xFF, 0x01):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flipped]) + whole[position + 1 :])
            assert plain_members(path) is None
