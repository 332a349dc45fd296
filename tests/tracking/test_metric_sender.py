"""Points are sent by a thread of their own, in order, once."""

import os
import signal
import socket
import subprocess
import sys
import time

from account_tax.provenance.code import PACKAGE
from account_tax.tracking.metric_journal import count_unsent
from account_tax.tracking.metric_sender import Sender
from tests.tracking.test_metric_journal import stored


def test_the_sender_stores_what_is_added_and_ends(journal, file, client, store, run_id):
    sender = Sender(journal, run_id, store)
    sender.start()
    for step in range(5):
        journal.add({"train/loss": step}, step)
    assert sender.end(20)
    assert [step for step, _, _ in stored(client, run_id, "train/loss")] == list(range(5))


def test_a_store_that_is_away_costs_the_training_nothing(journal, file, run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:  # bound, so that nobody else takes it, and not listening
        taken.bind(("127.0.0.1", 0))
        sender = Sender(journal, run_id, f"http://127.0.0.1:{taken.getsockname()[1]}")
        sender.start()
        began = time.monotonic()
        for step in range(1000):
            journal.add({"train/loss": 0.5}, step)
        assert time.monotonic() - began < 2
        assert not sender.end(1)
    assert count_unsent(file) == 1000


ATTEMPT = """
import os, signal, sys
from pathlib import Path
from account_tax.tracking.metric_sender import close_metrics, log_metrics, open_metrics

folder, first, last, how = sys.argv[1:]
open_metrics(Path(folder))
for step in range(int(first), int(last) + 1):
    log_metrics({"train/loss": 1 / step, "cpu/rss_mb": os.getpid()}, step)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
close_metrics()
"""


def test_what_a_killed_attempt_kept_is_sent_by_the_next_and_nothing_twice(
    tmp_path, file, client, store, run_id
):
    source = str(PACKAGE.parent)
    here = os.environ | {"MLFLOW_RUN_ID": run_id, "PYTHONPATH": source}
    nowhere = here | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    there = here | {"MLFLOW_TRACKING_URI": store}
    script = [sys.executable, "-c", ATTEMPT, str(tmp_path)]
    first = subprocess.run([*script, "1", "30", "killed"], env=nowhere, check=False)
    assert first.returncode == -signal.SIGKILL
    with file.open("ab") as opened:
        opened.write(b'{"key": "train/loss", "val')  # as a write that was cut short
    subprocess.run([*script, "21", "40", "well"], env=there, check=True)
    losses = [(step, value) for step, value, _ in stored(client, run_id, "train/loss")]
    assert losses == [(step, 1 / step) for step in range(1, 41)]
    memory = [step for step, _, _ in stored(client, run_id, "cpu/rss_mb")]
    assert memory == list(range(1, 41))
