"""Errors that are written for a person: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem its reader can mend. The command line prints its message and exits with status 2."""


class Incompatible(UserError):
    """A method and a backbone (or a task) that cannot work together; the message is the reason a table prints."""


class Diverged(UserError):
    """Training reached a loss that is not a number; the run is marked diverged and others go on."""


class OutOfMemory(UserError):
    """The device has no memory left; the message names the setting to lower."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: it names the nearest known one and lists them all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    listing = ", ".join(names) if names else "none"
    return UserError(f"There is no {kind} called '{name}'{hint} Known: {listing}.")
