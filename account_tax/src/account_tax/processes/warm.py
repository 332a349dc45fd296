"""One interpreter that has imported everything, and forks the stages of a run.

A short run is mostly imports: the check, prepare, deepspeed's launch process, each rank and
register import torch and its friends for 5 to 10 s of CPU each (docs/results.md). Here they are
real processes of their own, each with its environment, folder, streams and session; only the exec,
and with it the imports, are left out. The launcher stays without torch: it asks over a socket.

Where there is a GPU nothing is forked: CUDA can't be used in a fork of a process that has seen it.
"""

from __future__ import annotations

import gc
import inspect
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

from account_tax.storage.files import no_link
from account_tax.terminal import is_verbose

from .ranks import end_stage

LAUNCH = "deepspeed.launcher.launch"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/accel")
# What stops a stage or the launcher; a fork has its parent's handlers until it sets its own.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.05


# --- the side that asks ---------------------------------------------------------------------------


class Forked:
    """A process forked elsewhere, as much of `subprocess.Popen` as a stage needs."""

    def __init__(self, interpreter: Interpreter, pid: int):
        self.pid, self.returncode = pid, None
        self._interpreter = interpreter

    def poll(self) -> int | None:
        """Return its exit status, -n if signal n ended it, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._interpreter.status_of(self.pid)
        return self.returncode

    def wait(self) -> int:
        """Return its exit status when it has ended."""
        while (status := self.poll()) is None:
            self._interpreter.read(block=True)
        return status


class Interpreter:
    """The warm interpreter, from the launcher's side.

    Args:
        modules: What it imports, in the order in which the stages need it.
        cwd: The folder of the project.
        environment: What modules may read while they are imported.
    """

    def __init__(self, modules: Sequence[str], cwd: Path, environment: Mapping[str, str]):
        self._socket, theirs = socket.socketpair()
        self._unread, self._ended = b"", dict[int, int]()
        self._started: list[int] = []
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
                cwd=cwd,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what can't be imported is said by the stage itself
                start_new_session=True,
            )

    def start(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path
    ) -> Forked | None:
        """Return `python -m WORDS` in a session of its own, or None if this interpreter is gone."""
        order = {"words": [*words], "cwd": str(cwd), "env": dict(environment), "log": str(log)}
        with suppress(OSError):
            self._socket.setblocking(True)
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            while not self._started and self.read(block=True):
                pass
        return Forked(self, self._started.pop()) if self._started else None

    def status_of(self, pid: int) -> int | None:
        """Return how a process ended; SIGKILL where nobody is left to say it."""
        there = self.read(block=False)
        return self._ended.get(pid, None if there else -signal.SIGKILL)

    def read(self, block: bool) -> bool:
        """Take in what was said; return whether more may come."""
        try:
            self._socket.setblocking(block)
            said = self._socket.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            said = b""
        *lines, self._unread = (self._unread + said).split(b"\n")
        for pid, status in map(json.loads, lines):
            if status is None:
                self._started.append(pid)
            else:
                self._ended[pid] = status
        return bool(said)

    def close(self) -> None:
        """End the interpreter; what it has started has ended, or is ended by its own group."""
        self._socket.close()
        self.process.kill()
        self.process.wait()


_interpreter: Interpreter | None = None


@contextmanager
def warm_interpreter(
    modules: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> Iterator[None]:
    """Have processes started meanwhile forked from a warm interpreter, where there can be one."""
    global _interpreter
    if _interpreter is not None or any(map(os.path.exists, GPU_DEVICES)):
        yield
        return
    _interpreter = Interpreter(modules, cwd, {**environment, "DS_ACCELERATOR": "cpu"})
    try:
        yield
    finally:
        _interpreter.close()
        _interpreter = None


def start_process(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path
) -> Forked | subprocess.Popen[bytes]:
    """Start a command in a session of its own: forked, where it is Python's and one is warm."""
    words = _module_words(command)
    if words and _interpreter and (forked := _interpreter.start(words, cwd, environment, log)):
        return forked
    with open(log, "ab", opener=no_link) as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the group
        )


def _module_words(command: Sequence[str]) -> list[str]:
    """Return MODULE and its words of `python [-u] -m MODULE ...`; nothing of another command."""
    words = [word for word in command[:2] if word != "-u"] + list(command[2:])
    return words[2:] if words[:2] == [sys.executable, "-m"] else []


# --- the warm side --------------------------------------------------------------------------------


