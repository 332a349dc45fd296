"""What a cluster and a workspace are sent by the real `mlflow run`, and what becomes of its answer.

No cluster is here: the clients are real, and so is the HTTP; tests/fake_services.py answers.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace

import pytest
import yaml
from mlflow import MlflowClient

from account_tax.processes.ranks import free_port
from tests.backends.conftest import IMAGE, ROOT
from tests.fake_services import (
    PUSHED,
    databricks_workspace,
    docker_engine,
    files_of,
    kube_config,
    kubernetes_api,
    serving,
)
from tests.image import lay_image

from .conftest import Finished, Project, all_runs, environment
from .servers import Server

pytestmark = pytest.mark.integration

LEDGER = '/data/내 장부 2026\'s $HOME "x".csv'  # every character a shell would take for its own
SECRET = token_hex(16)  # not written here: this file itself is packed and sent
SECRETS = dict.fromkeys(("HF_TOKEN", "MLFLOW_TRACKING_TOKEN"), SECRET)
OPTIONS = ("lora_r=8", f"data={LEDGER}", "train.lora.bias=all")
CLIENTS = ("kubernetes<37", "kubernetes-validate")


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Path:
    """A folder with the clients that the lock has not; the lock's versions of what they need."""
    if not (uv := shutil.which("uv")):
        pytest.skip("uv is not on PATH, so there is no Kubernetes client")
    folder = tmp_path_factory.mktemp("clients")
    command = [uv, "pip", "install", "--no-config", "--python", sys.executable, "--target", folder]
    done = subprocess.run(
        [*command, "--constraint", ROOT / "requirements.lock", *CLIENTS],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"the Kubernetes client can't be had: {done.stderr[-300:]}")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"), workers=1)
    yield started
    started.kill()


@pytest.fixture(scope="module")
def ready(new_project) -> Project:
    """A copy in which the placeholders are filled in and committed."""
    project = new_project()
    folder = project.folder / "backends" / "kubernetes"
    config = json.loads((folder / "config.json").read_text())
    config["repository-uri"] = IMAGE.partition("@")[0]
    (folder / "config.json").write_text(json.dumps(config))
    text = (folder / "mlproject").read_text()
    (folder / "mlproject").write_text(re.sub(r"registry\.example\.com\S+@sha256:0+", IMAGE, text))
    commit = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam")
    assert project.run(*commit, "Fill in").returncode == 0
    return project


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(ready, clients, server, tmp_path_factory):
    """Return a context: an API server whose jobs end so, an engine, and what names them."""
    if not shutil.which("docker"):
        pytest.skip("MLflow's Kubernetes backend starts `docker info`, and there is no docker here")

    def started(ends_as: str):
        api = kubernetes_api(ends_as, "account-tax", ("account-tax-data",))
        return serving(api), serving(docker_engine())

    def named(api, engine) -> dict[str, str]:
        file = tmp_path_factory.mktemp("kube") / "config"
        file.write_text(yaml.safe_dump(kube_config(api, SECRET)))
        return {
            **SECRETS,
            "KUBECONFIG": str(file),
            "DOCKER_HOST": engine.address.replace("http", "tcp"),
            "PYTHONPATH": str(clients),
            "MLFLOW_TRACKING_URI": server.address,
            "KUBE_MLFLOW_TRACKING_URI": "http://mlflow.account-tax.svc:5000",
        }

    return SimpleNamespace(started=started, named=named)


@pytest.fixture(scope="module")
def submit(ready, cluster):
    """Return `mlflow run -b kubernetes` against a cluster in which the job ends so."""

    def run(ends_as: str, *options: str) -> tuple[Finished, SimpleNamespace]:
        api_serving, engine_serving = cluster.started(ends_as)
        with api_serving as api, engine_serving as engine:
            finished = ready.run(
                *("mlflow", "run", ".#backends/kubernetes", "-e", "train", "-b", "kubernetes"),
                *("--backend-config", "backends/kubernetes/config.json", "--build-image"),
                *(word for option in options for word in ("-P", option)),
                env=cluster.named(api, engine),
            )
        return finished, SimpleNamespace(api=api, engine=engine)

    return run


