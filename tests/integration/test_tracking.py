"""A tracking server that goes away, for real: what a training keeps, and what is there later."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from account_tax.commands import close_dead
from account_tax.tracking.metric_journal import (
    MetricJournal,
    Point,
    count_unsent,
    journal_file,
    read_points,
)
from account_tax.tracking.metric_sender import Sender

from .conftest import Project, all_runs, kedro_words
from .launched import Running
from .servers import Server

pytestmark = pytest.mark.integration

STEPS = 400
SOON = 500.0  # seconds, on a machine that has other things to do
PATIENCE = {"ACCOUNT_TAX_TRACKING_PATIENCE": "3"}


@pytest.fixture(scope="module")
def project(new_project) -> Project:
    return new_project()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"), workers=1)
    yield started
    started.kill()


class Training(Running):
    """`kedro train` in the copy, logging to a server."""

    def __init__(self, project: Project, server: Server, output: Path, words: list[str], **env):
        self.project, self.client = project, MlflowClient(server.address)
        before = {run.info.run_id for run in all_runs(self.client)}
        variables = {"MLFLOW_TRACKING_URI": server.address, **env}
        super().__init__(project.folder, output, "kedro", "train", *words, env=variables)
        self.wait_for(lambda: len(all_runs(self.client)) > len(before))
        (self.run_id,) = {run.info.run_id for run in all_runs(self.client)} - before

    @property
    def folder(self) -> Path:
        return self.project.folder / "data" / "06_models" / self.run_id

    @property
    def run(self) -> Run:
        return self.client.get_run(self.run_id)

    def step(self) -> int:
        """Return the step that rank 0 has last told the launcher."""
        try:
            return json.loads((self.folder / "progress.json").read_text())["step"]
        except FileNotFoundError:
            return 0

    def wait_for(self, condition: Callable[[], object], seconds: float = SOON) -> None:
        super().wait_for(condition, seconds)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.step() >= step)

    def points(self) -> list[Point]:
        return list(read_points(journal_file(self.folder, self.run_id)))


@pytest.fixture
def train(project, server, tiny, tmp_path) -> Iterator[Callable[..., Training]]:
    """Return what starts a training of one rank; one that a test leaves is killed."""
    started: list[Training] = []

    def start(steps: int = STEPS, **env: str) -> Training:
        options = dict(option.split("=", 1) for option in tiny)
        options |= {"max_steps": str(steps), "epochs": "1000", "num_gpus": "1"}
        options |= {"micro_batch_size": "16", "grad_accum": "4"}  # tens of milliseconds a step
        options |= {"train.training.eval_strategy": "steps", "train.training.eval_steps": "100"}
        options |= {"train.training.save_strategy": "steps", "train.training.save_steps": "100"}
        words = kedro_words([f"{key}={value}" for key, value in options.items()])
        output = tmp_path / f"output{len(started)}"
        started.append(Training(project, server, output, words, **env))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def assert_every_point_is_there_once(training: Training, steps: int) -> None:
    """Compare what the server has with the file, and the file with Trainer's own history."""
    points = training.points()
    for key in {point.key for point in points}:
        wanted = [(p.step, p.value, p.timestamp) for p in points if p.key == key]
        history = training.client.get_metric_history(training.run_id, key)
        assert [(p.step, p.value, p.timestamp) for p in history] == wanted, key
        steps_of_key = [step for step, _, _ in wanted]
        if key.startswith("eval/") and len(wanted) > 1 and wanted[-1][:2] != wanted[-2][:2]:
            # The best model's, evaluated after training, where it is not the last one.
            steps_of_key = steps_of_key[: len(set(steps_of_key))]
        assert steps_of_key == sorted(set(steps_of_key)), key
    logged = json.loads((training.folder / "log_history.json").read_text())
    losses = [(entry["step"], entry["loss"]) for entry in logged if "loss" in entry]
    assert [(p.step, p.value) for p in points if p.key == "train/loss"] == losses
    assert [step for step, _ in losses] == list(range(1, steps + 1))


def assert_goes_on(training: Training, seconds: float) -> None:
    """Watch the training for a time: it makes steps all along."""
    before, step = time.monotonic(), training.step()
    while time.monotonic() < before + seconds:
        training.wait_for(lambda at=step: training.step() > at, seconds=60)
        step = training.step()