class _Child(BaseException):
    """Raised in a fork, so that it leaves its parent's calls: what it is to do instead."""

    def __init__(self, words: list[str], env: Mapping[str, str], cwd: str | None):
        super().__init__()
        self.words, self.env, self.cwd = words, env, cwd

    def run(self) -> None:
        """Become `python -m WORDS`."""
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if self.cwd is not None:
            os.chdir(self.cwd)
        forget_the_parent(self.env)
        with suppress(OSError):  # what `ps` and `top` show
            Path("/proc/self/comm").write_text(self.words[0].rpartition(".")[2], encoding="utf-8")
        sys.argv = self.words
        if self.words[0] == LAUNCH:
            from deepspeed.launcher import launch

            launch.subprocess = SimpleNamespace(Popen=_Rank)
            # It looks at its ranks once a second, and once more when all have ended.
            launch.time = SimpleNamespace(**vars(time) | {"sleep": _sleep_less})
            launch.main()
            end_stage()
        else:
            runpy.run_module(self.words[0], run_name="__main__", alter_sys=True)


def _sleep_less(_: float) -> None:
    time.sleep(POLL_SECONDS)


def main() -> None:
    """Import, and fork what is asked for, until the launcher is gone; in a fork, be that."""
    gc.disable()  # a fifth of the imports' time, which leave nothing to collect
    # Kedro's settings look at the source of every frame, four times; for those of runpy, which have
    # no file, that is a look at each of all modules: 0.2 s of a stage.
    inspect.modulesbyfile["<frozen runpy>"] = "runpy"
    work = _serve
    while True:
        try:
            work()
            return
        except _Child as child:
            work = child.run


def _serve() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        orders.setblocking(False)
        unread = b""
        for name in sys.argv[2:]:
            with warnings.catch_warnings():
                if not is_verbose():  # what is written here is on the person's terminal
                    warnings.simplefilter("ignore")
                pkgutil.resolve_name(name)  # imports it; whose it is, is for who has named it
            unread = _answer(orders, unread)
        while True:
            with selectors.DefaultSelector() as selector:
                selector.register(orders, selectors.EVENT_READ)
                selector.select(POLL_SECONDS)
            unread = _answer(orders, unread)


def _answer(orders: socket.socket, unread: bytes) -> bytes:
    """Fork what was asked for and tell what has ended; return the part of an order that came."""
    try:
        while said := orders.recv(65536):
            unread += said
        sys.exit(0)  # the launcher is gone
    except BlockingIOError:
        pass
    *lines, unread = unread.split(b"\n")
    for order in map(json.loads, lines):
        with open(order["log"], "ab", opener=no_link) as log:
            pid = _fork(order["words"], order["env"], log, log, order["cwd"])
        _say(orders, pid, None)
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _say(orders, ended[0], os.waitstatus_to_exitcode(ended[1]))
    return unread


def _say(orders: socket.socket, pid: int, status: int | None) -> None:
    orders.setblocking(True)
    orders.sendall(json.dumps([pid, status]).encode() + b"\n")
    orders.setblocking(False)


class _Rank:
    """A rank forked by deepspeed's launch process: as much of `subprocess.Popen` as it uses.

    deepspeed tells of the first rank that it finds ended, in no order. Where a signal has ended
    one, the others fail for want of it within moments, so each of them ends by that signal too.
    """

    _all: ClassVar[list[_Rank]] = []

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
    ):
        self.pid = _fork(_module_words(command), env, stdout, stderr)
        self.returncode: int | None = None
        self._all.append(self)

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        self._look()
        if self.returncode:
            for rank in self._all:
                rank._look()
            # SIGABRT is how a communication library takes the end of another rank.
            killed = (s for rank in self._all if (s := rank.returncode or 0) < 0)
            self.returncode = next((s for s in killed if s != -signal.SIGABRT), self.returncode)
        return self.returncode

    def _look(self) -> None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])


def _fork(
    words: Sequence[str],
    env: Mapping[str, str],
    stdout: IO[Any] | None,
    stderr: IO[Any] | None,
    cwd: str | None = None,
) -> int:
    """Fork `python -m WORDS` and return its pid; with a folder, in a session of its own."""
    gc.freeze()  # a fork's first collection would copy every page
    if pid := os.fork():
        return pid
    if cwd is not None:
        os.setsid()
    for number, stream in ((1, stdout), (2, stderr)):
        if stream is not None:
            os.dup2(stream.fileno(), number)
    raise _Child([*words], dict(env), cwd)


def forget_the_parent(env: Mapping[str, str]) -> None:
    """Undo what a fork keeps and an exec would not."""
    gc.enable()
    for signum in ENDING:
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        text = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", write_through=True)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own random numbers begin anew by themselves
    # What libraries have read of the environment while they were imported.
    if (torch := sys.modules.get("torch")) and (threads := env.get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))
    sys.modules.pop(f"{str(__package__).partition('.')[0]}.settings", None)


if __name__ == "__main__":
    main()
