"""Measuring processes: a parent of them that has PyTorch imported, and each of them seen from the conductor.

Importing PyTorch takes seconds, so it is done once, in a process of its own (`worker.py`), which forks a fresh one for
every worker and never touches CUDA itself.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.measure.sides import Side

WORKER = Path(__file__).with_name("worker.py")


class Nursery:
    """The parent of measuring processes. It ends before the process that made it; where that is killed, soon after."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONHASHSEED": "0"},
                start_new_session=True,  # an interrupt from the keyboard goes to the conductor, which ends its workers
            )
        try:
            hello = self._socket.makefile().readline()
        except BaseException:  # an interrupt, while PyTorch is imported
            self._process.kill()
            self._process.wait()
            raise
        if not hello:
            raise RuntimeError("the parent of the measuring processes ended before it was ready")
        gpu = json.loads(hello)  # of which both are None where there is none to measure on
        self.gpu_uuid: str | None = gpu["uuid"]
        self.gpu_name: str | None = gpu["name"]
        atexit.register(self.close)

    def close(self) -> None:
        """End it; its workers go on."""
        self._process.kill()
        self._process.wait()

    def worker(self, side: Side, lock: int) -> Worker:
        """A fresh process that measures `side`. It holds the lock of that open file until it ends, which may be after
        this one was killed: the call that it is in goes on for seconds."""
        ours, theirs = socket.socketpair()
        # What it prints goes to a file: a pipe that nobody reads would stop it when it is full.
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in Worker.__exit__
        with theirs:
            request = json.dumps({"package_folder": str(side.folder) if side.folder else None})
            try:
                socket.send_fds(self._socket, [request.encode()], [theirs.fileno(), errors.fileno(), lock])
            except (BrokenPipeError, ConnectionResetError) as error:
                ours.close()
                errors.close()
                raise RuntimeError(
                    "the parent of the measuring processes has ended; was it killed, or out of memory?"
                ) from error
        return Worker(ours, errors)


@functools.cache
def nursery() -> Nursery:
    """This process's own, made on first use."""
    return Nursery()


class Worker:
    """A measuring process at the other end of a socket."""

    def __init__(self, connection: socket.socket, errors: Any) -> None:
        self._connection = connection
        self._stream = connection.makefile("rw")
        self._errors = errors
        self.pid: int = self.receive()

    def kill(self) -> None:
        """End it, whatever it does."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until it has ended: only then is its end of the socket closed."""
        with suppress(ConnectionResetError):
            while self._connection.recv(65536):
                pass
        self._stream.close()
        self._connection.close()
        self._errors.close()

    def ask(self, do: str, **arguments: Any) -> Any:
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:
        try:
            self._stream.write(json.dumps({"do": do, **arguments}) + "\n")
            self._stream.flush()
        except (BrokenPipeError, ConnectionResetError):
            self._fail()

    def receive(self) -> Any:
        try:
            line = self._stream.readline()
        except ConnectionResetError:
            line = ""
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> None:
        self._errors.seek(0)
        raise RuntimeError(f"a measuring process ended:\n{self._errors.read().strip()}")
