"""Work in other processes, which end with this one however it ends.

Not `multiprocessing`: its processes import the program that is running once more, which a script without a main guard
does not survive, and those of its pools stay behind when their parent is killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from metazoo.errors import UserError

_PROGRAM = "import sys; sys.path[:] = {path!r}; from metazoo.data.workers import serve; serve()"


class Workers:
    """Calls methods of one object, the `target`, of which each of `count` processes has a copy; with 0, this one calls.

    The target, the arguments and what comes back are pickled. The target may be given later than the processes are
    started, and before the first call. A context manager; leaving it by an error ends the processes at once.
    """

    def __init__(self, count: int, target: object = None) -> None:
        self.count, self.target = count, target
        self._processes = [_Process() for _ in range(count)]
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count, "metazoo workers") if count else None

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        """Call the method soon. The future holds its result, or UserError if the process that ran it was killed."""
        if self._threads is not None:
            return self._threads.submit(self._call, method, arguments)
        future: Future[Any] = Future()
        try:
            future.set_result(getattr(self.target, method)(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        process = self._idle.get()
        try:
            return process.call(self.target, method, arguments)
        finally:
            self._idle.put(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for process in self._processes:
                process.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


class _Process:
    """One process, asked through its standard input and answering through its standard output."""

    def __init__(self) -> None:
        self._has_target = False
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | threads,
            start_new_session=True,  # Ctrl-C is for us; we tell our processes
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._requests, self._replies = self._popen.stdin, self._popen.stdout

    def call(self, target: object, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            if not self._has_target:
                pickle.dump(target, self._requests, pickle.HIGHEST_PROTOCOL)
                self._has_target = True
            pickle.dump((method, arguments), self._requests, pickle.HIGHEST_PROTOCOL)
            self._requests.flush()
            succeeded, value = pickle.load(self._replies)  # of our own process, not of a file
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            status = self._popen.wait()
            hint = " (so it is when the memory is full)" if status == -9 else ""
            raise UserError(
                f"A process that was packing images ended before its time with status {status}{hint}; run the same "
                "command again."
            ) from error
        if not succeeded:
            raise value
        return value

    def kill(self) -> None:
        self._popen.kill()

    def close(self) -> None:
        with suppress(OSError):  # something was left to send, and nobody is there to read it
            self._requests.close()
        self._replies.close()
        self._popen.wait()


def serve() -> None:
    """What a process does: take the object, then call its methods until the other end of the line is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the replies
    try:
        target = pickle.load(requests)
        while True:
            method, arguments = pickle.load(requests)
            try:
                reply = True, getattr(target, method)(*arguments)
            except Exception as error:
                reply = False, error
            pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
            replies.flush()
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)
