"""The way of a run, from the command a user types to the version another process loads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion

from account_tax.launch.launcher import _prepare_anew
from account_tax.launch.stages import Stages, stage_environment
from account_tax.model.classifier import has_bf16
from account_tax.processes.ranks import free_port
from account_tax.provenance.environment import LOCKED, environment_tags, find_unlocked, read_lock
from account_tax.registry.record import read_record
from account_tax.storage.names import DATASET_METADATA_FILE, PREPARED_FOLDER, RECORD_FILE
from tests.test_docs import blocks

from .conftest import ACCOUNTS, MARKER, Finished, Project, all_runs, environment, kedro_words
from .servers import Server

pytestmark = pytest.mark.integration

STEPS = [1, 2, 3, 4]
EACH_STEP = {
    *("train/loss", "train/learning_rate", "train/grad_norm", "speed/tokens_per_sec"),
    *("time/forward_ms", "time/backward_ms", "time/step_ms"),
}
CORES = len(os.sched_getaffinity(0))
SCORES = ("loss", "accuracy", "f1", "precision", "recall")
EVALUATED = {f"eval/{name}" for name in SCORES}
TESTED = {f"test/{name}" for name in SCORES}
TRAINED = EACH_STEP | EVALUATED | {"train/epoch", "train/global_step", "cpu/rss_mb"}
WITH_TIMES = "train.deepspeed.wall_clock_breakdown=true"
ADAPTER_FILE = "adapter_model.safetensors"
PREDICT = """
import json, sys
import mlflow, pandas
frame = pandas.DataFrame({"text": ["taxi hotel rent", "coffee lunch"]})
answer = mlflow.pyfunc.load_model("models:/account-tax@challenger").predict(frame)
print(json.dumps([answer.to_dict("list"), "account_tax" in sys.modules]))
"""


@dataclass(frozen=True)
class Outcome:
    """What a launched run left in its store."""

    finished: Finished
    client: MlflowClient
    run: Run

    def points(self, key: str) -> list[Metric]:
        return self.client.get_metric_history(self.run.info.run_id, key)

    def steps(self, key: str) -> list[int]:
        return [point.step for point in self.points(key)]

    def version(self) -> ModelVersion:
        return self.client.get_model_version_by_alias("account-tax", "challenger")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def assert_trained(client: MlflowClient, run: Run, steps: list[int] = STEPS) -> None:
    """Every training metric is there, and each step has one point: rank 0's."""
    assert run.info.status == "FINISHED"
    assert run.data.metrics.keys() >= TRAINED
    for key in EACH_STEP:
        history = client.get_metric_history(run.info.run_id, key)
        assert [point.step for point in history] == steps, key


# --- the main job, once ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def main_project(new_project) -> Project:
    return new_project()


@pytest.fixture(scope="module")
def main_job(main_project, tiny) -> Outcome:
    """The first run in a fresh copy: everything below looks at it or comes after it."""
    finished = main_project.mlflow_run("lora_r=8", WITH_TIMES, *tiny)
    assert finished.returncode == 0, finished.output
    runs = main_project.runs()
    assert len(runs) == 1, [run.info for run in runs]
    return Outcome(finished, main_project.client(), runs[0])


@pytest.fixture(scope="module")
def registered(main_job, tmp_path_factory) -> Path:
    """The files of version 1, as the registry hands them out."""
    return fetch_version(main_job, tmp_path_factory.mktemp("registered"))


def fetch_version(outcome: Outcome, folder: Path) -> Path:
    model_id = outcome.version().source.removeprefix("models:/")
    location = outcome.client.get_logged_model(model_id).artifact_location
    store = outcome.client.tracking_uri
    return Path(download_artifacts(location, dst_path=str(folder), tracking_uri=store))


def test_the_notebook_pages_code_runs(main_project, main_job):
    page = (main_project.folder / "docs/notebook.md").read_text()
    lines = "\n".join(blocks(page, "python"))
    done = main_project.run(sys.executable, "-c", f"{lines}\nprint('labels', *classifier.labels)")
    assert done.returncode == 0, done.output
    assert f"labels {' '.join(sorted(ACCOUNTS))}" in done.output


def test_data_that_another_run_published_meanwhile_is_taken(main_project, main_job):
    root = main_project.folder / "data/06_models" / main_job.run.info.run_id
    (version,) = (main_project.folder / PREPARED_FOLDER / DATASET_METADATA_FILE).iterdir()
    key = json.loads((version / DATASET_METADATA_FILE).read_text())["inputs_sha256"]
    stages = Stages(main_project.folder, root, stage_environment(main_project.folder))
    assert _prepare_anew(stages, main_project.folder / PREPARED_FOLDER, key) == version.name
    assert "prepare: skipped" in (root / "logs/prepare.log").read_text()