@pytest.fixture(scope="module")
def complete(submit):
    finished, sent = submit("Complete", *OPTIONS)
    assert finished.returncode == 0, finished.output
    (created,) = sent.api.sent("POST", "/apis/batch/v1/namespaces/account-tax/jobs")
    return finished, sent, created.json


def test_the_cluster_is_sent_the_template_with_the_runs_own_values(complete, ready, server):
    sent, job = complete[1], copy.deepcopy(complete[2])
    template = yaml.safe_load((ready.folder / "backends/kubernetes/job.yaml").read_text())
    box = job["spec"]["template"]["spec"]["containers"][0]
    (run,) = [
        each
        for each in all_runs(MlflowClient(server.address))
        if each.info.run_id == {e["name"]: e.get("value") for e in box["env"]}["MLFLOW_RUN_ID"]
    ]
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_r"] == "8"
    added = {each["name"]: each["value"] for each in box["env"] if "value" in each}
    assert added == {
        "MLFLOW_RUN_ID": run.info.run_id,
        "MLFLOW_TRACKING_URI": "http://mlflow.account-tax.svc:5000",
        "MLFLOW_EXPERIMENT_ID": "0",
    }
    commit = run.data.tags["mlflow.source.git.commit"]
    assert box["image"] == f"{IMAGE.partition('@')[0]}:{commit[:7]}@{PUSHED}"
    # What MLflow has not set is the template's.
    box["env"] = box["env"][: -len(added)]
    for name in ("name", "image", "command"):
        del box[name]
    assert re.fullmatch(r"account-tax-[\d-]+", job["metadata"].pop("name"))
    del template["spec"]["template"]["spec"]["containers"][0]["name"]
    assert job == template
    assert sent.api.requests[0].headers["authorization"] == f"Bearer {SECRET}"


