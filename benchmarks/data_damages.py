"""The ways to damage small data sets (`data_forms`) that `data_faults` tries."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metazoo.benchmarks.data_forms import Files

HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Accept our terms.</body></html>\n"
PICKLES = (".pkl", ".pickle", "cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")
IMAGES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Damage:
    """One way to damage data.

    Attributes:
        name: for the tally.
        to_files: changes what the data set consists of, before it is written; None if it does not apply.
        to_disk: changes the sources on the disk; None if it does not apply.
        of_bytes: whether it changes single bytes, which a form without checksums cannot tell.
        of_counts: whether it changes how many images there are, which may be any number in a set of one's own.
    """

    name: str
    to_files: Callable[[Files, random.Random, Path], Files | None] | None = None
    to_disk: Callable[[list[Path], random.Random, Path], bool] | None = None
    of_bytes: bool = False
    of_counts: bool = False


def _pick(files: Files, rng: random.Random, suffixes: tuple[str, ...]) -> int | None:
    places = [place for place, (name, _) in enumerate(files) if name.endswith(suffixes)]
    return rng.choice(places) if places else None


def _with_contents(suffixes: tuple[str, ...], change: Callable[[bytes, random.Random, Path], bytes]) -> Any:
    def damage(files: Files, rng: random.Random, canary: Path) -> Files | None:
        place = _pick(files, rng, suffixes)
        if place is None:
            return None
        name, content = files[place]
        return [*files[:place], (name, change(content, rng, canary)), *files[place + 1 :]]

    return damage


def _missing_image(files: Files, rng: random.Random, canary: Path) -> Files | None:
    place = _pick(files, rng, IMAGES)
    return None if place is None else files[:place] + files[place + 1 :]


def _missing_file(files: Files, rng: random.Random, canary: Path) -> Files | None:
    place = _pick(files, rng, (*PICKLES, ".npz", ".bin", ".json"))
    return None if place is None else files[:place] + files[place + 1 :]


def _image_too_many(files: Files, rng: random.Random, canary: Path) -> Files | None:
    place = _pick(files, rng, IMAGES)
    if place is None or any(name.endswith(".csv") for name, _ in files):  # where lists say which images count
        return None
    name, content = files[place]
    folder, _, file = name.rpartition("/")
    return [*files, (f"{folder}/new_{file}", content)]


def _name_twice(files: Files, rng: random.Random, canary: Path) -> Files | None:
    place = _pick(files, rng, IMAGES)
    return None if place is None else [*files, (files[place][0], files[rng.randrange(len(files))][1])]


def _renamed_class(files: Files, rng: random.Random, canary: Path) -> Files | None:
    place = _pick(files, rng, IMAGES)
    if place is None or "/" not in files[place][0] or any(name.endswith(".csv") for name, _ in files):
        return None
    folder = files[place][0].rpartition("/")[0]
    renamed = f"{folder}_of_another_kind"
    return [(name.replace(f"{folder}/", f"{renamed}/"), content) for name, content in files]


def _name_that_leads_out(files: Files, rng: random.Random, canary: Path) -> Files | None:
    name = rng.choice(["../outside.png", "a/../../outside.png", f"{canary.parent}/absolute.png"])
    return [*files, (name, files[0][1])]


def _numbers_of_a_list(content: bytes, rng: random.Random, canary: Path) -> bytes:
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    return b"".join(
        rng.choice([lines[:place] + lines[place + 1 :], [*lines[:place], b"nothing at all\n", *lines[place:]]])
    )


class _Hostile:
    """Pickles as a call that leaves a trace on the disk when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def _hostile(content: bytes, rng: random.Random, canary: Path) -> bytes:
    hostile = _Hostile(canary)
    value = pickle.loads(content)  # which we wrote ourselves
    kind = rng.randrange(5)
    if kind == 0:
        return pickle.dumps(hostile, rng.randrange(5))
    if kind == 1 and isinstance(value, dict):
        return pickle.dumps({**value, rng.choice(list(value)): hostile}, 2)
    if kind == 2:
        return pickle.dumps([hostile, value], 2)
    if kind == 3:
        return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR0" + content[2:]
    return pickle.dumps({b"data": hostile, "image_data": hostile, "data": hostile}, rng.randrange(2, 5))


def _hostile_npz(content: bytes, rng: random.Random, canary: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, images=np.array([_Hostile(canary)] * rng.randrange(1, 9), dtype=object))
    return file.getvalue()


