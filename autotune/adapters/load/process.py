"""A load worker as its tuner sees it: a child process and the socket to it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile

from autotune.adapters.load.messages import Order, Report, Unframer, framed
from autotune.domain.basics.errors import BenchError

SEND_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0
LAST_WORDS_LENGTH = 2000
_READ_BYTES = 1 << 20


class LoadProcess:
    """One worker, starting since it was made."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(SEND_TIMEOUT_S)
        self._unframer = Unframer()
        # A file, not a pipe: nobody reads along.
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies in the directory of the user must not be imported in place of ours.
                [
                    *(sys.executable, "-P", "-m", "autotune.adapters.load.worker"),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C is for the tuner, which then ends its workers.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def fileno(self) -> int:
        """The socket's, to wait for reports."""
        return self._socket.fileno()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def send(self, order: Order) -> None:
        """Give an order; raises BenchError when the worker is gone or stuck."""
        try:
            self._socket.sendall(framed(order))
        except OSError as error:
            raise self._lost() from error

    def receive(self) -> list[Report]:
        """Read what is there; waits if nothing is. Raises BenchError when the worker is gone."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise self._lost()
        return self._unframer.feed(data)

    def hang_up(self) -> None:
        """Tell the worker to end."""
        self._socket.close()

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()

    def end(self) -> None:
        """Have the worker ended and leave nothing of it."""
        self._socket.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_TIMEOUT_S)
        self._words.close()

    def _lost(self) -> BenchError:
        """Say how the worker ended, with its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip()[-LAST_WORDS_LENGTH:]
        return BenchError(
            f"a load client was lost (exit code {self._process.poll()}): {words or 'no last words'}"
        )