def test_params_hold_the_resolved_values(main_job):
    params = main_job.run.data.params
    expected = {
        "train.lora.r": "8",
        "train.training.learning_rate": "0.002",  # recipes/starter.yml
        "train.training.weight_decay": "0.01",  # training.yml
        "train.training.max_steps": "4",
        "data.max_length": "64",
        "launch.world_size": "2",
        "launch.steps": "4",
    }
    assert {key: params.get(key) for key in expected} == expected
    assert not {key for key in params if key.startswith("registry.gates") or "root" in key}


def test_pages_say_what_was_trained_on_what(main_job):
    run, model = main_job.run, main_job.version().source.removeprefix("models:/")
    assert run.info.run_name == "train starter r8"
    kept = {name: run.data.tags[f"account_tax.{name}"] for name in ("kind", "recipe", "pooling")}
    assert kept == {"kind": "train", "recipe": "starter", "pooling": "mean"}
    read = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert read.keys() == {"train", "validation", "test"}
    assert json.loads(read["test"].profile)["num_rows"] > 0
    record = read_record(main_job.client, main_job.version())
    assert str(record.digest("data/test")).startswith(read["test"].digest)
    logged = main_job.client.get_logged_model(model)
    assert logged.name == f"starter-{main_job.version().tags['content_sha256'][:8]}"
    assert logged.params["train.lora.r"] == "8"
    of = {(each.dataset_name, each.dataset_digest) for each in logged.metrics}
    assert of == {(read["test"].name, read["test"].digest)}
    assert main_job.client.get_registered_model(main_job.version().name).description


def test_run_names_the_commit_it_came_from(main_job, main_project):
    tags = main_job.run.data.tags
    commit = main_project.run("git", "rev-parse", "HEAD").output.strip()
    assert tags["account_tax.commit"] == commit
    assert tags["account_tax.dirty"] == "false"  # what a run makes, git ignores
    assert tags["account_tax.recipe"] == "starter"


def test_run_and_version_know_their_environment(main_job, main_project):
    lock = sha256(main_project.folder / "conda.yaml")
    differences = find_unlocked(read_lock(main_project.folder))
    run_id = main_job.run.info.run_id
    record = json.loads(Path(main_job.client.download_artifacts(run_id, RECORD_FILE)).read_text())
    assert record["lock_sha256"] == lock
    assert record["differences"] == differences
    assert record["packages"]["torch"] == metadata.version("torch")
    expected = environment_tags(record)
    assert (expected["environment"] == LOCKED) is (not differences)
    assert main_job.version().tags["environment"] == expected["environment"]
    tags = main_job.run.data.tags
    assert {name: tags.get(f"account_tax.{name}") for name in expected} == expected


def test_metrics_have_the_specifications_names(main_job):
    assert main_job.run.data.metrics.keys() >= TRAINED | TESTED


def test_two_ranks_leave_one_point_a_step(main_job):
    assert_trained(main_job.client, main_job.run)
    for key in EVALUATED:  # where the epoch ended; the best model at the end is that one
        assert main_job.steps(key) == [STEPS[-1]], key
    for key in TESTED:
        assert len(main_job.points(key)) == 1, key


def test_version_1_is_the_challenger(main_job):
    version = main_job.version()
    assert (int(version.version), version.status) == (1, "READY")
    assert version.run_id == main_job.run.info.run_id
    assert version.tags["verified"] == "true"
    for key in ("test/accuracy", "test/f1"):
        assert version.tags[key] == f"{main_job.run.data.metrics[key]:.4f}"
    record = read_record(main_job.client, version)
    for key in EVALUATED | TESTED:
        assert record.metrics[key] == pytest.approx(main_job.run.data.metrics[key]), key
    inside = record.statement["predicate"]["buildDefinition"]["internalParameters"]
    assert inside["configurationSha256"] == record.tags["config_sha256"]
    for part in ("## Data", "## Base and parameters", "## Limits", "240 rows read"):
        assert part in version.description


def test_registered_files_are_the_manifests_and_no_base(main_job, registered, tiny_base):
    folder = registered / "artifacts" / "adapter"
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {file.name: sha256(file) for file in folder.iterdir() if file.name != "manifest.json"}
    assert found == {name: entry["sha256"] for name, entry in manifest["files"].items()}
    weights = {file.name: file for file in registered.rglob("*.safetensors")}
    assert weights.keys() == {ADAPTER_FILE, "ngrams.safetensors"}
    assert (
        weights[ADAPTER_FILE].stat().st_size < (tiny_base / "model.safetensors").stat().st_size / 4
    )
    assert sum(file.stat().st_size for file in registered.rglob("*") if file.is_file()) < 5e6