def test_the_pod_gets_each_word_as_it_was_typed(complete, ready):
    box = complete[2]["spec"]["template"]["spec"]["containers"][0]
    assert box["command"][:4] == ["sh", "unquote.sh", "kedro", "train"]
    show = [sys.executable, "-c", "'import json, sys; print(json.dumps(sys.argv[1:]))'"]
    done = subprocess.run(
        ["sh", "unquote.sh", *show, *box["command"][4:]],
        cwd=ready.folder / "backends/kubernetes", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [
        *("--lora_r", "8", "--data", LEDGER, "--train.lora.bias", "all")
    ]


def test_the_runs_image_is_the_pinned_one_and_the_backends_files(complete, ready):
    (built,) = complete[1].engine.sent("POST", r".*/build")
    files = files_of(built.body)
    dockerfile = files.pop("Dockerfile.mlflow-autogenerated").decode()
    assert dockerfile.splitlines()[0] == f"FROM {IMAGE}"
    assert set(files) == {path.name for path in (ready.folder / "backends/kubernetes").iterdir()}


def test_no_secret_is_sent_to_the_cluster_or_into_the_image(complete):
    _, sent, _ = complete
    for request in [*sent.api.requests, *sent.engine.requests]:
        assert SECRET.encode() not in request.body
        assert SECRET not in f"{request.path} {request.query}"


def test_a_job_that_fails_fails_the_command_and_the_run(submit, server):
    finished, sent = submit("Failed", "lora_r=8")
    assert finished.returncode == 1
    assert "the fake job is Failed" in finished.output
    (created,) = sent.api.sent("POST", ".*/jobs")
    given = created.json["spec"]["template"]["spec"]["containers"][0]["env"]
    run_id = {each["name"]: each.get("value") for each in given}["MLFLOW_RUN_ID"]
    assert MlflowClient(server.address).get_run(run_id).info.status == "FAILED"


@pytest.fixture
def preflight(ready, cluster):
    """Return `kedro preflight` against a cluster, and what the cluster was asked."""

    def run() -> tuple[Finished, list[dict[str, str]]]:
        api_serving, engine_serving = cluster.started("Complete")
        with api_serving as api, engine_serving as engine:
            finished = ready.run(
                *("kedro", "preflight", "--backend", "kubernetes", "--lora_r", "8"),
                *("--backend-config", "backends/kubernetes/config.json"),
                env=cluster.named(api, engine),
            )
        return finished, [each.query for each in api.sent("POST", ".*")]

    return run


ONLY_ASKED = {"dryRun": "All", "fieldValidation": "Strict"}


def test_preflight_names_what_schema_and_cluster_say_and_starts_nothing(preflight, ready):
    template = ready.folder / "backends/kubernetes/job.yaml"
    kept = template.read_text()
    template.write_text(
        kept.replace("backoffLimit", "backofLimit").replace("account-tax-data", "gone")
    )
    finished, asked = preflight()
    template.write_text(kept)
    assert finished.returncode == 2
    assert "'backofLimit' was unexpected" in finished.output
    assert "claim gone in account-tax: 404" in finished.output
    assert asked == [ONLY_ASKED]


@pytest.mark.slow
def test_preflight_has_nothing_against_what_is_ready(preflight):
    finished, asked = preflight()
    assert finished.returncode == 0, finished.output
    assert "nothing speaks against it" in finished.output
    assert asked == [ONLY_ASKED]


# --- Databricks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def databricks(ready, server):
    """`mlflow run -b databricks` of a repository's URI, and what the workspace was sent."""
    commit = ready.run("git", "rev-parse", "HEAD").output.strip()
    ignored = ready.folder / "data" / "01_raw" / "ledger.csv"
    ignored.parent.mkdir(parents=True)
    ignored.write_text(SECRET)
    with serving(databricks_workspace("SUCCESS", {"account-tax": ["hf-token"]})) as workspace:
        finished = ready.run(
            *("mlflow", "run", f"git+file://{ready.folder}", "-v", commit, "-e", "train"),
            *("-b", "databricks", "--backend-config", "backends/databricks/cluster.json"),
            *("--env-manager", "uv"),
            *(word for option in OPTIONS for word in ("-P", option)),
            env={
                **SECRETS,
                **GIT_FILE,
                "MLFLOW_TRACKING_URI": server.address,
                "DATABRICKS_HOST": workspace.address,
                "DATABRICKS_TOKEN": SECRET,
            },
        )
    assert finished.returncode == 0, finished.output
    (job,) = workspace.sent("POST", "/api/2.0/jobs/runs/submit")
    (archive,) = workspace.sent("POST", "/dbfs/.*")
    return SimpleNamespace(workspace=workspace, job=job, files=files_of(archive.body))


def test_the_workspace_is_sent_the_cluster_and_a_command_with_every_option(databricks, server):
    job = databricks.job.json
    given = json.loads((ROOT / "backends/databricks/cluster.json").read_text())
    assert job["new_cluster"] == given["new_cluster"]
    assert job["libraries"][:-1] == given["libraries"]
    assert re.fullmatch(r"mlflow==3\.17\.\d+", job["libraries"][-1]["pypi"]["package"])
    assert job["shell_command_task"]["env_vars"] == {
        "MLFLOW_TRACKING_URI": server.address,
        "MLFLOW_EXPERIMENT_ID": "0",
    }
    words = shlex.split(job["shell_command_task"]["command"][2].strip().splitlines()[-1])
    assert words[:2] == ["mlflow", "run"]
    assert words[3:7] == ["--entry-point", "train", "--env-manager", "uv"]
    (run_id,) = json.loads(words[8]).values()
    assert [each for word, each in itertools.pairwise(words) if word == "-P"] == [*OPTIONS]
    run = MlflowClient(server.address).get_run(run_id)
    assert run.data.tags["mlflow.databricks.runURL"] == "https://workspace/#job/7"


def test_from_a_repositorys_uri_only_what_git_keeps_is_packed(databricks, ready):
    tracked = ready.run("git", "ls-files", "-z").output.split("\0")
    packed = {name for name in databricks.files if not name.startswith(".git/")}
    assert packed == {*filter(None, tracked)}


def test_no_secret_is_sent_to_the_workspace(databricks):
    assert SECRET.encode() not in databricks.job.body
    assert not any(SECRET.encode() in each for each in databricks.files.values())
    for request in databricks.workspace.requests:
        assert request.headers.get("authorization") in (None, f"Bearer {SECRET}")


# --- a repository's URI ---------------------------------------------------------------------------

# MLflow takes every file:// for a plain folder; git itself can be told what git+file:// means.
GIT_FILE = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "url.file:///.insteadOf",
    "GIT_CONFIG_VALUE_0": "git+file:///",
}


