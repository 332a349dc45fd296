"""What a process must know of its rank and of the MLflow run, read from its environment."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils.async_logging.run_operations import RunOperations

log = logging.getLogger(__name__)

_unconfirmed: list[RunOperations] = []

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


def log_metrics(metrics: Mapping[str, float], step: int) -> None:
    """Rank 0 only: send metrics to the MLflow run, where there is one, without waiting for it.

    MLflow's own queue sends them in the background; `flush_metrics` waits for it. The active run
    is not used: it belongs to a thread, and Kedro changes threads.
    """
    run = get_mlflow_env()
    if not (is_rank0() and run["run_id"] and metrics):
        return
    now_ms = int(time.time() * 1000)
    points = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
    sent = MlflowClient(run["tracking_uri"]).log_batch(run["run_id"], points, synchronous=False)
    if sent is not None:
        _unconfirmed.append(sent)


def flush_metrics() -> None:
    """Wait until every metric is stored; say how many batches the server refused."""
    failures: list[Exception] = []
    while _unconfirmed:
        try:
            _unconfirmed.pop(0).wait()
        except Exception as err:  # whatever the store raises: training itself is done and good
            failures.append(err)
    if failures:
        log.error("%d batches of metrics were lost; the last: %s", len(failures), failures[-1])


def join_as_one_rank() -> None:
    """Give a process that no launcher started the rank variables DeepSpeed asks for."""
    if "RANK" in os.environ:
        return
    os.environ.update(_ONE_RANK)
    os.environ.setdefault("MASTER_PORT", str(free_port()))


def free_shared_memory() -> None:
    """Take this rank's buffer of DeepSpeed's CPU collective off /dev/shm; the ranks keep it mapped.

    DeepSpeed 0.19.8 (csrc/cpu/comm/shm.cpp) never does: 66 MiB of memory a rank and run stay taken.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return
    distributed.barrier()  # every rank has opened those of the others
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{os.environ['RANK']}"
    Path("/dev/shm", name).unlink(missing_ok=True)


def end_rank() -> None:
    """End this process at once with status 0, if it is a rank; its work is done and stored.

    torch's libraries now and then abort in their teardown (2.13 for CUDA on a machine without a
    GPU: "terminate called without an active exception"), and a good run would count as failed.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
