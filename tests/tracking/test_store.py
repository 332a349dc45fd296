"""A store by its URI, whichever folder is the current one; and what can be asked of it."""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from account_tax.errors import Refused
from account_tax.provenance.code import PACKAGE
from account_tax.registry.find import find_version
from account_tax.tracking import store
from account_tax.tracking.store import (
    LOCKED_SECONDS,
    TrackingError,
    absolute_store,
    answers_soon,
    condition,
    experiment_id,
    open_store,
    rewrite_places,
    tracking_uri,
)

MAKES_A_STORE = """
import sys
from account_tax.tracking.store import open_store
print("ready", flush=True)
sys.stdin.readline()
open_store(sys.argv[1])
"""


def start_making(file):
    """Return a process that makes a store at a line on its input."""
    command = [sys.executable, "-c", MAKES_A_STORE, f"sqlite:///{file}"]
    here = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=here, text=True, **pipes)


@pytest.mark.integration
def test_of_two_processes_that_need_a_new_store_one_makes_it(tmp_path):
    file = tmp_path / "runs.db"
    both = [start_making(file) for _ in range(2)]
    assert [each.stdout.readline() for each in both] == ["ready\n"] * 2
    for each in both:
        each.stdin.write("\n")
        each.stdin.flush()
    said = [each.communicate()[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert [each.name for each in tmp_path.iterdir()] == ["runs.db"]
    with closing(sqlite3.connect(file)) as store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
    assert not [name for name in tables if name.startswith("_alembic_tmp")]


@pytest.mark.integration
def test_one_that_is_killed_while_it_makes_a_store_leaves_none(tmp_path):
    file, aside = tmp_path / "runs.db", tmp_path / ".runs.db.making"
    first = start_making(file)
    first.stdin.write("\n")
    first.stdin.flush()
    while not (aside.exists() and any(each.stat().st_size for each in aside.iterdir())):
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.kill()
    first.wait()
    assert aside.exists()
    assert not file.exists()
    second = start_making(file)
    said = second.communicate("\n")[1]
    assert second.returncode == 0, said
    assert [each.name for each in tmp_path.iterdir()] == ["runs.db"]
    assert MlflowClient(f"sqlite:///{file}").get_experiment("0")


def test_a_store_that_was_left_half_made_is_said(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    with closing(sqlite3.connect(tmp_path / "runs.db")) as store, store:
        store.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        store.execute("CREATE TABLE metrics (key TEXT, step BIGINT)")
    with pytest.raises(TrackingError, match=r"can't be made or read .*Remove it if nothing"):
        open_store(uri)


def test_a_relative_sqlite_store_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_store("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in ("sqlite:////srv/mlflow.db", "http://127.0.0.1:5000"):
        assert absolute_store(uri) == uri


def test_a_filter_finds_a_name_with_a_quote_and_none_breaks_out_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("O'Brien", 'the "books"', "plain"):
        client.create_registered_model(name)
        (found,) = client.search_registered_models(condition("name", name))
        assert found.name == name
    with pytest.raises(Refused, match="can't search for a name with such quotes"):
        condition("name", "a' or name LIKE \"%")


# --- a file that can't be the store ---------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A project with a store of its own, in which a run has an artifact."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    client = MlflowClient(tracking_uri(project))
    run_id = client.create_run(client.create_experiment("account-tax")).info.run_id
    client.log_text(run_id, "kept", "note.txt")
    return project


def refusal(project):
    began = time.monotonic()
    with pytest.raises(TrackingError) as refused:
        tracking_uri(project)
    assert time.monotonic() - began < LOCKED_SECONDS + 5
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_locked_store_is_said(own, monkeypatch):
    monkeypatch.setattr(store, "LOCKED_SECONDS", 0.5)
    with closing(sqlite3.connect(own / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked. Another process holds it" in refusal(own)


def test_a_file_that_is_no_database_is_said(own):
    (own / "mlflow.db").write_text("no database at all" * 100)
    assert "file is not a database. Restore it from a backup" in refusal(own)


def test_a_database_that_is_cut_off_is_said(own):
    MlflowClient(tracking_uri(own))
    content = (own / "mlflow.db").read_bytes()
    (own / "mlflow.db").write_bytes(content[: len(content) // 3])
    assert "malformed. Restore it from a backup" in refusal(own)


def test_another_programs_database_is_left_alone(own):
    (own / "mlflow.db").unlink()
    with closing(sqlite3.connect(own / "mlflow.db")) as other, other:
        other.execute("CREATE TABLE runs (distance REAL)")
    before = (own / "mlflow.db").read_bytes()
    assert "a database of another program. Give another file." in refusal(own)
    assert (own / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE alembic_version SET version_num = '75868b020152'",
            "The address is the one named here.",
        ),
        (
            "UPDATE alembic_version SET version_num = 'of 2031'",
            "a newer MLflow than this made it: give",
        ),
        ("DROP TABLE model_versions", "Restore it from a backup, or give another file."),
    ],
)
def test_a_store_of_another_mlflow_or_without_a_table_is_said(own, tmp_path, statement, said):
    MlflowClient(tracking_uri(own))
    other = tmp_path / "other.db"
    shutil.copy(own / "mlflow.db", other)  # MLflow has looked at the first once and for all
    with closing(sqlite3.connect(other)) as database, database:
        database.execute(statement)

    def ask(uri):
        with answers_soon(uri):
            client = open_store(uri)
        find_version(client, "account-tax", "1")

    with pytest.raises(TrackingError, match=re.escape(said)) as refused:
        ask(f"sqlite:///{other}")
    assert "Start the" not in str(refused.value)


def test_a_store_that_can_only_be_read_is_said(own):
    uri = tracking_uri(own)
    MlflowClient(uri)
    read_only = MlflowClient(f"sqlite:///file:{own / 'mlflow.db'}?mode=ro&uri=true")
    said = r"write a readonly database\. Give a file that can be"
    with pytest.raises(TrackingError, match=said), answers_soon(uri):
        read_only.create_run("0")


@pytest.mark.parametrize("place", ["/proc/nowhere/mlflow.db", "{project}/mlruns"])
def test_a_place_that_can_not_be_written_to_is_said_at_once(own, monkeypatch, place):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.format(project=own)}")
    assert "Give a file that can be written to." in refusal(own)


def test_a_deleted_experiment_is_said_with_how_to_restore_it(own):
    client = MlflowClient(tracking_uri(own))
    client.delete_experiment("0")
    with pytest.raises(TrackingError, match=r"deleted\. Restore it \(mlflow experiments restore"):
        experiment_id(client)


def test_a_store_that_was_made_from_elsewhere_is_not_taken_for_moved(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)  # so the first experiment's place is below it
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("account-tax", str(tmp_path / "mlruns"))
    client.log_text(client.create_run(experiment).info.run_id, "kept", "note.txt")
    client.create_run("0")
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_moved_project_is_said_and_its_own_store_rewritten(own, monkeypatch):
    moved = own.rename(own.with_name("moved"))
    monkeypatch.chdir(moved)
    (moved / "somewhere").mkdir()
    assert f"recorded below {own}, where nothing is" in (said := refusal(moved))
    assert f"kedro runs --moved_from {own}" in said
    with pytest.raises(TrackingError, match="was not moved from /elsewhere"):
        rewrite_places(moved / "mlflow.db", "/elsewhere")
    assert rewrite_places(moved / "mlflow.db", str(own)) >= 2
    client = MlflowClient(tracking_uri(moved))
    (run,) = client.search_runs(["1"])
    assert Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text() == "kept"


# --- a server that answers in two pieces ----------------------------------------------------------


class InTwoPieces(BaseHTTPRequestHandler):
    """Sends the head, then the body, over a connection that it keeps."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="a socket option of Linux")
def test_the_head_of_an_answer_is_acknowledged_at_once_in_every_call():
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), InTwoPieces) as server,
        requests.Session() as session,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(4):
            url = f"http://127.0.0.1:{server.server_port}"
            answer = session.get(url, stream=True, timeout=30)  # as MLflow's client asks
            connection = answer.raw.connection.sock
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
            assert answer.content == b"ok"
        server.shutdown()
