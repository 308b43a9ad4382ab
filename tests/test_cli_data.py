"""`metazoo data` as its user meets it."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from archives import encoded, pixels, tiny_sheet, tiny_tree, write_folder, write_tar, write_zip
from PIL import Image
from typer.testing import CliRunner

from metazoo.cli.data import app
from metazoo.data.dataset import Download
from metazoo.errors import UserError


@pytest.fixture(autouse=True)
def menagerie(monkeypatch, tmp_path):
    """The one data set there is, and an empty home."""
    sheets = {"menagerie": tiny_sheet()}
    monkeypatch.setattr("metazoo.data.dataset.published", lambda: sheets)
    monkeypatch.setenv("METAZOO_DATA", str(tmp_path / "home"))
    return sheets


@pytest.fixture
def tars(tmp_path):
    tree = tiny_tree()
    names = sorted(tree)
    return [write_tar(tmp_path / f"{part}.tar", {name: tree[name] for name in names[part::3]}) for part in range(3)]


def run(*arguments: object) -> str:
    """What the command prints; its UserError is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.parametrize(
    "arguments",
    [
        lambda a, b, c: ["--from", a, b, c],
        lambda a, b, c: ["--from", a, "--from", b, "--from", c],
        lambda a, b, c: [a, b, c],
    ],
)
def test_prepare_takes_any_number_of_paths(tars, arguments, tmp_path):
    output = run("prepare", "menagerie", *arguments(*tars))
    assert f"Menagerie is prepared at 8 pixels: {tmp_path / 'home' / 'menagerie-8'}" in output
    assert "train     3 classes      12 images" in output
    assert "read from class folders: 0.tar, 1.tar, 2.tar" in output


def test_prepare_again_says_that_nothing_was_read(tars, tmp_path):
    run("prepare", "menagerie", "--from", *tars)
    output = run("prepare", "menagerie", "--from", *tars)
    assert "was prepared already" in output and "--force prepares it again" in output
    assert "Menagerie is prepared at" in run("prepare", "menagerie", "--force", "--from", *tars)
    for again in ([], ["--force"]):
        with pytest.raises(UserError, match=r"There is no file or folder .*nowhere"):
            run("prepare", "menagerie", *again, "--from", tmp_path / "nowhere")


def test_prepare_at_another_size_and_in_another_place(tars, tmp_path):
    run("prepare", "menagerie", "--size", "20", "--home", tmp_path / "else", *tars)
    assert (tmp_path / "else" / "menagerie-20" / "train.bin").stat().st_size == 12 * 3 * 20 * 20
    assert not (tmp_path / "home").exists()


def test_altered_images_are_told(menagerie, tmp_path, capfd):
    tree = tiny_tree()
    run("prepare", "menagerie", write_folder(tmp_path / "images", tree))
    published = {
        split: hashlib.sha256((tmp_path / "home" / "menagerie-8" / f"{split}.bin").read_bytes()).hexdigest()
        for split in ("train", "val", "test")
    }
    menagerie["menagerie"] = tiny_sheet(digests=published)
    assert "warning" not in run("prepare", "menagerie", "--force", tmp_path / "images")
    changed = tree | {"dog/1.png": encoded(pixels("dog", 1) ^ 1)}
    output = run("prepare", "menagerie", "--force", write_folder(tmp_path / "changed", changed))
    assert "warning: the images of val are not pixel for pixel the published ones" in output
    assert "warning" not in run("prepare", "menagerie", "--size", "9", tmp_path / "changed")


def test_list_shows_what_there_is(tars, tmp_path):
    assert "menagerie 8 3 / 2 / 2 28 not prepared" in " ".join(run("list").split())
    run("prepare", "menagerie", *tars)
    run("prepare", "menagerie", "--size", "84", *tars)
    sizes = [line.split()[1] for line in run("list").splitlines() if line.startswith("menagerie")]
    assert sizes == ["8", "84"]
    (tmp_path / "home" / "menagerie-8" / "val.bin").unlink()
    assert "damaged" in run("list")


