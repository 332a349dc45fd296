"""Python that has imported everything: a command's work is done in a fork of it, without imports.

    WARM_PYTHON=FOLDER PYTHONPATH=tests/warm kedro train ...

Half of what the tests' commands do is to import the same libraries (docs/results.md). Such a
command, known by its name, gives its words, folder, environment and open files to a process that
has imported what `MODULES` import of other projects, none of this one; that forks, and the command
waits, passes signals on and ends as the fork does. So no line of the project is another, nor what
a command sees, but for the start of its interpreter.

Whatever a library may have read while it was imported, or a fork can't take over (`surroundings`),
has to be the same, or the command starts as ever; for the next one like it there is a warm process.
"""

from __future__ import annotations

import array
import atexit
import fcntl
import gc
import hashlib
import importlib
import inspect
import io
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

MODULES = (
    *("account_tax.launch.launcher", "account_tax.pipelines.check"),
    *("account_tax.pipelines.prepare.pipeline", "account_tax.pipelines.train.pipeline"),
    *("account_tax.pipelines.register.pipeline", "account_tax.registry.verify"),
    *("account_tax.review.command", "account_tax.predict.command", "deepspeed.launcher.launch"),
    *("transformers.integrations.deepspeed", "transformers.models.bert.modeling_bert"),
    *("kedro.framework.cli", "kedro_datasets.huggingface", "mlflow.cli", "mlflow.pyfunc"),
)
# These read their folder's files when they are imported, and what imports them.
NEVER = ("account_tax", "kedro", "__mp_main__", "warm_python", "sitecustomize")
COMMANDS = {"kedro", "mlflow"}  # cold with WARM_COMMANDS=no, for tests that kill them
OTHERS = {
    *("account_tax.processes.warm", "account_tax.pipelines.check", "verify.py"),
    *("deepspeed.launcher.runner", "deepspeed.launcher.launch", "launch.py", "ranks.py"),
    *("killed_predict.py", "documented.py"),
}
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/accel")  # no CUDA in a fork
# Variables that no library reads but when it is asked for something.
LATE = (
    *("MLFLOW_", "ACCOUNT_TAX_", "GIT_", "PYTEST_", "WARM_", "PWD", "OLDPWD", "SHLVL", "_"),
    *("TMPDIR", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8", "TOKENIZERS_PARALLELISM"),
    *("RANK", "LOCAL_", "CROSS_", "WORLD_SIZE", "MASTER_", "COLUMNS", "PATH", "KEDRO_"),
    *("CUDA_VISIBLE_DEVICES", "DS_", "PDSH_", "OMP_NUM_THREADS"),  # where there is no GPU
)
EARLY = ("MLFLOW_LOGGING_LEVEL", "MLFLOW_CONFIGURE_LOGGING", "MLFLOW_DISABLE_TELEMETRY")
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
UNUSED_SECONDS = 300.0


# --- the command's side ---------------------------------------------------------------------------


def hand_over() -> None:
    """Have this process's work done by a warm one and end as that does, if there is one."""
    words = sys.orig_argv[1:]
    options = []
    while words and words[0] in {"-u", "-P"}:
        options.append(words.pop(0))
    if not _is_known(words) or any(map(os.path.exists, GPU_DEVICES)):
        return
    folder = Path(os.environ["WARM_PYTHON"])
    place = folder / hashlib.sha256(json.dumps(surroundings()).encode()).hexdigest()[:16]
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(str(place))
        except OSError:
            _start_one(place)
            return
        _send(line, {"words": words, "safe_path": "-P" in options, "parent": os.getppid()})
        _wait(line)


def surroundings() -> list[object]:
    """Return what a fork takes from the process it is forked from and can't change."""
    read_early = {
        name: value
        for name, value in os.environ.items()
        if name in EARLY or not name.startswith(LATE)
    }
    return [
        *(sys.executable, sorted(read_early.items()), os.getuid()),
        *(os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid")),
        *(sorted(os.sched_getaffinity(0)), Path("/proc/self/cgroup").read_text(encoding="utf-8")),
        [resource.getrlimit(each) for each in _LIMITS],
    ]


def _is_known(words: list[str]) -> bool:
    name = words[words[:1] == ["-m"] :][:1]
    known = OTHERS if os.environ.get("WARM_COMMANDS") == "no" else OTHERS | COMMANDS
    return bool(name) and os.path.basename(name[0]) in known


def _start_one(place: Path) -> None:
    """Start a warm process for the next command in these surroundings; the second asks for it.

    Where many are to come, WARM_EAGER=yes has the first ask.
    """
    asked = place.with_suffix(".asked")
    if not asked.exists() and os.environ.get("WARM_EAGER") != "yes":
        asked.touch()
        return
    with suppress(FileExistsError):
        place.with_suffix(".started").touch(exist_ok=False)
        subprocess.Popen(
            [sys.executable, "-P", __file__, str(place)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"WARM_PYTHON": "", "PYTHONPATH": "", "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=place.with_suffix(".log").open("w"),
            start_new_session=True,
        )


def _send(line: socket.socket, order: dict[str, object]) -> None:
    files = _inherited()
    mask = os.umask(0)
    os.umask(mask)
    order |= {"cwd": os.getcwd(), "env": dict(os.environ), "files": files, "umask": mask}
    content = json.dumps(order).encode()
    line.sendall(len(content).to_bytes(8, "big"))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    line.sendmsg([content[:1]], rights)
    line.sendall(content[1:])


def _inherited() -> list[int]:
    """Return the descriptors that a program started now would have."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _wait(line: socket.socket) -> None:
    """End as the fork does."""
    with line.makefile("r", encoding="utf-8") as said:
        if not (started := said.readline()):
            return  # nothing was; this process does it
        pid = int(started)
        for each in PASSED_ON:
            signal.signal(each, lambda signum, _: os.kill(pid, signum))
        status = int(said.readline() or -signal.SIGKILL)
    if status < 0:
        with suppress(OSError):  # SIGKILL has no other
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# --- the warm side --------------------------------------------------------------------------------


class _Child(BaseException):
    """Raised in a fork, so that it leaves its parent's calls."""

    def __init__(self, order: dict, files: list[int]):
        super().__init__()
        self.order, self.files = order, files

    def run(self) -> None:
        """Become the command."""
        order = self.order
        _take_files(order["files"], self.files)
        os.chdir(order["cwd"])
        os.umask(order["umask"])
        _forget_the_parent(order)
        match order["words"]:
            case ["-m", module, *words]:
                sys.argv = [module, *words]
                _find_modules(order, os.getcwd())
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case [script, *words]:
                sys.argv = [script, *words]
                _find_modules(order, os.path.dirname(os.path.realpath(script)))
                runpy.run_path(script, run_name="__main__")


def _take_files(numbers: list[int], files: list[int]) -> None:
    """Have these files at these numbers, and no others open."""
    above = max([2, *numbers, *files]) + 1
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above) for each in files]
    kept = min(high, default=above)
    os.closerange(0, kept)
    for number, each in zip(numbers, high, strict=True):
        os.dup2(each, number, inheritable=True)
    os.closerange(kept, max(high, default=above) + 1)


def _find_modules(order: dict, first: str) -> None:
    """Look for modules where the command would have looked for them."""
    given = [each for each in order["env"].get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [*([] if order["safe_path"] else [first]), *given, *_base_path]
    importlib.invalidate_caches()


def _forget_the_parent(order: dict) -> None:
    gc.enable()
    for signum in (*PASSED_ON, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["env"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _text_stream(number, order) if number in order["files"] else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    mine, parent, real = os.getpid(), order["parent"], os.getppid
    os.getppid = lambda: parent if os.getpid() == mine else real()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) and (threads := order["env"].get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))
    tempfile.tempdir = None
    with suppress(OSError):
        words = [word for word in order["words"] if word != "-m"]
        Path("/proc/self/comm").write_text(os.path.basename(words[0]), encoding="utf-8")


def _text_stream(number: int, order: dict) -> io.TextIOWrapper:
    """Return what Python makes of a standard descriptor when it starts."""
    raw = io.FileIO(number, "w" if number else "r", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if number else io.BufferedReader(raw),
        "utf-8",
        "backslashreplace" if number == 2 else "strict",
        line_buffering=number == 2 or os.isatty(number),
        write_through=bool(order["env"].get("PYTHONUNBUFFERED")),
    )


_base_path: list[str] = []


def main() -> None:
    """Import, and fork what is asked for, until nothing is asked for any more."""
    gc.disable()
    inspect.modulesbyfile["<frozen runpy>"] = "runpy"  # else Kedro looks for it in all modules
    place = Path(sys.argv[1])
    _base_path[:] = sys.path
    _import_libraries(place.parent / "modules.json")
    os.environ.pop("WARM_PYTHON")
    work = _Server(place).serve
    while True:
        try:
            work()
            return
        except _Child as child:
            work = child.run
        except SystemExit as end:
            _end_at_once(end)
            raise


def _end_at_once(end: SystemExit) -> None:
    """End as Python does, but for taking all the libraries apart: most of a second."""
    if end.code is None or isinstance(end.code, int):
        threading._shutdown()
        atexit._run_exitfuncs()
        with suppress(Exception):  # as Python itself then says and ends with another status
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(end.code or 0)


def _import_libraries(listed: Path) -> None:
    """Import what the project imports of others, found by a process that imports the project."""
    if not listed.exists():
        found = subprocess.run(
            [sys.executable, "-P", __file__, "--list"], capture_output=True, check=True, text=True
        )
        mine = listed.with_suffix(f".{os.getpid()}")
        mine.write_text(found.stdout.splitlines()[-1], encoding="utf-8")
        mine.replace(listed)
    for name in json.loads(listed.read_text(encoding="utf-8")):
        with suppress(Exception):
            importlib.import_module(name)
    assert not [name for name in sys.modules if name.startswith(("account_tax", "kedro"))]
    assert threading.active_count() == 1


def list_libraries() -> None:
    """Print the names of all modules that `MODULES` import, in their order."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "account_tax/src"))
    for name in MODULES:
        importlib.import_module(name)
    print(json.dumps([name for name in sys.modules if not name.startswith(NEVER)]))  # noqa: T201


class _Server:
    def __init__(self, place: Path):
        self._place, self._socket = place, socket.socket(socket.AF_UNIX)
        self._socket.bind(str(place))
        self._socket.listen(64)
        self._lines: dict[int, socket.socket] = {}

    def serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._socket, selectors.EVENT_READ)
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        selector.register(read, selectors.EVENT_READ)
        gc.freeze()
        last = time.monotonic()
        while self._lines or (self._place.exists() and time.monotonic() < last + UNUSED_SECONDS):
            for key, _ in selector.select(5.0):
                last = time.monotonic()
                if key.fileobj is self._socket:
                    line = self._socket.accept()[0]
                    pid = self._fork(line)
                    self._lines[pid] = line
                    selector.register(line, selectors.EVENT_READ, pid)
                    line.sendall(f"{pid}\n".encode())
                elif key.data:  # the command was killed
                    selector.unregister(key.fileobj)
                    with suppress(ProcessLookupError):
                        os.killpg(key.data, signal.SIGKILL)
                else:
                    os.read(read, 65536)
            self._reap(selector)

    def _reap(self, selector) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                line = self._lines.pop(ended[0])
                with suppress(KeyError):
                    selector.unregister(line)
                with suppress(OSError):
                    line.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
                line.close()

    def _fork(self, line: socket.socket) -> int:
        length = int.from_bytes(line.recv(8, socket.MSG_WAITALL), "big")
        content, rights, *_ = line.recvmsg(1, socket.CMSG_LEN(256 * 4))
        files = array.array("i", b"".join(given for *_, given in rights))
        while len(content) < length:
            content += line.recv(length - len(content))
        if pid := os.fork():
            for each in files:
                os.close(each)
            return pid
        os.setsid()
        signal.set_wakeup_fd(-1)
        raise _Child(json.loads(content), list(files))


if __name__ == "__main__":
    list_libraries() if sys.argv[1] == "--list" else main()
