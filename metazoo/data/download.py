"""Fetching the archives that a data set's authors publish."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

from metazoo.data.dataset import DataSet
from metazoo.errors import UserError

PATIENCE = 60.0
"""Seconds without an answer after which a server is given up."""


def fetch(sheet: DataSet, folder: Path) -> list[Path]:
    """Download the data set's archives into `folder` through torchvision; one that is there and whole is kept.

    Raises UserError if the data set has none, the network does not reach them, or what comes is not what was published.
    """
    if not sheet.downloads:
        raise UserError(f"{sheet.title} cannot be downloaded. {sheet.where}")
    from torchvision.datasets.utils import check_integrity, download_url

    files = []
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        for download in sheet.downloads:
            file = folder / download.filename
            try:
                if not check_integrity(str(file), download.md5):
                    download_url(download.url, folder, download.filename, download.md5)
            except (OSError, RuntimeError) as error:
                with suppress(OSError):  # the folder is removed if it is left empty
                    file.unlink(missing_ok=True)
                    folder.rmdir()
                if isinstance(error, HTTPError):
                    error.close()  # it holds the connection
                reason = getattr(error, "reason", error)
                raise UserError(
                    f"{download.url} could not be downloaded ({reason}). Get it elsewhere and run: "
                    f"metazoo data prepare {sheet.name} --from {' '.join(each.filename for each in sheet.downloads)}"
                ) from error
            files.append(file)
    finally:
        socket.setdefaulttimeout(patience)
    return files