def test_verify_names_the_file(tars, tmp_path):
    with pytest.raises(UserError, match="Nothing is prepared in"):
        run("verify")
    run("prepare", "menagerie", *tars)
    run("prepare", "menagerie", "--size", "9", *tars)
    assert run("verify", "menagerie").count("sound") == 2
    path = tmp_path / "home" / "menagerie-9" / "test.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"^\S*menagerie-9/test\.bin differs from what was packed"):
        run("verify")
    with pytest.raises(UserError, match="no data set called 'menageri'; did you mean 'menagerie'"):
        run("verify", "menageri")


def test_show_draws_the_episode(tars, tmp_path):
    from metazoo.data.store import open_store
    from metazoo.episodes import EpisodeSampler

    run("prepare", "menagerie", *tars)
    out = tmp_path / "pictures" / "sheet.png"
    arguments = ("--ways", 3, "--shots", 2, "--queries", 2, "--episode", 5, "--seed", 7)
    assert str(out) in run("show", "menagerie", *arguments, "--out", out)
    sheet = np.asarray(Image.open(out).convert("RGB"))
    split = open_store("menagerie").split("train")
    rows = EpisodeSampler(split, 3, 2, 2, 7).rows(5, 1)
    columns = []
    for row in (*rows.support_rows[0], *rows.query_rows[0]):
        enlarged = split.images[row].transpose(1, 2, 0).repeat(8, axis=0).repeat(8, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, enlarged.shape)[:, :, 0, ::64, ::64, 0]
        y, x = next(
            (y, x) for y, x in np.argwhere(windows[:, :, 0, 0] == enlarged[0, 0, 0])
            if np.array_equal(sheet[y : y + 64, x : x + 64], enlarged)
        )  # fmt: skip
        columns.append((y, x))
    labels = (*rows.support_labels[0], *rows.query_labels[0])
    assert len(set(columns)) == 12
    for label in range(3):  # one line of the sheet for each label, in the labels' order
        assert len({y for (y, _), other in zip(columns, labels, strict=True) if other == label}) == 1
    assert max(x for _, x in columns[:6]) < min(x for _, x in columns[6:])  # support left of query


def test_show_tells_what_cannot_be(tars, tmp_path):
    with pytest.raises(UserError, match="run: metazoo data prepare menagerie --from PATH"):
        run("show", "menagerie")
    run("prepare", "menagerie", *tars)
    with pytest.raises(UserError, match="4-way episodes need at least 4"):
        run("show", "menagerie", "--ways", "4", "--queries", "1")
    with pytest.raises(UserError, match="has no split 'dev'"):
        run("show", "menagerie", "--split", "dev")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        run("show", "menagerie", "--ways", "2", "--queries", "1", "--out", tmp_path / "file" / "sheet.png")


