"""Decisions in real processes against real servers: at once, interrupted, and not permitted."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from account_tax.errors import Failed, Refused
from account_tax.registry.registry_state import settle, verify_history
from account_tax.review.allowed import NOTHING_CHANGED, Proposal
from account_tax.review.decision import decide
from tests.registered import NOW, PASSED, read_history, register, state_of

from .servers import LOOPBACK, STARTED_IN, Server

pytestmark = pytest.mark.integration

ROUNDS = 4  # of each kind of store


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.kill()


@pytest.fixture(scope="module")
def models() -> Iterator[str]:
    return (f"model-{number}" for number in itertools.count(1))


def approve(client: MlflowClient, model: str, version: int, reviewer="kim", seen=None):
    proposal = Proposal("approve", reviewer, "looked at it", NOW, "a" * 32, gates=[PASSED])
    return decide(client, model, proposal, version, seen)


def picture(client: MlflowClient, model: str):
    """Return which version is champion, which was, and the states."""
    versions = client.search_model_versions(f"name = '{model}'", order_by=["version_number ASC"])
    aliases = client.get_registered_model(model).aliases  # text over REST, numbers from SQLite
    return {each: str(number) for each, number in aliases.items()}, list(map(state_of, versions))


# --- at once --------------------------------------------------------------------------------------


def approve_rounds(store, folder, reviewer, versions, barrier, answers) -> None:
    """Approve a version in each round at the moment the other process does; a process' target."""
    os.chdir(folder)
    client = MlflowClient(store)
    for number, version in enumerate(versions):
        barrier.wait(STARTED_IN)
        try:
            answers.put((number, reviewer, "won", insist(client, number, version, reviewer)))
        except Refused as err:
            answers.put((number, reviewer, "refused", str(err)))
        except BaseException as err:
            answers.put((number, reviewer, "broke", repr(err)))


def insist(client, number, version, reviewer) -> str:
    """Return the digest of an approval; decide again where that is what the answer asks for.

    SQLite refuses one of two writers that both have read: "database is locked".
    """
    for _ in range(3):
        try:
            return approve(client, f"round-{number}", version, reviewer, seen=0).entry.sha256
        except Failed as err:
            if f"{NOTHING_CHANGED} Decide again" not in str(err):
                raise
    raise AssertionError("asked three times to decide again")


@pytest.mark.parametrize("kind", ["server", "sqlite"])
def test_of_two_approvals_at_once_exactly_one_wins(kind, server, tmp_path, monkeypatch):
    # Even rounds: the same version. Odd rounds: two versions.
    monkeypatch.chdir(tmp_path)
    store = server.address if kind == "server" else f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(store)
    for number in range(ROUNDS):
        register(client, f"round-{number}", 2)
    answers = run_both(store, tmp_path)
    for number in range(ROUNDS):
        check_round(client, f"round-{number}", {a[1]: a[2:] for a in answers if a[0] == number})
    said = [answer[3] for answer in answers if answer[2] == "refused"]
    at_once = sum("recorded at the same time" in each for each in said)
    print(f"{kind}: {at_once} of {ROUNDS} rounds met in the same entry")  # noqa: T201
    assert at_once, "no two processes ever met: the test has tested nothing"


def run_both(store, folder):
    """Return what each process answered in each round."""
    context = multiprocessing.get_context("forkserver")  # which imports once for all of them
    context.set_forkserver_preload([__name__])
    barrier, answers = context.Barrier(2), context.Queue()
    versions = {"kim": [1] * ROUNDS, "park": [1 + number % 2 for number in range(ROUNDS)]}
    processes = [
        context.Process(
            target=approve_rounds, args=(store, folder, who, each, barrier, answers), daemon=True
        )
        for who, each in versions.items()
    ]
    for process in processes:
        process.start()
    collected = [answers.get(timeout=STARTED_IN) for _ in range(2 * ROUNDS)]
    for process in processes:
        process.join(STARTED_IN)
    return collected


def check_round(client, model, answers):
    """Check that one has won whole, and that the other is told and left nothing."""
    assert sorted(outcome for outcome, _ in answers.values()) == ["refused", "won"], answers
    (winner,) = [who for who, (outcome, _) in answers.items() if outcome == "won"]
    (loser,) = set(answers) - {winner}
    assert "Nothing was changed." in answers[loser][1]
    (entry,) = read_history(client, model)
    assert (entry.reviewer, entry.sha256) == (winner, answers[winner][1])
    states = ["approved" if n == entry.version else "pending" for n in (1, 2)]
    assert picture(client, model) == ({"champion": str(entry.version)}, states)
    assert verify_history(client, model) == []
    run_id = client.get_registered_model(model).tags["review_history"]
    assert len(client.list_artifacts(run_id, "entries")) == 1
    holding = [e for e in client.search_experiments() if f"history of {model}," in e.name]
    assert len(holding) == 1


# --- a server that is killed ----------------------------------------------------------------------


class Killing(MlflowClient):
    """A client whose server is killed just before, or just after, a call of a given name."""

    def __init__(self, server: Server, name: str, after: bool):
        super().__init__(server.address)
        method = getattr(self, name)

        def call(*given, **how):
            if after:
                method(*given, **how)
            server.kill()
            return method(*given, **how)

        setattr(self, name, call)


