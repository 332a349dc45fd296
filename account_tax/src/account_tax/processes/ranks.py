"""What a process must know of its rank and of the MLflow run, read from its environment."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from account_tax.storage.names import LAUNCHER_VARIABLE

# One process on its own: what a launcher would have set.
_ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def is_rank0() -> bool:
    """Return whether this process is the one that logs and writes."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0


def get_mlflow_env() -> dict[str, str | None]:
    """Return where this process is to log: run_id, tracking_uri and experiment_name, or None."""
    return {
        "run_id": os.environ.get("MLFLOW_RUN_ID"),
        "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI"),
        "experiment_name": os.environ.get("MLFLOW_EXPERIMENT_NAME"),
    }


def join_as_one_rank() -> None:
    """Give a process that no launcher started the rank variables DeepSpeed asks for."""
    if "RANK" in os.environ:
        return
    os.environ.update(_ONE_RANK)
    os.environ.setdefault("MASTER_PORT", str(free_port()))


def leave_out_collective() -> None:
    """Keep DeepSpeed from building, and starting, its collective for CPU ranks.

    Nothing calls it but layers that inference splits over ranks (deepspeed 0.19.8, comm/torch.py),
    and it takes a compiler half a minute for each environment, and 66 MiB of /dev/shm a rank.
    """
    import deepspeed.ops

    # It is read for that operator alone. Unless it is set, compilers are called to fill it.
    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore


def find_built(train: Mapping[str, Any], gpus: int) -> list[str]:
    """Return the parameters for which DeepSpeed builds operators when ranks start.

    Args:
        train: The `train` section of training.yml.
        gpus: Those there are; without one nothing is offloaded.
    """
    block = train.get("deepspeed") or {}
    zero = block.get("zero_optimization") or {}
    own_optimizer = block.get("zero_force_ds_cpu_optimizer", True)
    built = {
        "offload_optimizer": ("cpu", "nvme") if own_optimizer else ("nvme",),
        "offload_param": ("nvme",),
    }
    return [
        f"train.deepspeed.zero_optimization.{key}"
        for key, devices in built.items()
        if gpus and (zero.get(key) or {}).get("device") in devices
    ]


def keep_operators_apart() -> None:
    """Have DeepSpeed's operators built in a folder of this torch's own, unless one is set.

    torch (2.13) tells what it has built apart by Python and CUDA alone: after another torch is
    installed it loads the old file, which fails with "undefined symbol", and never builds it anew.
    And it waits for ever for a process that was killed while it built one.
    """
    from torch.utils import cpp_extension

    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    root = cpp_extension.get_default_build_root()
    folder = Path(root, f"{python}_torch{metadata.version('torch')}")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(folder))
    cpp_extension.FileBaton = Baton  # pyright: ignore


class Baton:
    """The lock of a folder in which torch builds an operator; it ends with the process.

    torch's own (2.13, torch/utils/file_baton.py) is a file that is there or not: one that a kill
    has left makes every later training of that user hang.
    """

    def __init__(self, lock_file_path: str):
        """Name the file; it is made, and taken away by who has had the lock."""
        self._path = Path(lock_file_path)
        self._handle = -1

    def try_acquire(self) -> bool:
        """Take the lock, if nobody alive has it; return whether it is taken."""
        self._handle = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        """Wait until who has the lock has built the operator, or has ended."""
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        os.close(self._handle)

    def release(self) -> None:
        """Give the lock back."""
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def end_stage(status: int = 0) -> None:
    """End this process at once, if it is a launcher's; what it had to do or say is done and said.

    Taking its libraries apart takes a second, for which the launcher waits. In a rank torch's now
    and then abort meanwhile (2.13 for CUDA on a machine without a GPU: "terminate called without an
    active exception"), and a good run would count as failed; or they wait there for ever, and a
    rank that has failed would keep the others waiting.

    Args:
        status: Its exit status; with another than 0 only a rank ends here, and the exception being
            handled is shown.
    """
    distributed = sys.modules.get("torch.distributed")
    rank = distributed is not None and distributed.is_initialized()
    if not rank and (status or LAUNCHER_VARIABLE not in os.environ):
        return
    if status:
        with suppress(Exception):  # a full disk
            traceback.print_exc()
    end_process(status)


def end_process(status: int) -> NoReturn:
    """End this process with what is buffered written, and its libraries not taken apart."""
    for say in (logging.shutdown, *(stream.flush for stream in (sys.stdout, sys.stderr) if stream)):
        try:
            say()
        except Exception:  # a full disk, a closed pipe: no reason to stay
            status = status or 1
    os._exit(status)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
