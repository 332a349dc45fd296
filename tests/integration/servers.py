"""Servers that a test may kill and start again."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from pathlib import Path

from account_tax.processes.ranks import free_port

from .launched import Running

STARTED_IN = 300.0  # seconds, on a busy machine
LOOPBACK = "127.0.0.1"


class HttpServer:
    """A command that takes --host and --port, on a port of the loopback interface it keeps."""

    def __init__(self, folder: Path, *command: str, health: str = "/health", **env: str):
        port = free_port()
        self.address = f"http://{LOOPBACK}:{port}"
        self._folder, self._env, self._health = folder, env, health
        self._command = [*command, "--host", LOOPBACK, "--port", str(port)]
        self.start()

    def start(self) -> None:
        log = self._folder / "server.log"
        self._running = Running(self._folder, log, *self._command, env=self._env)
        try:
            self._running.wait_for(self._is_healthy, STARTED_IN)
        except BaseException:
            self.kill()
            raise

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}{self._health}", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Kill the server and its workers, as a machine that loses power does."""
        process = self._running.process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

    def pause(self) -> None:
        """Stop the server as a machine does that is too busy to answer: it still listens."""
        os.killpg(self._running.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._running.process.pid, signal.SIGCONT)


class Server(HttpServer):
    """A real `mlflow server` with SQLite and proxied artifacts."""

    def __init__(self, folder: Path, *options: str, workers: int = 2, **env: str):
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--serve-artifacts"),
            *("--workers", str(workers), "--artifacts-destination", str(folder / "artifacts")),
        ]
        super().__init__(folder, *command, *options, **env)
