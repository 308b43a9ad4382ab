"""What the interval of a record speaks of: its test episodes, drawn again to know the classes that they share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from metazoo.domains import open_domain
from metazoo.errors import UserError
from metazoo.populations import EPISODES, TRAININGS, Classes, Episodes, Over, Population, Trainings
from metazoo.records import Record

POPULATIONS: Mapping[Over, type[Population]] = {"episodes": Episodes, "classes": Classes, "trainings": Trainings}
"""By the name that `--interval` takes."""


def population(over: Over, record: Record, data_home: Path | None = None) -> Population:
    """The population of that name for what a record was tested on.

    Over classes, the images it was tested on must be prepared here: the record holds what each episode measured, and
    which classes the episode had follows from the data. Raises UserError where they are not, or have no classes.
    """
    if over != "classes":
        return {"episodes": EPISODES, "trainings": TRAININGS}[over]
    config = record.config
    tested = (record.target, config["size"], record.data.get("target", ""), data_home)
    episodes = (config["ways"], config["shots"], config["queries"], record.episode_seed, record.episodes)
    return _classes(*tested, *episodes, record.left_out)


@cache
def _classes(
    target: str,
    size: int | None,
    identity: str,
    data_home: Path | None,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    episodes: int,
    left_out: tuple[str, ...],
) -> Population:
    domain = open_domain(target, size, data_home)
    if domain.identity != identity:
        raise UserError(
            f"The packed {domain.title} here is not the one that was tested on, so the classes of its episodes are not "
            "known; prepare it as it was, or use the interval over episodes."
        )
    sets = domain.test_classes(ways, shots, queries, seed, episodes, left_out)
    if sets is None:
        raise UserError(
            f"The tasks of {domain.title} have no classes, and no two of them are the same; use the interval over "
            "episodes, which speaks of other tasks there."
        )
    return Classes(sets)