def test_run_has_its_artifacts(main_job):
    client, run_id = main_job.client, main_job.run.info.run_id
    names = {item.path for item in client.list_artifacts(run_id)}
    assert names >= {
        *("plots", "model_card.md", "manifest.json"),
        *("dataset_metadata.json", "training_metrics.json"),
    }
    plots = {Path(item.path).stem for item in client.list_artifacts(run_id, "plots")}
    assert plots == {"confusion_matrix", "per_class_f1", "learning_curve"}


def test_another_process_predicts_with_the_challenger(main_job, main_project, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PREDICT],
        cwd=tmp_path,
        env=environment({"MLFLOW_TRACKING_URI": main_project.store}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, knows_the_project = json.loads(done.stdout.splitlines()[-1])
    assert not knows_the_project
    assert set(answer) == {"label", "score"}
    assert set(answer["label"]) <= {"meals", "office", "travel"}
    assert all(1 / 3 <= score <= 1 for score in answer["score"])  # the best of three


def test_ledger_text_is_only_in_the_ledger(main_job, main_project):
    """As bytes: the database has tags, params and descriptions, the folders files and their names.

    The tokenized data counts as well: the marker is no word of the base's vocabulary.
    """
    marker = MARKER.lower().encode()
    assert marker not in main_job.finished.output.lower().encode()
    places = [main_project.folder / name for name in ("mlflow.db", "mlruns", "data")]
    made = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    names = {file.name for file in made}
    assert {"mlflow.db", "register.log", "prepare.log", "MLmodel", "model_card.md"} <= names
    leaks = [file for file in made if marker in str(file).lower().encode() + lowered(file)]
    assert leaks == []


def lowered(file: Path) -> bytes:
    return b"\n" + file.read_bytes().lower()


# --- the same job again ---------------------------------------------------------------------------


def test_second_run_repeats_adapter_and_version_without_a_compiler(
    main_job, main_project, tiny, tmp_path
):
    built, buffers = tmp_path / "operators", set(Path("/dev/shm").glob("deepspeed*"))
    env = {"CXX": "no-such-compiler", "TORCH_EXTENSIONS_DIR": str(built)}
    finished = main_project.mlflow_run("lora_r=8", WITH_TIMES, *tiny, env=env)
    assert finished.returncode == 0, finished.output
    assert not built.exists()
    assert set(Path("/dev/shm").glob("deepspeed*")) <= buffers
    assert "prepare: skipped" in finished.output
    assert "account-tax version 1 (challenger)" in finished.output
    first, second = (
        main_project.folder / "data" / "06_models" / run.info.run_id / "adapter" / ADAPTER_FILE
        for run in main_project.runs()
    )
    assert sha256(first) == sha256(second)
    assert len(main_job.client.search_model_versions()) == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a real tracking server with its own files."""
    started = Server(tmp_path_factory.mktemp("server"), workers=1)
    yield started.address
    started.kill()


def test_tracking_server_gets_the_same_result(main_job, main_project, tiny, server):
    local_runs = len(main_project.runs())
    finished = main_project.mlflow_run(
        "lora_r=8", WITH_TIMES, *tiny, env={"MLFLOW_TRACKING_URI": server}
    )
    assert finished.returncode == 0, finished.output
    client = MlflowClient(server)
    (run,) = all_runs(client)
    outcome = Outcome(finished, client, run)
    assert_trained(client, run)
    assert outcome.version().tags["content_sha256"] == main_job.version().tags["content_sha256"]
    for key in TESTED:
        assert run.data.metrics[key] == main_job.run.data.metrics[key], key
    assert len(main_project.runs()) == local_runs


@pytest.mark.parametrize(("register", "tested"), [("evaluate", TESTED), ("false", set())])
def test_what_is_not_registered(main_job, main_project, tiny, register, tested):
    before = len(main_job.client.search_model_versions())
    options = [option for option in tiny if not option.startswith("num_gpus")]
    words = kedro_words([*options, "num_gpus=1", f"register={register}"])
    finished = main_project.kedro_train(*words)
    assert finished.returncode == 0, finished.output
    run = main_project.runs()[0]
    assert (run.info.status, run.data.params["launch.world_size"]) == ("FINISHED", "1")
    assert {name for name in run.data.metrics if name.startswith("test/")} >= set(tested)
    assert bool(tested) == any(name.startswith("test/") for name in run.data.metrics)
    assert bool(tested) == (
        f"test split: accuracy {run.data.metrics.get('test/accuracy', 0):.4f}" in finished.output
    )
    assert "eval/f1" in run.data.metrics
    assert len(main_job.client.search_model_versions()) == before


# --- looking before ------------------------------------------------------------------------------


def test_dry_run_shows_the_plan_and_leaves_nothing(project, tiny):
    given = [
        "lora_r=4",
        "grad_accum=3",
        "precision=bf16",
        *(word for word in tiny if "grad_accum" not in word),
    ]
    finished = project.kedro_train("--dry-run=full", *kedro_words(given))
    assert finished.returncode == 0, finished.output
    lines = [" ".join(line.split()) for line in finished.output.splitlines()]
    for line in (
        "train.lora.r = 4 (--lora_r)",
        "train.training.learning_rate = 0.002 (recipes/starter.yml)",
        "train.training.weight_decay = 0.01 (training.yml)",
        "ledger ledger.csv: csv, utf-8, comma, header in row 1",
        "rows read ",
        "world size 2 (CPU)",
        "global batch 48",  # 8 rows x 3 accumulated x 2 ranks
        "optimizer steps 4",
        # LoRA r 4 on two of four 32 x 32 projections in two layers; the head: 32 x 3 + 3
        f"trainable parameters {2 * 2 * 4 * (32 + 32) + 99:,} of",
    ):
        assert any(shown.startswith(line) for shown in lines), line
    slow = any(line.startswith("precision bf16, which is slower than fp32") for line in lines)
    assert slow is not has_bf16("cpu")
    assert not (project.folder / "data").exists()
    assert not (project.folder / "mlflow.db").exists()

    finished = project.mlflow_run("dry_run=true", *given)
    assert finished.returncode == 0, finished.output
    assert "(-P lora_r)" in finished.output
    assert [run.info.status for run in project.runs()] == ["FINISHED"]
    assert not (project.folder / "data").exists()


@pytest.mark.parametrize(
    ("given", "ranks", "rows"),
    [
        (["num_gpus=auto"], min(2, CORES), 32),  # the recipe's rows, 16 for each of two cores
        (["micro_batch_size=8", "grad_accum=2", "num_gpus=3"], 3, 48),
    ],
)
def test_cores_share_the_rows_of_a_step(project, tiny, given, ranks, rows):
    where = [word for word in tiny if word.startswith(("data=", "model="))]
    words = ["env", "-u", "OMP_NUM_THREADS", "kedro", "train", "--dry-run"]
    finished = project.run(*words, *kedro_words([*where, *given, "lora_target_modules=query"]))
    lines = [" ".join(line.split()) for line in finished.output.splitlines()]
    assert finished.returncode == 0, finished.output
    assert f"world size {ranks} (CPU)" in lines
    assert any(line.startswith(f"global batch {rows} (rows ") for line in lines)


# --- by hand --------------------------------------------------------------------------------------


def test_pipelines_run_by_hand(project, tiny):
    values = dict(option.split("=", 1) for option in tiny)
    params = ",".join(
        [
            f"data.source={values['data']}",
            f"train.model.name={values['model']}",
            "train.model.sha256=null",  # the starter's pin is of another base
            f"train.training.max_steps={values['max_steps']}",
            "train.training.logging_steps=1",
            f"train.deepspeed.train_micro_batch_size_per_gpu={values['micro_batch_size']}",
            WITH_TIMES,
        ]
    )
    prepare = ("kedro", "run", "--pipeline=prepare", "--params", params)
    train = ("kedro", "run", "--pipeline=train", "--params", params)
    first, second = project.run(*prepare), project.run(*prepare)
    assert (first.returncode, second.returncode) == (0, 0), first.output + second.output
    assert "prepare: skipped" not in first.output
    assert "prepare: skipped" in second.output

    alone = project.run(*train)
    assert alone.returncode == 0, alone.output
    (run,) = project.runs()
    assert_trained(project.client(), run)

    ranks = ("deepspeed", "--num_gpus=2", f"--master_port={free_port()}", "--module")
    together = project.run(*ranks, "--no_local_rank", *train)
    assert together.returncode == 0, together.output
    newest, _ = project.runs()
    assert_trained(project.client(), newest)
    metrics = json.loads((project.folder / "data/06_models/training_metrics.json").read_text())
    assert metrics["eval/loss"] == pytest.approx(newest.data.metrics["eval/loss"])