@pytest.fixture
def server(tmp_path):
    """The address of a web server that serves a folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", folder
        serving.shutdown()
        thread.join()


def test_download_fetches_what_was_published(menagerie, server, tmp_path):
    address, folder = server
    archive = write_zip(folder / "menagerie.zip", tiny_tree())
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    menagerie["menagerie"] = replace(tiny_sheet(), downloads=(Download(f"{address}/menagerie.zip", md5),))
    assert "read from class folders: menagerie.zip" in run("prepare", "menagerie", "--download")
    archive.unlink()  # what was fetched is kept, for another size
    assert "at 9 pixels" in run("prepare", "menagerie", "--download", "--size", "9")


def test_download_tells_what_went_wrong(menagerie, server, tmp_path):
    address, folder = server
    with pytest.raises(
        UserError, match=r"Menagerie cannot be downloaded by metazoo; .*None\. Ask the tests\. Then run: "
    ):
        run("prepare", "menagerie", "--download")
    with pytest.raises(UserError, match="either --download or --from"):
        run("prepare", "menagerie", "--download", "--from", folder)
    (folder / "page.zip").write_text("<html>Please accept our terms</html>")
    (folder / "other.zip").write_bytes(b"PK, but not what was published")
    for url, reason in (
        (f"{address}/page.zip", "what came is a web page and not the archive"),
        (f"{address}/other.zip", "what came is not the published file: its MD5 is "),
        (f"{address}/gone.zip", "File not found"),
        ("http://127.0.0.1:9/closed.zip", "refused"),
    ):
        menagerie["menagerie"] = replace(tiny_sheet(), downloads=(Download(url, "0" * 32),))
        name = url.rsplit("/", 1)[-1]
        sentence = rf"{name} could not be downloaded \(.*{reason}.*prepare menagerie --from {name}"
        with pytest.raises(UserError, match=sentence):
            run("prepare", "menagerie", "--download")
        assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_download_that_broke_goes_on_where_the_server_can(menagerie, tmp_path, goes_on):
    content = write_zip(tmp_path / "menagerie.zip", tiny_tree()).read_bytes()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            begin = int((self.headers["Range"] or "bytes=0-")[6:-1]) if goes_on else 0
            asked.append(self.headers["Range"])
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin : 1000 if len(asked) == 1 else None])  # the first answer breaks off

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{serving.server_port}/menagerie.zip"
            md5 = hashlib.md5(content).hexdigest()
            menagerie["menagerie"] = replace(tiny_sheet(), downloads=(Download(address, md5),))
            with pytest.raises(UserError, match=r"menagerie\.zip could not be downloaded"):
                run("prepare", "menagerie", "--download")
            part = tmp_path / "home" / "downloads" / ".menagerie.zip.part"
            assert part.read_bytes() == content[:1000]
            assert "read from class folders: menagerie.zip" in run("prepare", "menagerie", "--download")
            assert asked == [None, "bytes=1000-"] and not part.exists()
            if goes_on:  # all of it came, but then the power went
                (tmp_path / "home" / "downloads" / "menagerie.zip").rename(part)
                run("prepare", "menagerie", "--download", "--force")
                assert asked[2:] == [f"bytes={len(content)}-", None]
        finally:
            serving.shutdown()
            thread.join()


def test_prepare_resizes_as_it_is_told(tars):
    output = run("prepare", "menagerie", "--resize", "enlarged", *tars)
    assert "resized enlarged, bicubic" in output
    assert "menagerie 8 enlarged 3 / 2 / 2" in " ".join(run("list").split())
    with pytest.raises(UserError, match="is there already, resized 'enlarged bicubic' and not 'bicubic'"):
        run("prepare", "menagerie", "--resize", "straight", *tars)
    with pytest.raises(UserError, match="no way to resize called 'sideways'"):
        run("prepare", "menagerie", "--resize", "sideways", *tars)


def test_identical_images_are_told(tmp_path):
    tree = tiny_tree()
    tree["gnu/2.png"] = tree["ant/0.png"]
    tree["bee/1.png"] = tree["bee/2.png"]
    output = run("prepare", "menagerie", write_folder(tmp_path / "images", tree))
    for text in (output, run("verify")):
        assert "identical images within train: 1 group\n" in text
        assert "identical images in more than one split: 1 group\n    images/ant/0.png = images/gnu/2.png\n" in text
        assert "warning: Menagerie has identical images in more than one split" in text


def test_the_command_says_one_sentence_and_exits_with_2(tmp_path):
    page = tmp_path / "cifar.tar.gz"
    page.write_text("<!doctype html><title>Not found</title>")
    for arguments, sentence in (
        (["prepare", "cifarfs"], "metazoo: There is no data set called 'cifarfs'; did you mean 'cifar_fs'?"),
        (["prepare", "cifar_fs", "--from", str(page)], f"metazoo: {page} is a web page"),
        (["verify"], "metazoo: Nothing is prepared in"),
    ):
        command = [sys.executable, "-c", "from metazoo.cli import main; main()", "data", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2
        assert result.stderr.startswith(sentence) and result.stderr.count("\n") == 1
        assert not result.stdout
