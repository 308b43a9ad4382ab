"""Fetching the archives that a data set's authors publish."""

from __future__ import annotations

import hashlib
import http.client
import os
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from metazoo.data.dataset import DataSet, Download
from metazoo.data.sources import is_web_page
from metazoo.errors import UserError
from metazoo.progress import Reporter, on_terminal

PATIENCE = 60.0
"""Seconds without an answer after which a server is given up."""
BLOCK = 1 << 20


def fetch(sheet: DataSet, folder: Path) -> list[Path]:
    """Download the data set's archives into `folder`; one that is there and whole is kept.

    A file takes its name only when its MD5 is the published one. What a broken download has brought is kept, and the
    next one goes on from there if the server can.

    Raises UserError if the data set has no such archives, with where to get it; if the network does not reach them; or
    if what comes is not what was published.
    """
    command = f"metazoo data prepare {sheet.name} --from"
    if not sheet.downloads:
        raise UserError(
            f"{sheet.title} cannot be downloaded by metazoo; get it yourself, under its terms: {sheet.terms} "
            f"{sheet.where} Then run: {command} PATH"
        )
    files = []
    with on_terminal() as report:
        for download in sheet.downloads:
            file = folder / download.filename
            if not file.is_file() or _md5(file) != download.md5:
                try:
                    _fetch(download, file, report)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if isinstance(error, HTTPError):
                        error.close()  # it holds the connection
                    with suppress(OSError):  # unless something is kept in it
                        folder.rmdir()
                    reason = getattr(error, "reason", None) or error
                    raise UserError(
                        f"{download.url} could not be downloaded ({reason}). Try again, or get it elsewhere and run: "
                        f"{command} {' '.join(each.filename for each in sheet.downloads)}"
                    ) from error
            files.append(file)
    return files


def _fetch(download: Download, file: Path, report: Reporter) -> None:
    """Download one file. Raises OSError, HTTPException, or ValueError if it is not what was published."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    _bring(download.url, part, report)
    with open(part, "rb") as beginning:
        head = beginning.read(512)
    found = _md5(part)
    if found == download.md5:
        os.replace(part, file)
        return
    part.unlink()
    if is_web_page(head):
        raise ValueError("what came is a web page and not the archive")
    raise ValueError(f"what came is not the published file: its MD5 is {found} and not {download.md5}")


def _bring(url: str, part: Path, report: Reporter) -> None:
    """Bring a file, from where an earlier attempt broke off."""
    there = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "metazoo"} | ({"Range": f"bytes={there}-"} if there else {}))
    try:
        answer = urlopen(request, timeout=PATIENCE)
    except HTTPError as error:
        if error.code != 416:  # nothing comes after what is there
            raise
        error.close()
        part.unlink()
        return _bring(url, part, report)
    with answer:
        goes_on = answer.status == 206
        done = there if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else 0
        stage = report.stage(f"downloading {url.rpartition('/')[2]} (MB)", total >> 20, done >> 20)
        with stage, open(part, "ab" if goes_on else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                done += len(block)
                stage.update(done >> 20)
    if done < total:
        raise OSError(f"the connection broke after {done:,} of {total:,} bytes, which are kept")


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
