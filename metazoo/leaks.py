"""Leaks: classes that a run is tested on and was trained on, because its source and its target share them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metazoo.data.dataset import DataSet, dataset
from metazoo.data.store import Split, find_store
from metazoo.errors import UserError
from metazoo.schema import Strict


class Leak(Strict):
    """Test classes of a target that the source of a run holds in other splits, by their names in the target's store."""

    classes: int
    """Test classes of the target."""
    trained: tuple[str, ...] = ()
    """Those that the source trains on."""
    validated: tuple[str, ...] = ()
    """Those of the source's validation split, which chose the epochs."""
    dropped: bool = False
    """Whether those trained on are left out of the test episodes, which are then not the usual ones."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """The test classes that no episode draws."""
        return self.trained if self.dropped else ()


def find_leak(source: str, target: str, size: int | None = None, home: Path | None = None) -> Leak | None:
    """What leaks from a run's source into the test classes of a target at `size` pixels; None where nothing does.

    Data sets can share classes if their fact sheets say that they name those of one world (`DataSet.classes_of`). Their
    class lists are those of the stores in `home`, else the published ones. Raises UserError where there is neither.
    """
    one, other = dataset(source, home), dataset(target, home)
    if source == target or not isinstance(one, DataSet) or not isinstance(other, DataSet):
        return None
    if not one.classes_of or one.classes_of != other.classes_of:
        return None
    held, tested = _classes(one, size, home), _classes(other, size, home).get("test", ())
    plain = {split: {one.plain_class_name(name) for name in names} for split, names in held.items()}
    trained, validated = (
        tuple(name for name in tested if other.plain_class_name(name) in plain.get(split, ()))
        for split in ("train", "val")
    )
    return Leak(classes=len(tested), trained=trained, validated=validated) if trained or validated else None


def leak_text(leak: Leak, source: str, target: str) -> str:
    """The leak of a run on `source` into `target` in a sentence or two, with the names of the classes."""
    trains_on, of_all = dataset(source).title, f"of {dataset(target).title}'s {leak.classes} test classes"
    sentences = []
    if leak.trained:
        why = f"are left out, because {trains_on} trains on them" if leak.dropped else f"are trained on in {trains_on}"
        sentences.append(f"{len(leak.trained)} {of_all} {why}: {', '.join(leak.trained)}.")
    if leak.validated:
        why = f"are validation classes of {trains_on}, which chose the epochs"
        sentences.append(f"{len(leak.validated)} {of_all} {why}: {', '.join(leak.validated)}.")
    return " ".join(sentences)


def without(split: Split, class_names: Collection[str]) -> Split:
    """The split without these classes; its images stay where they are, and no episode draws them."""
    kept = [index for index, name in enumerate(split.class_names) if name not in class_names]
    return replace(
        split,
        class_names=tuple(split.class_names[index] for index in kept),
        class_starts=split.class_starts[kept],
        class_sizes=split.class_sizes[kept],
    )


def _classes(sheet: DataSet, size: int | None, home: Path | None) -> Mapping[str, Sequence[str]]:
    """The class names of each split, as a store of the data set has them."""
    store = find_store(sheet, size or sheet.size, home)
    if store is not None:
        return {split: entry.classes for split, entry in store.manifest.splits.items()}
    if sheet.splits:
        return {split: [each for name in names for each in sheet.derive(name)] for split, names in sheet.splits.items()}
    raise UserError(
        f"{sheet.title} is not prepared here, so it cannot be told which test classes were trained on; run: "
        f"metazoo data prepare {sheet.name} --from PATH. {sheet.where}"
    )
