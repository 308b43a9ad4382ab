"""Packing a data set: from the images a user has to a store, whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from metazoo.data import journal
from metazoo.data.dataset import DataSet
from metazoo.data.folders import building, locked
from metazoo.data.packer import Packer, worker_count
from metazoo.data.pictures import Recipe
from metazoo.data.store import MANIFEST, Store, find_store, store_path
from metazoo.data.workers import Workers
from metazoo.errors import UserError
from metazoo.files import write_text

LARGEST = 1024


def pack(
    sheet: DataSet,
    sources: Sequence[Path] = (),
    size: int | None = None,
    home: Path | None = None,
    force: bool = False,
    resize: str | None = None,
    workers: int | None = None,
) -> Store:
    """Read a data set from the form the user has it in, and pack it; a store of it that is already there is opened.

    Args:
        sheet: the data set.
        sources: files and folders that together hold it; none for an embedded one.
        size: side of the stored images in pixels; the data set's own by default.
        home: see `metazoo.data.store.data_home`.
        force: pack again, and put the new store in the place of the old one.
        resize: how images become squares, a key of `metazoo.data.pictures.RESIZES`; "straight" by default.
        workers: how many processes decode; by default one a core, and for small data sets none but this one. The
            store is the same whatever their number.

    Raises UserError if the source is not the data set in full, an image does not decode, or the store cannot be
    written; nothing half-written is left behind. Memory stays flat whatever the size of the data set. What a packing
    that was killed or interrupted had finished is kept, and the next one from the same sources goes on from there.
    """
    size = sheet.size if size is None else size
    if not 1 <= size <= LARGEST:
        raise UserError(f"Images cannot be stored at {size} pixels; --size takes 1 to {LARGEST}.")
    recipe = Recipe.of(sheet, size, resize or "straight")
    path = store_path(sheet.name, size, home)

    def there() -> Store | None:
        store = None if force else find_store(sheet, size, home)
        if store and resize is not None and store.manifest.resize != recipe.resizing:
            raise UserError(
                f"{path} is there already, resized '{store.manifest.resize}' and not '{recipe.resizing}', and a data "
                "set has one store a size. --force packs it again in the place of that one; --home keeps both."
            )
        return store

    if store := there():
        return store
    with Workers(worker_count(sheet) if workers is None else workers) as pool:  # they start while the images are found
        layout = sheet.layout(sources, size)
        sheet.check(layout)
        with _writing(path), locked(path):
            if store := there():  # another process has packed it meanwhile
                return store
            identity = journal.identity(sheet, layout, recipe)
            with building(path, lambda folder: journal.belongs(folder, identity)) as folder:
                manifest = Packer(sheet, layout, recipe, folder, identity, pool).run()
                write_text(folder / MANIFEST, manifest.to_json())
    return Store.open(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into a sentence."""
    try:
        yield
    except OSError as error:
        reason = f"the disk is full ({error.strerror})" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(
            f"{path} could not be written: {reason}. Nothing was left behind; make room, or choose another folder with "
            "--home or METAZOO_DATA."
        ) from error
