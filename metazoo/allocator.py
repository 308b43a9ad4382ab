"""The C library's allocator, which a process of metazoo's own is given leave to hold on to memory."""

from __future__ import annotations

import ctypes

_MOST_MAPPED, _TRIMMED_ABOVE = -4, -1
"""glibc's M_MMAP_MAX and M_TRIM_THRESHOLD."""


def keep_freed_memory() -> bool:
    """Have glibc ask the system for no page twice; False where the C library is another one.

    By default it hands large blocks back as soon as they are freed. A meta-step takes and frees the same ones again
    and again, and each time the system clears their pages. It holds for the whole process, so commands ask for it and
    no function of the library does.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt  # noqa: B018 -- an AttributeError where there is none
    except (OSError, TypeError, AttributeError):
        return False
    return bool(library.mallopt(_MOST_MAPPED, 0) and library.mallopt(_TRIMMED_ABOVE, 2**31 - 1))