def test_a_commit_of_a_bare_repository_trains_and_its_results_are_the_users(
    project, tiny, tmp_path
):
    bare, user = tmp_path / "bare.git", tmp_path / "user"
    user.mkdir()
    git = ("git", "clone", "-q", "--bare", str(project.folder), str(bare))
    assert project.run(*git).returncode == 0
    commit = project.run("git", "rev-parse", "HEAD").output.strip()
    given = [*tiny, "num_gpus=1", "allow_unlocked=true", f"artifacts_root={user / 'results'}"]
    options = {each.partition("=")[0]: each for each in given}.values()
    finished = Project(user).run(
        *("mlflow", "run", f"git+file://{bare}#", "-v", commit, "-e", "train"),
        *("--env-manager", "local"),
        *(word for option in options for word in ("-P", option)),
        env=GIT_FILE,
        timeout=600,
    )
    assert finished.returncode == 0, finished.output
    # Nothing was set: MLflow's own sqlite:///mlflow.db, in the folder where the user is.
    (run,) = Project(user).runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["account_tax.commit"] == commit
    assert run.data.tags["account_tax.dirty"] == "false"
    assert Path(run.info.artifact_uri).is_relative_to(user)
    assert (user / "results" / run.info.run_id / "train_complete.json").is_file()
    (version,) = Project(user).client().search_model_versions()
    assert version.run_id == run.info.run_id


# --- as the images and the operator start it ------------------------------------------------------


@pytest.mark.slow
def test_the_pods_command_runs_in_what_the_image_holds(complete, tiny, tmp_path):
    box = complete[2]["spec"]["template"]["spec"]["containers"][0]
    folder = lay_image(tmp_path / "code")
    for file in (ROOT / "backends" / "kubernetes").iterdir():
        shutil.copy(file, folder)  # as COPY of the run's own image does
    ledger = tmp_path / Path(LEDGER).name
    shutil.copy(dict(each.split("=", 1) for each in tiny)["data"], ledger)
    command = [
        word.replace(shlex.quote(LEDGER), shlex.quote(str(ledger))) for word in box["command"]
    ]
    more = [f"--{each}" for each in tiny if not each.startswith("data=")]
    done = Project(folder).run(*command, *more, "--dry-run", timeout=600)
    assert done.returncode == 0, done.output
    assert str(ledger) in done.output


@pytest.mark.slow
def test_the_clusters_command_goes_on_in_the_run_of_the_submission(
    databricks, server, tiny, tmp_path
):
    for name, content in databricks.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = databricks.job.json["shell_command_task"]["command"][2]
    words = shlex.split(text.strip().splitlines()[-1])[: -2 * len(OPTIONS)]
    words[2], words[6] = str(tmp_path), "local"  # where it was unpacked; here is no uv of a cluster
    options = [word for each in [*tiny, "dry_run=true"] for word in ("-P", each)]
    env = {"MLFLOW_TRACKING_URI": server.address}
    done = Project(tmp_path).run(*words, *options, env=env, timeout=600)
    assert done.returncode == 0, done.output
    (run_id,) = json.loads(words[8]).values()
    assert MlflowClient(server.address).get_run(run_id).info.status == "FINISHED"
    assert "dry run: nothing was started" in done.output


