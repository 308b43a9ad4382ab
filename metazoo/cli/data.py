"""`metazoo data`: prepare, list, verify and look at data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metazoo.errors import UserError

if TYPE_CHECKING:
    from metazoo.data.dataset import DataSet
    from metazoo.data.store import Store

app = typer.Typer(no_args_is_help=True)

SHOWN = 5  # groups of identical images

Name = Annotated[str, typer.Argument(help="The data set; `metazoo data list` shows them.", show_default=False)]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Where prepared data sets live; by default $METAZOO_DATA or ~/.cache/metazoo/data."),
]
Size = Annotated[int | None, typer.Option("--size", help="Side in pixels; by default the data set's own.")]


@app.command()
def prepare(
    name: Name,
    more: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="More of the same as --from.")] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="PATH", help="A folder, tar or zip; several follow one another."),
    ] = None,
    size: Size = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the authors' archives.")] = False,
    resize: Annotated[
        str | None,
        typer.Option(
            "--resize",
            metavar="POLICY",
            help="How images become squares: straight (the default), shorter_side (to SIZE, then the centre) or "
            "enlarged (to 8/7 SIZE, then the centre).",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="HOW",
            help="Make a data set of your own class folders, divided as a JSON file lists them, by lot into so many "
            "(64/16/20) or so much (64%/16%/20%), or as their 'folders' train, val and test are.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the lot by which --split divides classes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare again what is prepared already.")] = False,
    home: Home = None,
) -> None:
    """Read a data set from what you have of it, check it, and pack it for use.

    What is stopped on the way goes on where it was when the command is given again.

    metazoo data prepare cifar_fs --from train.tar val.tar test.tar
    metazoo data prepare my_birds --from photographs/ --split 64/16/20
    """
    from metazoo.data.dataset import image_set
    from metazoo.data.own import own_set, refuse_other_division, remember
    from metazoo.data.packing import pack
    from metazoo.data.store import data_home, find_store

    sources = [*(source or []), *(more or [])]
    if download and sources:
        raise UserError("Give either --download or --from, not both.")
    for path in sources:
        if not path.exists():
            raise UserError(f"There is no file or folder {path}.")
    if split is None and seed is not None:
        raise UserError("--seed is of the lot by which --split divides your own images; give --split, too.")
    sheet = image_set(name, home) if split is None else own_set(name, sources, split, seed or 0, size)
    if split is not None and not force:
        refuse_other_division(sheet, home)
    there = not force and find_store(sheet, sheet.size if size is None else size, home) is not None
    if download and not there:
        from metazoo.data.download import fetch

        sources = fetch(sheet, data_home(home) / "downloads")
    store = pack(sheet, sources, size, home, force, resize)
    if split is not None:
        remember(sheet, home)
    state = "was prepared already" if there else "is prepared"
    print(f"{sheet.title} {state} at {store.manifest.size} pixels: {store.path}")
    _describe(store)
    print(f"  cite: {sheet.citation}\n  terms: {sheet.terms}")
    if altered := _altered(sheet, store):
        print(
            f"metazoo: warning: the images of {', '.join(altered)} are not pixel for pixel the published ones; "
            "results will not compare with others'.",
            file=sys.stderr,
        )
    if there:
        print("  Nothing was read; --force prepares it again.")


@app.command("list")
def list_(home: Home = None) -> None:
    """List the data sets there are, and what is prepared."""
    from rich.console import Console
    from rich.table import Table

    from metazoo.data.dataset import DataSet, datasets
    from metazoo.data.store import data_home, prepared

    table = Table("name", "pixels", "train / val / test", "images", "on disk", box=None, padding=(0, 2, 0, 0))
    stores = prepared(home)
    for name, sheet in datasets(home).items():
        if not isinstance(sheet, DataSet):
            table.add_row(name, "", "drawn without end", "", "drawn when used")
            continue
        found = [(path, store) for path, store in stores if path.name.rpartition("-")[0] == name]
        for path, store in found:
            if isinstance(store, UserError):
                table.add_row(name, path.name.rpartition("-")[2], "damaged", "", "")
                continue
            splits = store.manifest.splits.values()
            classes = " / ".join(f"{len(entry.classes):,}" for entry in splits)
            images = f"{sum(sum(entry.counts) for entry in splits):,}"
            pixels = " ".join(filter(None, (str(store.manifest.size), _way(store))))
            table.add_row(name, pixels, classes, images, _megabytes(store))
        if not found:
            classes = " / ".join(f"{count.classes:,}" for count in sheet.expected.values())
            images = f"{sum(count.images for count in sheet.expected.values()):,}" if sheet.expected else ""
            state = "built when used" if sheet.embedded else "not prepared"
            table.add_row(name, str(sheet.size), classes, images, state)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    where = f"The numbers of train / val / test are classes. Prepared data sets are kept in {data_home(home)}."
    console.print(where, highlight=False, soft_wrap=True)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One data set; all that are prepared by default.")] = None,
    home: Home = None,
) -> None:
    """Hash what is prepared again, and say what it holds and which file is not what was packed."""
    from metazoo.data.dataset import image_set
    from metazoo.data.store import data_home, prepared

    if name is not None:
        image_set(name, home)
    stores = [(path, store) for path, store in prepared(home) if name in (None, path.name.rpartition("-")[0])]
    if not stores:
        raise UserError(f"{name or 'Nothing'} is {'not ' if name else ''}prepared in {data_home(home)}.")
    faults = []
    for path, store in stores:
        try:
            if isinstance(store, UserError):
                raise store
            _hash_again(store)
            print(f"sound    {path}")
            _describe(store)
        except UserError as fault:
            print(f"damaged  {path}")
            faults.append(str(fault))
    if faults:
        raise UserError(" ".join(faults))


@app.command()
def show(
    name: Name,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    ways: Annotated[int, typer.Option(help="Classes in the episode.")] = 5,
    shots: Annotated[int, typer.Option(help="Support images a class.")] = 1,
    queries: Annotated[int, typer.Option(help="Query images a class.")] = 15,
    episode: Annotated[int, typer.Option(help="Which episode of the endless list.")] = 0,
    seed: Annotated[int, typer.Option(help="Which list of episodes.")] = 0,
    size: Size = None,
    out: Annotated[Path | None, typer.Option("--out", help="The PNG; by default NAME-SPLIT-EPISODE.png.")] = None,
    home: Home = None,
) -> None:
    """Draw one episode as a contact sheet, support and query labelled."""
    from metazoo.data.contact_sheet import contact_sheet
    from metazoo.data.store import open_store
    from metazoo.episodes import EpisodeSampler
    from metazoo.files import replacing

    store = open_store(name, size, home)
    images = store.split(split)
    rows = EpisodeSampler(images, ways, shots, queries, seed).rows(episode, 1)
    title = (
        f"{store.manifest.title}, {split}: {ways}-way {shots}-shot, {queries} queries a class; "
        f"episode {episode} of seed {seed}"
    )
    out = out or Path(f"{name}-{split}-{episode}.png")
    sheet = contact_sheet(images, rows, title)
    try:
        with replacing(out) as file:
            sheet.save(file, format="PNG")
    except OSError as error:
        raise UserError(f"{out} could not be written ({error.strerror}); choose another file with --out.") from error
    print(f"Wrote {out}.")


def _describe(store: Store) -> None:
    for split, entry in store.manifest.splits.items():
        print(f"  {split:<5} {len(entry.classes):>5,} classes {sum(entry.counts):>7,} images")
    read = ", ".join(str(source.get("file") or source.get("folder")) for source in store.manifest.source)
    print(f"  read from {store.manifest.form}{read and ': '}{read}")
    if way := _way(store):
        print(f"  resized {way}, {store.manifest.resize.split()[-1]}")
    print(f"  {_megabytes(store)}, identity {store.manifest.identity[:16]}")
    _twins(store)


def _hash_again(store: Store) -> None:
    from metazoo.progress import on_terminal

    with on_terminal() as report, report.stage(f"hashing {store.path.name} (MB)", store.bytes >> 20) as stage:
        hashed = 0

        def advance(count: int) -> None:
            nonlocal hashed
            hashed += count
            stage.update(hashed >> 20)

        store.verify(advance)


def _twins(store: Store) -> None:
    twins = store.twins()
    for split, number in twins.within.items():
        print(f"  identical images within {split}: {number:,} {'group' if number == 1 else 'groups'}")
    if twins.across:
        print(
            f"  identical images in more than one split: {twins.across:,} {'group' if twins.across == 1 else 'groups'}"
        )
    for group in twins.groups[:SHOWN]:
        print(f"    {' = '.join(group)}")
    if twins.total > SHOWN:
        print(f"    and {twins.total - SHOWN:,} more")
    if twins.across:
        print(
            f"metazoo: warning: {store.manifest.title} has identical images in more than one split; they are kept, as "
            "its splits have them.",
            file=sys.stderr,
        )


def _way(store: Store) -> str:
    """How the images of a store became squares, where they were not resized straight to them."""
    return store.manifest.resize.rpartition(" ")[0]


def _altered(sheet: DataSet, store: Store) -> list[str]:
    """The splits whose images are not those the fact sheet knows by their digest."""
    if store.manifest.size != sheet.size or _way(store):
        return []
    return [name for name, digest in sheet.digests.items() if store.manifest.splits[name].sha256 != digest]


def _megabytes(store: Store) -> str:
    return f"{store.bytes / 1e6:,.0f} MB"
