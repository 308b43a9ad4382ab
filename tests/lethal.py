"""An object whose methods run in another process, one of which that process does not survive."""

from __future__ import annotations

import os
import signal


class Lethal:
    def fine(self, value: int) -> int:
        print("what a library says")
        return value + 1

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