@pytest.mark.slow
def test_two_pods_of_the_pytorchjob_train_as_two_ranks(tiny, tmp_path):
    job = yaml.safe_load((ROOT / "backends/kubernetes/pytorchjob.yaml").read_text())
    (tmp_path / "results").mkdir()
    given = dict(each.split("=", 1) for each in tiny)
    parameters = {
        "recipe": "starter",
        "data.source": given["data"],
        "train.model.name": given["model"],
        "train.training.max_steps": "4",
        "train.deepspeed.train_micro_batch_size_per_gpu": "8",
    }
    port, pods = free_port(), []
    for rank, replica in enumerate(job["spec"]["pytorchReplicaSpecs"].values()):
        (box,) = replica["template"]["spec"]["containers"]
        folder = lay_image(tmp_path / f"pod{rank}")
        (folder / "data").mkdir()  # the emptyDir, and in it the claim that the pods share
        (folder / "data" / "06_models").symlink_to(tmp_path / "results")
        settings = {each["name"]: each["value"] for each in box["env"] if "value" in each}
        settings |= operator_environment(rank, port) | {
            "PARAMETERS": ",".join(f"{key}={value}" for key, value in parameters.items()),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        }
        with (tmp_path / f"pod{rank}.log").open("w") as log:
            pods.append(
                subprocess.Popen(
                    box["command"], cwd=folder, env=environment(settings), stdout=log, stderr=log
                )
            )
    ended = [pod.wait(timeout=900) for pod in pods]
    logs = "".join((tmp_path / f"pod{rank}.log").read_text()[-3000:] for rank in range(2))
    assert ended == [0, 0], logs
    (run,) = all_runs(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"))
    assert run.info.status == "FINISHED"
    marker = json.loads((tmp_path / "results" / "train_complete.json").read_text())
    assert marker["weights"]


def operator_environment(rank: int, port: int) -> dict[str, str]:
    """Return what the Training Operator 1.9 sets in a pod (pkg/controller.v1/pytorch/envvar.go)."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {
        **address,
        **{f"PET_{name}": value for name, value in address.items()},
        **{"PYTHONUNBUFFERED": "1", "WORLD_SIZE": "2", "RANK": str(rank)},
        **{"PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(rank), "PET_NNODES": "2"},
    }


@pytest.mark.slow
def test_the_files_are_what_the_published_schemas_say(tmp_path):
    if not (uv := shutil.which("uv")):
        pytest.skip("uv is not on PATH, so the schemas can't be had")
    folder = ROOT / "backends" / "kubernetes"
    job = yaml.safe_load((folder / "job.yaml").read_text())
    job["metadata"]["name"] = "account-tax-1"  # the three that MLflow sets
    job["spec"]["template"]["spec"]["containers"][0] |= {"image": IMAGE, "command": ["kedro"]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    pytorchjob = yaml.safe_load((folder / "pytorchjob.yaml").read_text())
    (tmp_path / "pytorchjob.yaml").write_text(yaml.safe_dump(pytorchjob))
    job["spec"]["backofLimit"] = 1
    pytorchjob["spec"]["runPolicy"]["cleanPodPolcy"] = "None"
    (tmp_path / "wrong-job.yaml").write_text(yaml.safe_dump(job))
    (tmp_path / "wrong-pytorchjob.yaml").write_text(yaml.safe_dump(pytorchjob))

    def check(*names: str) -> Finished:
        packages = ("kubernetes-validate", "kubeflow-training")
        script = [str(ROOT / "tests" / "published_schemas.py"), *names]
        return Project(tmp_path).run(
            *(uv, "run", "--no-project", "--no-config", "--isolated", "--python", sys.executable),
            *(word for name in packages for word in ("--with", name)),
            *("python", *script),
        )

    good = check("job.yaml", "pytorchjob.yaml")
    if good.returncode not in (0, 1):
        pytest.skip(f"the schemas can't be had: {good.output[-300:]}")
    assert good.returncode == 0, good.output
    bad = check("wrong-job.yaml", "wrong-pytorchjob.yaml")
    assert bad.returncode == 1
    assert "'backofLimit' was unexpected" in bad.output
    assert "job.spec.runPolicy.cleanPodPolcy: unknown key" in bad.output