def _other_object(content: bytes, rng: random.Random, canary: Path) -> bytes:
    """A pickle of the wrong things: keys gone, arrays of another shape or type, labels that do not exist."""
    value = pickle.loads(content)  # which we wrote ourselves
    if not isinstance(value, dict):
        return pickle.dumps(rng.choice([None, 7, "text", {}, [1, 2], value[1:], [*value, value[0]]]), 2)
    key = rng.choice(list(value))
    part = value[key]
    if isinstance(part, dict):
        name = rng.choice(list(part))
        others: list[Any] = [{**part, name: part[name][1:]}, {**part, name: [10**6]}, {**part, "new": part[name]}]
        others.append({other: members for other, members in part.items() if other != name})
    elif isinstance(part, list):
        others = [part[1:], [*part, part[0]], [10**6, *part[1:]], [None, *part[1:]], "text"]
    else:
        others = [part[1:], part.astype("float32"), part.reshape(-1), part.astype(object), part[:, None], 5]
        others.append(part + 1 if part.dtype != "uint8" else part[:-2])
    missing = {other: kept for other, kept in value.items() if other != key}
    return pickle.dumps(rng.choice([missing, *({**value, key: other} for other in others)]), 2)


def _other_json(content: bytes, rng: random.Random, canary: Path) -> bytes:
    splits = json.loads(content)
    first = splits["train"][0]
    return rng.choice(
        [
            content[: rng.randrange(len(content))],
            b"[]",
            json.dumps({**splits, "val": [*splits["val"], first]}).encode(),
            json.dumps({**splits, "test": ["nowhere"]}).encode(),
            json.dumps({**splits, "train": "apple"}).encode(),
            json.dumps({"training": splits["train"]}).encode(),
            json.dumps({**splits, "val": {"a": 1}}).encode(),
        ]
    )


def _a_file(sources: list[Path], rng: random.Random) -> Path:
    found = [path for source in sources for path in ([source] if source.is_file() else sorted(source.rglob("*")))]
    return rng.choice([path for path in found if path.is_file() and not path.is_symlink()])


def _on_disk(change: Callable[[bytes, random.Random], bytes]) -> Callable[[list[Path], random.Random, Path], bool]:
    def damage(sources: list[Path], rng: random.Random, canary: Path) -> bool:
        path = _a_file(sources, rng)
        path.write_bytes(change(path.read_bytes(), rng))
        return True

    return damage


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    return bytes(changed)


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(content)), rng.choice([16, 64, 512])
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def _link_out(sources: list[Path], rng: random.Random, canary: Path) -> bool:
    """A symbolic link to a file or folder outside: in a folder on the disk, or in a tar."""
    secret = canary.parent / "secret.png"
    secret.write_bytes(b"not yours")
    target = str(rng.choice([secret, secret.parent]))
    if sources[0].is_dir():
        path = _a_file(sources[:1], rng)
        path.unlink()
        path.symlink_to(target)
        return True
    if sources[0].suffix != ".tar":
        return False
    with tarfile.open(sources[0], "a") as tar:
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE]), target
        tar.addfile(link)
    return True


DAMAGES = (
    Damage("archive or file cut short", to_disk=_on_disk(lambda c, rng: c[: rng.randrange(len(c))]), of_bytes=True),
    Damage("bytes changed", to_disk=_on_disk(_flipped), of_bytes=True),
    Damage("block of zeros", to_disk=_on_disk(_zeroed), of_bytes=True),
    Damage("empty file", to_disk=_on_disk(lambda c, rng: b"")),
    Damage("web page under its name", to_disk=_on_disk(lambda c, rng: HTML)),
    Damage("random bytes under its name", to_disk=_on_disk(lambda c, rng: rng.randbytes(len(c)))),
    Damage("link that leads out", to_disk=_link_out),
    Damage("image cut short", to_files=_with_contents(IMAGES, lambda c, rng, _: c[: rng.randrange(len(c))])),
    Damage("image of no bytes", to_files=_with_contents(IMAGES, lambda c, rng, _: b"")),
    Damage("text instead of an image", to_files=_with_contents(IMAGES, lambda c, rng, _: b"There is no such image.")),
    Damage("image missing", to_files=_missing_image, of_counts=True),
    Damage("image too many", to_files=_image_too_many, of_counts=True),
    Damage("file missing", to_files=_missing_file),
    Damage("name twice", to_files=_name_twice),
    Damage("class of another name", to_files=_renamed_class),
    Damage("name that leads out", to_files=_name_that_leads_out),
    Damage("hostile pickle", to_files=_with_contents(PICKLES, _hostile)),
    Damage("hostile npz", to_files=_with_contents((".npz",), _hostile_npz)),
    Damage("pickle of something else", to_files=_with_contents(PICKLES, _other_object)),
    Damage("wrong list", to_files=_with_contents(("images.txt", "boxes.txt", ".csv", "names.txt"), _numbers_of_a_list)),
    Damage("wrong JSON", to_files=_with_contents((".json",), _other_json)),
)
