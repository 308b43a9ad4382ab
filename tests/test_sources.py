"""Folders and archives are read alike, and whatever is wrong with one is a sentence."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from archives import write_folder, write_tar, write_zip

from metazoo.data.sources import open_source, open_sources
from metazoo.errors import UserError

TREE = {f"class_{index % 3}/{index}.png": os.urandom(1 + 700 * index) for index in range(9)}


def contents(path):
    source = open_source(path)
    return dict(source.read(set(source.names)))


@pytest.fixture
def forms(tmp_path):
    """The same tree in every form."""
    return {
        "folder": write_folder(tmp_path / "folder", TREE),
        "tar": write_tar(tmp_path / "plain.tar", TREE),
        "tar.gz": write_tar(tmp_path / "gzip.tar.gz", TREE, "w:gz"),
        "tar.bz2": write_tar(tmp_path / "bzip.tar.bz2", TREE, "w:bz2"),
        "tar.xz": write_tar(tmp_path / "xz.tar.xz", TREE, "w:xz"),
        "zip": write_zip(tmp_path / "zip.zip", TREE),
    }


def test_every_form_gives_the_same_files(forms):
    for form, path in forms.items():
        assert contents(path) == TREE, form


def test_only_what_is_wanted_is_read(forms):
    wanted = {"class_1/4.png", "class_2/8.png"}
    for form, path in forms.items():
        assert dict(open_source(path).read(wanted)) == {name: TREE[name] for name in wanted}, form


def test_hidden_files_are_left_out(tmp_path):
    clutter = {".DS_Store": b"x", "__MACOSX/class_0/._0.png": b"x", "class_0/._0.png": b"x", ".git/a.png": b"x"}
    for path in (write_folder(tmp_path / "f", TREE | clutter), write_zip(tmp_path / "z.zip", TREE | clutter)):
        assert contents(path) == TREE


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_an_archive_cut_anywhere_is_refused(forms, form, tmp_path):
    whole = forms[form].read_bytes()
    # The last bytes of a plain tar are padding after its end mark: nothing is lost with them.
    end = len(whole) if form != "tar" else sum(512 + -(-len(content) // 512) * 512 for content in TREE.values()) + 512
    cuts = {*range(0, end, max(1, end // 150)), *range(512, end, 512), end - 1}
    cut = tmp_path / f"cut.{form}"
    for length in sorted(cuts):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut short|is empty|neither a folder"):
            contents(cut)


@pytest.mark.parametrize("form", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_changed_byte_in_a_compressed_archive_never_gives_other_contents(forms, form, tmp_path):
    whole = forms[form].read_bytes()
    damaged = tmp_path / f"damaged.{form}"
    refused = 0
    for position in range(0, len(whole), len(whole) // 200):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            files = contents(damaged)
        except UserError:
            refused += 1
        else:  # the byte says nothing about contents: a time stamp, a name
            assert set(files.values()) == set(TREE.values())
    assert refused > 150


def test_a_damaged_header_inside_a_tar_is_not_taken_for_its_end(forms, tmp_path):
    whole = bytearray(forms["tar"].read_bytes())
    position = whole.index(b"class_2/5.png")
    whole[position + 148 : position + 156] = b"99999999"
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(whole)
    with pytest.raises(UserError, match=r"damaged\.tar is damaged or cut short"):
        contents(damaged)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\n\n<HTML><head><title>404</title>", "is a web page"),
        (b"", "is empty"),
        (b"just some text", "neither a folder nor a tar or zip"),
        (os.urandom(4096), "neither a folder nor a tar or zip"),
        (b"PK\x03\x04 and then nothing of a zip", "damaged or cut short"),
        (b"\x1f\x8b\x08\x00 and then nothing of a gzip", "damaged or cut short"),
    ],
)
def test_what_is_not_an_archive_is_told(tmp_path, content, sentence):
    path = tmp_path / "images.zip"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        contents(path)
    assert str(path) in str(caught.value)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*nowhere"):
        open_source(tmp_path / "nowhere")


def test_a_source_given_twice(forms, tmp_path):
    with pytest.raises(UserError, match="given twice"):
        open_sources([forms["tar"], forms["zip"], tmp_path / "folder" / ".." / "plain.tar"])


@pytest.mark.parametrize("name", ["../outside.png", "a/../../outside.png", "/etc/outside.png"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    for path in (write_tar(tmp_path / "t.tar", {name: b"x"}), write_zip(tmp_path / "z.zip", {name: b"x"})):
        with pytest.raises(UserError, match="leads out of it"):
            contents(path)


def test_a_file_twice_in_a_tar_is_refused(tmp_path):
    path = write_tar(tmp_path / "twice.tar", [("a/1.png", b"first"), ("a/1.png", b"second")])
    with pytest.raises(UserError, match=r"holds 'a/1\.png' twice"):
        contents(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        link = tarfile.TarInfo("a/1.png")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"a link, 'a/1\.png'"):
        contents(tmp_path / "links.tar")


def test_links_out_of_a_folder_are_refused_and_links_inside_followed(tmp_path):
    folder = write_folder(tmp_path / "folder", {"a/1.png": b"one"})
    (folder / "a" / "2.png").symlink_to("1.png")
    assert contents(folder) == {"a/1.png": b"one", "a/2.png": b"one"}
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "a" / "3.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="a link that leads out of"):
        contents(folder)


def test_a_file_is_where_it_is_said_to_lie(forms, tmp_path):
    tar = forms["tar"]
    write_folder(tmp_path, {"train.pkl": TREE["class_1/4.png"]})
    for form, path in {**forms, "file": tmp_path / "train.pkl"}.items():
        source = open_source(path)
        found = {name: source.locate(name) for name in source.names}
        assert all(found.values()) if form in ("folder", "tar", "file") else not any(found.values()), form
        for name, piece in found.items():
            content = TREE.get(name, TREE["class_1/4.png"])
            if piece is not None:
                whole = Path(piece.path).read_bytes()[piece.offset :]
                assert whole[: piece.size] == content
            with source.open(name) as file:
                assert file.read(3) == content[:3]
                file.seek(max(0, len(content) - 2))
                assert file.read() == content[-2:]
        assert [name for name, _ in source.pictures(set(source.names))] == list(source.names)
    assert [picture.path for _, picture in open_source(tar).pictures({"class_1/4.png"})] == [str(tar)]


def test_a_web_page_is_told_whatever_its_name(tmp_path):
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>")
    with pytest.raises(UserError, match="is a web page"):
        open_source(path)
