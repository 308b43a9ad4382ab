"""Commands let glibc keep what a process has freed."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metazoo import allocator

FAULTS = """
import resource, sys
import torch
from metazoo import allocator

if sys.argv[1] == "kept":
    assert allocator.keep_freed_memory()
for _ in range(20):
    torch.ones(2**24)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "mallopt") and os.uname().sysname == "Linux"


@pytest.mark.skipif(not glibc(), reason="the C library is not glibc")
def test_no_page_is_asked_for_twice() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 10 * faults("kept") < faults("handed back")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()


def test_no_function_of_the_library_asks_for_it() -> None:
    """It holds for the whole process, which is the caller's unless a command has begun it."""
    package = Path(allocator.__file__).parent
    asking = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^ +allocator\.keep_freed_memory\(\)", path.read_text(), re.MULTILINE)
    }
    assert asking == {"cli/train.py", "cli/evaluate.py", "cli/leaderboard.py", "leaderboard/jobs.py"}
