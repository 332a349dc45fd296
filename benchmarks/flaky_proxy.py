"""A way to a server that is cut for a while when its process gets SIGUSR1."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, as a server that is gone


def start(host: str, port: int, away_seconds: float) -> tuple[int, int]:
    """Return the pid and the port of a fork that hands connections on to a server."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _Proxy(listener, (host, port), away_seconds).serve()
        return pid, listener.getsockname()[1]


class _Proxy:
    def __init__(self, listener: socket.socket, server: tuple[str, int], away_seconds: float):
        self._listener, self._server, self._away = listener, server, away_seconds
        self._back_at = 0.0
        self._open: set[socket.socket] = set()

    def serve(self) -> None:
        signal.signal(signal.SIGUSR1, self._cut)
        while True:
            connection, _ = self._listener.accept()
            if time.monotonic() < self._back_at:
                _reset(connection)
                continue
            upstream = socket.create_connection(self._server)
            self._open |= {connection, upstream}
            for ends in ((connection, upstream), (upstream, connection)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _cut(self, signum: int, frame: Any) -> None:
        self._back_at = time.monotonic() + self._away
        for each in list(self._open):
            _reset(each)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            self._open.discard(each)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
