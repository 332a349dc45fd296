"""A tracking server that a test may kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from .conftest import environment

STARTED_IN = 300.0  # seconds, on a busy machine
LOOPBACK = "127.0.0.1"


class Server:
    """A real `mlflow server` with SQLite and proxied artifacts, on a port that it keeps."""

    def __init__(self, folder: Path, *options: str, workers: int = 2, **env: str):
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            port = listener.getsockname()[1]
        self.address = f"http://{LOOPBACK}:{port}"
        self._folder, self._env = folder, environment(env)
        self._command = [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--serve-artifacts",
                "--workers",
                str(workers),
            ),
            *("--artifacts-destination", str(folder / "artifacts")),
            *("--host", LOOPBACK, "--port", str(port), *options),
        ]
        self.start()

    def start(self) -> None:
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._env, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + STARTED_IN
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise TimeoutError((self._folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """Kill the server and its workers, as a machine that loses power does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)

    def pause(self) -> None:
        """Stop the server as a machine does that is too busy to answer: it still listens."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)
