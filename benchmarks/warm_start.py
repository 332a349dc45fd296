"""Starts the project's processes by fork from an interpreter that has imported everything.

A run of a few steps on a tiny model is nearly all imports, in six processes. Here each is a real
child of the process that starts it, with environment, folder, streams and session of its own; only
the exec, and with it the imports, are left out.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from account_tax.processes.warm import forget_the_parent

MODULES = (
    *("torch", "transformers", "peft", "datasets", "mlflow", "deepspeed", "kedro_mlflow"),
    *("deepspeed.launcher.launch", "kedro.framework.cli", "account_tax.processes.warm"),
    *("kedro_datasets.huggingface", "transformers.integrations.deepspeed"),
    *("account_tax.cli", "account_tax.pipelines.check", "account_tax.launch.launcher"),
    *("account_tax.pipelines.train.training_core", "account_tax.pipelines.register.nodes"),
    *("account_tax.pipelines.register.pipeline", "account_tax.pipelines.prepare.pipeline"),
)
# Read while modules are imported or threads start, so too late in a fork.
SETTINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **dict.fromkeys(("HF_HUB_OFFLINE", "DO_NOT_TRACK"), "1"),
    **dict.fromkeys(("PYTHONUTF8", "KEDRO_DISABLE_TELEMETRY"), "1"),
    "DS_ACCELERATOR": "cpu",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
}

at_start: list[Callable[[], None]] = []  # called in each started process, before its module


def warm_up() -> None:
    """Import everything, and start Python's processes by fork from now on."""
    os.environ.update(SETTINGS)
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # a fork's first collection would copy every page
    subprocess.Popen = _Popen  # type: ignore[misc]


class _Popen(subprocess.Popen):
    """Popen whose `python -m MODULE` is a fork."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        words = list(args) if isinstance(args, (list, tuple)) else [args]
        if len(words) < 3 or words[0] != sys.executable or "-m" not in words[1:3]:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        cwd, env = rest[4], rest[5]
        ends = {0: rest[9], 1: rest[12], 2: rest[14]}
        pid = os.fork()
        if pid == 0:
            if rest[20]:  # start_new_session
                os.setsid()
            start_here(words[words.index("-m") + 1 :], ends, cwd, env, kept=rest[3])
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]


def start_here(
    words: list[str],
    ends: Mapping[int, int],
    cwd: Any,
    env: Mapping[str, str] | None,
    kept: Sequence[int] = (),
) -> None:
    """Become `python -m MODULE ...` in this fork; does not return."""
    status = 1
    try:
        for target, end in ends.items():
            if end not in (-1, target):
                os.dup2(end, target)
        for number in set(range(3, 1024)) - set(kept):
            with suppress(OSError):
                os.close(number)
        _forget_the_parent(cwd, env)
        for act in at_start:
            act()
        sys.argv = list(words)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as err:
        status = err.code if isinstance(err.code, int) else int(err.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with_exit_functions(status)


def with_exit_functions(status: int) -> None:
    """End this fork as an interpreter ends: its exit functions first."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 255)


def _forget_the_parent(cwd: Any, env: Mapping[str, str] | None) -> None:
    """Undo what a fork keeps and an exec would not, the benchmark's own handlers among it."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(signum) not in (None, signal.SIG_DFL):
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    atexit._clear()
    if cwd is not None:
        os.chdir(cwd)
    forget_the_parent({**(os.environ if env is None else {**env, **SETTINGS})})
    sys.stdin = open(os.devnull)  # noqa: SIM115