@pytest.mark.parametrize(
    ("call", "after", "said", "stands"),
    [
        ("log_text", False, "Nothing was changed. Decide again when it answers.", False),
        pytest.param(
            *("log_param", False, "it is not known whether the decision stands", False),
            marks=pytest.mark.slow,
        ),
        ("log_param", True, "it is not known whether the decision stands", True),
        pytest.param(
            *("set_registered_model_alias", False, "stands: it is entry 2 of the history", True),
            marks=pytest.mark.slow,
        ),
        ("set_registered_model_alias", True, "stands: it is entry 2 of the history", True),
    ],
)
def test_a_killed_server_leaves_all_or_nothing(server, models, call, after, said, stands):
    client, model = MlflowClient(server.address), next(models)
    register(client, model, 2)
    approve(client, model, 1)
    began = time.monotonic()
    with pytest.raises(Failed) as failure:
        approve(Killing(server, call, after), model, 2)
    assert time.monotonic() - began < 60  # seconds: a person waits
    assert said in str(failure.value)
    server.start()
    settle(client, model)
    whole = ({"champion": "2", "previous_champion": "1"}, ["approved", "approved"])
    nothing = ({"champion": "1"}, ["approved", "pending"])
    assert picture(client, model) == (whole if stands else nothing)
    assert len(read_history(client, model)) == (2 if stands else 1)
    assert verify_history(client, model) == []
    if not stands:
        approve(client, model, 2)
    assert picture(client, model) == whole


# --- not permitted --------------------------------------------------------------------------------


@contextmanager
def gateway(target: str, denies) -> Iterator[str]:
    """Pass requests on to a server, but answer 403 to those that `denies` names."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = 403, b"Permission denied"
            if not denies(self.command, self.path):
                status, text = self._pass_on(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _pass_on(self, body: bytes) -> tuple[int, bytes]:
            kept = {key: self.headers[key] for key in ("Content-Type",) if key in self.headers}
            url = f"{target}{self.path}"
            request = urllib.request.Request(url, body or None, kept, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as err:
                return err.code, err.read()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{listening.server_port}"
        listening.shutdown()


DENIED = {
    "everything but reading": lambda method, path: (
        method != "GET" and "search" not in path and "alias" not in path
    ),
    "tags of versions": lambda _, path: "model-versions/set-tag" in path,
    "files": lambda method, path: method == "PUT" and "mlflow-artifacts" in path,
    "the entry": lambda _, path: "runs/log-parameter" in path,
    "deleting an alias": lambda method, path: method == "DELETE" and "alias" in path,
}


@pytest.mark.parametrize("what", DENIED)
def test_without_permission_nothing_moves(server, models, what):
    client, model = MlflowClient(server.address), next(models)
    register(client, model, 2)
    approve(client, model, 1)
    before = picture(client, model)
    # MLflow (3.17) keeps where a run's files go by the run's id alone, so past the gateway.
    _artifact_repos_cache.clear()
    proposal = Proposal("retire", "kim", "it is old", NOW, "a" * 32)
    with (
        gateway(server.address, DENIED[what]) as address,
        pytest.raises(Refused, match=r"no permission to decide about .* Nothing was changed"),
    ):
        decide(MlflowClient(address), model, proposal, 1)
    assert picture(client, model) == before
    assert len(read_history(client, model)) == 1
    assert verify_history(client, model) == []


def test_mlflows_own_permissions_are_told(tmp_path, monkeypatch):
    pytest.importorskip("flask_wtf", reason="mlflow server --app-name basic-auth needs Flask-WTF")
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    server = Server(
        tmp_path, "--app-name", "basic-auth",
        MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"),
        MLFLOW_AUTH_ADMIN_PASSWORD="a password of the test",
        MLFLOW_FLASK_SERVER_SECRET_KEY="a key of the test",
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
    )  # fmt: skip
    try:
        _check_permissions(server.address, monkeypatch)
    finally:
        server.kill()


def _check_permissions(address, monkeypatch):
    from mlflow.server import get_app_client

    def login(user, password):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    login("admin", "a password of the test")
    client = MlflowClient(address)
    register(client, "model", 2)
    approve(client, "model", 1)
    users = get_app_client("basic-auth", tracking_uri=address)
    for user in ("reader", "editor"):
        users.create_user(user, "a password of theirs")
    users.create_registered_model_permission("model", "editor", "EDIT")
    denied = pytest.raises(Refused, match=r"no permission to decide about .* Nothing was changed")
    for user in ("reader", "editor"):  # an editor of the model may not write to its history
        login(user, "a password of theirs")
        with denied:
            approve(client, "model", 2)
    login("admin", "a password of the test")
    run_id = client.get_registered_model("model").tags["review_history"]
    experiment = client.get_run(run_id).info.experiment_id
    users.create_experiment_permission(experiment, "editor", "EDIT")
    assert picture(client, "model") == ({"champion": "1"}, ["approved", "pending"])
    login("editor", "a password of theirs")
    approve(client, "model", 2)
    assert picture(client, "model")[0] == {"champion": "2", "previous_champion": "1"}
    assert verify_history(client, "model") == []
