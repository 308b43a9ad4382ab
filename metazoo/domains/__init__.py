"""Domains: data sets opened, of whatever kind, ready to give the episodes that runs are trained and tested on."""

from __future__ import annotations

from pathlib import Path

from metazoo.data.dataset import Kind, dataset
from metazoo.domains.domain import Domain
from metazoo.domains.functions import FunctionDomain
from metazoo.domains.images import ImageDomain
from metazoo.prefetching import Stream

__all__ = ["Domain", "FunctionDomain", "ImageDomain", "Stream", "baseline", "identity_here", "open_domain"]

_KINDS: dict[Kind, type[Domain]] = {"images": ImageDomain, "functions": FunctionDomain}


def open_domain(name: str, size: int | None = None, home: Path | None = None) -> Domain:
    """The data set `name` (its images at `size` pixels, from `home`), ready for use.

    Raises UserError for an unknown data set, or one that was not prepared, with the command to run.
    """
    return _KINDS[dataset(name, home).kind].open(name, size, home)


def identity_here(name: str, size: int | None = None, home: Path | None = None) -> str | None:
    """The identity of the data set as it is ready for use on this machine, None where it is not."""
    return _KINDS[dataset(name, home).kind].identity_here(name, size, home)


def baseline(name: str, ways: int, shots: int, episodes: int, seed: int) -> tuple[str, float]:
    """What one reaches on the first test episodes of a data set without learning anything: how, and the result."""
    return _KINDS[dataset(name).kind].baseline(name, ways, shots, episodes, seed)