def test_outages_before_and_after_the_first_step_cost_no_point(train, server):
    training = train()
    training.wait_for(lambda: "train: 1 CPU rank" in training.output)
    server.kill()
    training.wait_for_step(50)
    server.start()
    training.wait_for_step(STEPS // 2)
    server.kill()
    assert_goes_on(training, seconds=5)
    server.start()
    assert training.process.wait(SOON) == 0, training.output
    assert training.run.info.status == "FINISHED"
    assert_every_point_is_there_once(training, STEPS)


@pytest.mark.slow
def test_a_minute_without_the_server_costs_no_point(train, server):
    training = train(3000)
    training.wait_for_step(100)
    server.kill()
    assert_goes_on(training, seconds=60)
    server.start()
    assert training.process.wait(SOON) == 0, training.output
    assert training.run.info.status == "FINISHED"
    assert_every_point_is_there_once(training, 3000)


@contextmanager
def unavailable(address: str) -> Iterator[list[str]]:
    """Answer every request at an address with 503; yield what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(503)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    place = urlsplit(address)
    with ThreadingHTTPServer((str(place.hostname), int(place.port or 0)), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield asked
        listening.shutdown()


def test_no_kind_of_outage_doubles_or_loses_a_point(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # as `open_metrics` sets it
    client = MlflowClient(server.address)
    run_id = client.create_run("0").info.run_id
    journal = MetricJournal(journal_file(tmp_path, run_id))
    sender = Sender(journal, run_id, server.address)
    steps = iter(range(1, 1000))

    def add(seconds: float) -> None:
        for _ in range(40):
            journal.add({"train/loss": 0.5, "train/epoch": 1.0}, next(steps))
            time.sleep(seconds / 40)

    def wait_until_stored() -> None:
        deadline = time.monotonic() + SOON
        while count_unsent(journal.file):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    sender.start()
    add(1)
    wait_until_stored()
    server.pause()  # it accepts, and does not answer
    add(3)
    assert count_unsent(journal.file) > 0
    server.resume()
    wait_until_stored()
    server.kill()  # refused at first, then 503
    add(1)
    with unavailable(server.address) as asked:
        add(3)
        assert any("log-batch" in path for path in asked)
    server.start()
    add(1)
    assert sender.end(SOON)
    for key in ("train/loss", "train/epoch"):
        history = client.get_metric_history(run_id, key)
        assert [point.step for point in history] == list(range(1, 201)), key
    client.set_terminated(run_id)


def kedro_register(project: Project, server: Server, run_id: str):
    return project.run(
        *("kedro", "register", "--run", run_id),
        env={"MLFLOW_TRACKING_URI": server.address},
        timeout=SOON,
    )


def test_a_server_away_at_the_end_loses_no_result_and_register_finishes_the_run(
    train, project, server
):
    training = train(60, **PATIENCE)
    training.wait_for(lambda: training.step() >= 5)
    server.kill()
    assert training.process.wait(SOON) == 1, training.output
    left = count_unsent(journal_file(training.folder, training.run_id))
    assert left > 0
    assert f"and {left} metric points that the server does not have" in training.output
    assert f"kedro register --run {training.run_id}" in training.output
    assert "Traceback" not in training.output
    assert "urllib3" not in training.output
    assert (training.folder / "adapter" / "adapter_model.safetensors").is_file()

    server.start()
    assert training.run.info.status == "RUNNING"
    close_dead(server.address)  # as every command does
    assert training.run.info.status == "FAILED"
    assert "is gone" in training.run.data.tags["account_tax.reason"]

    done = kedro_register(project, server, training.run_id)
    assert done.returncode == 0, done.output
    assert "account-tax version" in done.output
    assert training.run.info.status == "FINISHED"
    assert "account_tax.reason" not in training.run.data.tags
    assert_every_point_is_there_once(training, 60)
    version = training.client.get_model_version_by_alias("account-tax", "challenger")
    assert version.run_id == training.run_id

    again = kedro_register(project, server, training.run_id)
    assert again.returncode == 2, again.output
    assert f"registered and finished already: account-tax version {version.version}" in again.output
    assert training.run.info.status == "FINISHED"


def test_a_run_that_can_not_be_registered_says_why(project, server):
    client = MlflowClient(server.address)
    unknown = kedro_register(project, server, "0" * 32)
    assert unknown.returncode == 2, unknown.output
    assert f"Run with id={'0' * 32} not found" in unknown.output
    untrained = client.create_run("0").info.run_id
    client.set_terminated(untrained, "FAILED")
    refused = kedro_register(project, server, untrained)
    assert refused.returncode == 2, refused.output
    assert "has not trained to its end: there is no train_complete.json in" in refused.output
    assert client.get_run(untrained).info.status == "FAILED"
