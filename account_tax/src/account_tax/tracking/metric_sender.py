"""Sends a run's metric points from their journal while the ranks train."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from mlflow import MlflowClient

from account_tax.processes.ranks import get_mlflow_env, is_rank0

from .metric_journal import MAX_BATCH, MetricJournal, count_unsent, journal_file, log, send_batch
from .store import mlflow_defaults

EVERY_SECONDS = 1.0  # between two requests: points are gathered meanwhile
LONGEST_PAUSE_SECONDS = 10.0  # between two tries while the store does not answer
END_SECONDS = 10.0  # a rank waits so long for its last points; then the file has them
# The sender tries again by itself; MLflow's own pauses grow to minutes.
ONE_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


class Sender(threading.Thread):
    """Sends what the journal has, for as long as the process lives; training never waits for it."""

    def __init__(self, journal: MetricJournal, run_id: str, tracking_uri: str | None):
        super().__init__(name="metrics", daemon=True)
        self._journal, self._run_id, self._uri = journal, run_id, tracking_uri
        self._ending = threading.Event()

    def run(self) -> None:
        """Send, wait, send; after a failure the pauses double."""
        client: MlflowClient | None = None
        pause, away = EVERY_SECONDS, False
        while True:
            last = self._ending.is_set()  # asked before the file is read: nothing comes after it
            try:
                self._journal.sync()
                client = client or MlflowClient(self._uri)
                while send_batch(client, self._run_id, self._journal.file) == MAX_BATCH:
                    pass
                if away:
                    log.warning("the tracking server answers again: every metric point is sent")
                pause, away = EVERY_SECONDS, False
                if last:
                    return
            except Exception as err:  # whatever the store raises: the file keeps the points
                if not away:
                    log.warning("metric points are kept in %s for now: %s", self._journal.file, err)
                pause, away = min(2 * pause, LONGEST_PAUSE_SECONDS), True
            if last:
                time.sleep(EVERY_SECONDS)
            else:
                self._ending.wait(pause)

    def end(self, seconds: float) -> bool:
        """Return whether all was sent within some seconds."""
        self._ending.set()
        self.join(seconds)
        return not self.is_alive()


_open: list[tuple[MetricJournal, Sender, ExitStack]] = []  # at most one


def open_metrics(artifacts_root: Path) -> None:
    """Rank 0 only: begin to keep and send metrics, if there is an MLflow run.

    The active run is not used: it belongs to a thread, and Kedro changes threads.
    """
    run = get_mlflow_env()
    close_metrics()  # of a training before, in the same process
    if not (is_rank0() and run["run_id"]):
        return
    defaults = ExitStack()
    defaults.enter_context(mlflow_defaults(ONE_TRY))
    journal = MetricJournal(journal_file(artifacts_root, run["run_id"]))
    sender = Sender(journal, run["run_id"], run["tracking_uri"])
    sender.start()
    _open.append((journal, sender, defaults))


def log_metrics(metrics: Mapping[str, float], step: int, *, final: bool = False) -> None:
    """Rank 0 only: keep metrics of the MLflow run, where there is one; see `MetricJournal.add`."""
    for journal, _, _ in _open:
        journal.add(metrics, step, final=final)


def close_metrics(seconds: float = END_SECONDS) -> None:
    """Wait some seconds for the last points to be stored; where they are not, say what to do."""
    while _open:
        journal, sender, defaults = _open.pop()
        if sender.end(seconds):
            journal.close()
        else:
            log.warning(
                "%d metric points are not stored yet: the tracking server does not answer. They "
                "are kept in %s, and the register stage sends them.",
                count_unsent(journal.file),
                journal.file,
            )
        defaults.close()
