"""The Slurm backend on a real Slurm of two nodes; a table of all cases at the end:

pytest -s -m "integration or slow" tests/integration/test_slurm.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run

from account_tax.storage.names import STUDY_VARIABLE
from account_tax.tuning.study import TRIAL_TAG
from tests import slurm_cluster
from tests.slurm_cluster import Cluster, cluster, install_metadata, why_none

from .conftest import Project
from .launched import LONG, Launched, override

pytestmark = pytest.mark.skipif(bool(why_none()), reason=why_none())

SECRET = "-".join(["s3cr3t", "0123456789"])  # the copy of the project has this file too
NO_REGISTER = "register=false"
BOTH_NODES = {"nodes": 2, "tasks_per_node": 1, "time": "10", "poll_seconds": 0.2}
PROGRESS = "tokens/s"
SPACE = "train.training.learning_rate: {type: float, low: 1.0e-4, high: 5.0e-2, log: true}\n"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def project(new_project) -> Project:
    """One copy for the file: prepared data is used again."""
    return new_project()


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows = ["| case | exit code | MLflow run | seconds |", "|---|---|---|---|"]
    yield rows
    sys.stdout.write("\n".join(["", *rows, ""]))


class Submitted(Launched):
    """`mlflow run -b slurm`, and a row of the table when it has ended."""

    case: str
    table: list[str]
    began: float

    def end(self, seconds: float = 400) -> int:
        status = self.process.wait(timeout=seconds)
        took = time.monotonic() - self.began
        runs = self.new_runs()
        state = runs[0].info.status if runs else "none"
        self.table.append(f"| {self.case} | {status} | {state} | {took:.0f} |")
        return status

    def wait_for(self, condition: Callable[[], object], seconds: float = 400) -> None:
        super().wait_for(condition, seconds)

    def new_runs(self) -> list[Run]:
        return [r for r in self.project.runs() if r.info.run_id not in self._runs_before]

    @property
    def reason(self) -> str:
        return self.run().data.tags["account_tax.reason"]


@pytest.fixture
def submit(slurm, project, tiny, table, tmp_path) -> Iterator[Callable[..., Submitted]]:
    with submitting(slurm, project, tiny, table, tmp_path) as start:
        yield start


@contextmanager
def submitting(
    slurm: Cluster, project: Project, tiny: list[str], table: list[str], tmp_path: Path
) -> Iterator[Callable[..., Submitted]]:
    """Yield what submits an entry point; its jobs are cancelled in the end."""
    metadata = install_metadata(tmp_path)
    options = [option for option in tiny if not option.startswith("num_gpus")]
    source = project.folder / "account_tax" / "src"

    def start(case: str, *changes: str, entry: str = "train", **keys: object) -> Submitted:
        manager = [] if "environment" in keys else ["--env-manager", "local"]
        config = tmp_path / "slurm.json"
        config.write_text(json.dumps(BOTH_NODES | keys))
        given = [word for each in override(options, changes) for word in ("-P", each)]
        words = ["mlflow", "run", ".", "-e", entry, *given, *manager]
        backend = ["-b", "slurm", "--backend-config", str(config)]
        variables = {
            **slurm.environment,
            "PYTHONPATH": f"{metadata}{os.pathsep}{source}",
            "HF_TOKEN": SECRET,
        }
        pairs = [f"{name}={value}" for name, value in variables.items()]
        began = time.monotonic()
        run = Submitted(project, tmp_path / "output", "env", *pairs, *words, *backend)
        run.case, run.table, run.began = case, table, began
        return run

    yield start
    if slurm.queue():
        slurm.ask("scancel", "--user=root")


def assert_no_secret(slurm: Cluster, project: Project, run: Submitted) -> None:
    """The secret stands in no job script, artifact, log or output."""
    assert SECRET not in run.output
    secret = SECRET.encode()
    folders = [project.folder, slurm.folder / "log"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "job.sh" for file in files)
    assert [file for file in files if secret in file.read_bytes()] == []


@pytest.fixture
def studied(slurm, new_project, tiny, table, tmp_path) -> Iterator[Callable[..., Submitted]]:
    """Return what submits a study with a worker on each node, in a project of its own."""
    project = new_project()
    (project.folder / "space.yml").write_text(SPACE)
    with submitting(slurm, project, tiny, table, tmp_path) as submit:

        def start(case: str, *changes: str, **keys: object) -> Submitted:
            given = ("space=space.yml", "workers=2", "tuning.pruner=none")
            return submit(case, *given, *changes, entry="tune", **keys)

        yield start


def assert_whole_study(project: Project, trials: int, steps: int) -> None:
    """Each number is one run's, which has each step once."""
    runs = trials_of(project)
    numbers = [json.loads(run.data.tags[TRIAL_TAG])["number"] for run in runs]
    assert (numbers, {run.info.status for run in runs}) == ([*range(trials)], {"FINISHED"})
    for run in runs:
        losses = project.client().get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in losses) == list(range(1, steps + 1))


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is `kedro tune` itself, not what it has started."""
    return "tune" in process.cmdline() and "srun" not in process.cmdline()[0]


def trials_of(project: Project) -> list[Run]:
    """Return the runs of a project's trials, by their numbers."""
    runs = [run for run in project.runs() if TRIAL_TAG in run.data.tags]
    return sorted(runs, key=lambda run: json.loads(run.data.tags[TRIAL_TAG])["number"])


# --- the short ones -------------------------------------------------------------------------------


@pytest.mark.integration
def test_two_nodes_train_and_register_and_no_secret_is_written(slurm, project, submit):
    run = submit("success: two nodes, a rank each", pass_environment=["HF_TOKEN"])
    assert run.end() == 0, run.output
    assert "train: 2 CPU ranks" in run.output
    assert "account-tax version 1 (challenger)" in run.output
    assert run.run().info.status == "FINISHED"
    assert run.run().data.params["launch.world_size"] == "2"
    folder = project.folder / "data" / "06_models" / run.run().info.run_id
    logs = sorted(log.name for log in (folder / "logs" / "ranks").iterdir())
    assert logs == ["slurm_rank0.log", "slurm_rank1.log"]
    assert_no_secret(slurm, project, run)


@pytest.mark.integration
def test_a_study_has_a_worker_on_each_node(slurm, studied):
    run = studied("a study of three trials on two nodes", "trials=3")
    assert run.end() == 0, run.output
    assert {"worker 0: trial", "worker 1: trial"} <= set(
        re.findall(r"worker \d: trial", run.output)
    )
    assert_whole_study(run.project, trials=3, steps=4)
    assert "account-tax version 1 (challenger)" in run.output
    assert slurm.queue() == []


@pytest.mark.slow
def test_a_study_goes_on_after_every_kill_and_no_trial_is_lost_or_run_twice(slurm, studied):
    def begin(case: str, **keys: object) -> Submitted:
        given = ("trials=7", "max_steps=60", "epochs=60")
        run = studied(f"a study on two nodes: {case}", *given, **keys)
        run.wait_for(lambda: len(run.ranks()) == 2)  # a trial on each node
        return run

    run = begin("scancel")
    slurm.ask("scancel", slurm.queue()[0].split()[0])
    assert run.end() == 143
    run = begin("all its processes killed", max_requeues=0)
    slurm.ask("scancel", "--signal=KILL", "--full", slurm.queue()[0].split()[0])
    assert run.end() != 0
    before = {trial.info.run_id for trial in trials_of(run.project)}
    run = begin("a worker killed, the other does the rest")
    next(p for p in run.others() if STUDY_VARIABLE in p.environ() and is_worker(p)).kill()
    assert run.end() == 1
    assert "workers ended badly. The same command goes on." in run.output
    assert before <= {trial.info.run_id for trial in trials_of(run.project)}
    run = studied("a study on two nodes: to its end", "trials=7", "max_steps=60", "epochs=60")
    assert run.end() == 0, run.output
    assert_whole_study(run.project, trials=7, steps=60)


@pytest.mark.slow
def test_a_preempted_study_is_queued_again_in_the_same_run(slurm, studied):
    run = studied("a study on two nodes: preempted", "trials=3", "max_steps=60", "epochs=60")
    run.wait_for(lambda: len(run.ranks()) == 2)
    slurm.ask("sbatch", "-p", "urgent", "-N2", "-o", "/dev/null", "--wrap", "sleep 3")
    run.wait_until_said("queued again (1 of 3)")
    assert run.end(600) == 0, run.output
    assert_whole_study(run.project, trials=3, steps=60)


@pytest.mark.integration
def test_a_partition_that_does_not_exist_is_named_with_those_that_do(submit):
    run = submit("a partition that does not exist", partition="trian")
    assert run.end() == 1
    for said in ("invalid partition specified: trian", "--partition=trian", "partition urgent: 2"):
        assert said in run.output
        assert said in run.reason
    assert run.run().info.status == "FAILED"


@pytest.mark.integration
def test_a_cluster_that_does_not_start_names_the_log_and_leaves_no_daemon(tmp_path, monkeypatch):
    template = tmp_path / "template"
    text = slurm_cluster.TEMPLATE.read_text()
    template.write_text(text.replace("proctrack/linuxproc", "proctrack/nothing"))
    monkeypatch.setattr(slurm_cluster, "TEMPLATE", template)
    folder = tmp_path / "slurm"
    with pytest.raises(RuntimeError) as raised, cluster(folder):
        pass
    assert "Slurm: slurmd.n" in str(raised.value)  # n1, n2 or both ended first
    assert re.search(rf"{folder}/log/slurmd\.n[12]\.log, last lines:", str(raised.value))
    assert "proctrack/nothing" in str(raised.value)
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(folder) in command] == []


# --- the matrix -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_says_which_signal(slurm, project, submit):
    run = submit("a killed rank", *LONG, NO_REGISTER)
    run.wait_until_said(PROGRESS)
    run.ranks()[1].kill()
    assert run.end() == 1
    assert run.run().info.status == "FAILED"
    assert "srun: error: n2: task 1: Killed" in run.reason
    assert slurm.queue() == []
    assert_no_secret(slurm, project, run)  # the job's output is an artifact now


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_ends_as_if_nothing_had_been(slurm, submit):
    steps = 400
    given = (f"max_steps={steps}", f"epochs={steps}", NO_REGISTER)
    run = submit("preempted, queued again", *given)
    run.wait_until_said(PROGRESS)
    first = run.run().info.run_id
    slurm.ask("sbatch", "-p", "urgent", "-N2", "-o", "/dev/null", "--wrap", "sleep 3")
    run.wait_until_said("queued again (1 of 3)")
    assert run.end(600) == 0, run.output
    assert "was preempted and is queued again (1 of 3)" in run.output
    assert run.run().info.run_id == first
    assert run.run().info.status == "FINISHED"
    losses = run.project.client().get_metric_history(first, "train/loss")
    assert [point.step for point in losses] == list(range(1, steps + 1))

    undisturbed = submit("the same training, undisturbed", *given)
    assert undisturbed.end(600) == 0, undisturbed.output
    second = undisturbed.run().info.run_id
    models = run.project.folder / "data" / "06_models"
    adapters = [models / each / "adapter/adapter_model.safetensors" for each in (first, second)]
    assert adapters[0] != adapters[1]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.slow
def test_a_job_without_requeues_is_killed_by_a_preemption(slurm, submit):
    run = submit("preempted, max_requeues 0", *LONG, NO_REGISTER, max_requeues=0)
    run.wait_until_said(PROGRESS)
    slurm.ask("sbatch", "-p", "urgent", "-N2", "-o", "/dev/null", "--wrap", "sleep 3")
    assert run.end() == 143
    assert run.run().info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_submitter_cancels_the_job(slurm, submit, signum):
    run = submit(f"{signum.name} to the submitter", *LONG, NO_REGISTER)
    run.wait_until_said(PROGRESS)
    run.process.send_signal(signum)
    assert run.end() == 128 + signum
    assert run.run().info.status == "KILLED"
    assert slurm.queue() == []
    run.wait_for_end_of(run.others, seconds=10)


@pytest.mark.slow
def test_scancel_ends_the_job_as_killed(slurm, submit):
    run = submit("scancel", *LONG, NO_REGISTER)
    run.wait_until_said(PROGRESS)
    slurm.ask("scancel", slurm.queue()[0].split()[0])
    assert run.end() == 143
    assert run.run().info.status == "KILLED"


@pytest.mark.slow
def test_an_entry_point_that_fails_gives_its_status(submit):
    run = submit("an entry point that fails", "label_column=nothing")
    assert run.end() == 2
    assert run.run().info.status == "FAILED"
    assert "expected the columns" in run.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "keys", "said"),
    [
        ("more GPUs than there are", {"gpus_per_node": 3}, "gres"),
        ("more nodes than there are", {"nodes": 3}, "PartitionConfig"),
        ("an unknown key", {"acount": "x"}, "acount: unknown key. Did you mean account?"),
    ],
)
def test_what_can_never_start_says_why(slurm, submit, case, keys, said):
    run = submit(case, **keys)
    assert run.end() == 1
    assert said in run.output
    assert slurm.queue() == []


@pytest.mark.slow
def test_a_failing_setup_line_is_named(submit):
    run = submit("a failing setup line", setup=["true", "module load nothing"])
    assert run.end() == 1
    assert "setup line 2 failed: module load nothing" in run.output


@pytest.mark.slow
def test_no_munge_is_said(slurm, submit, tmp_path, monkeypatch):
    conf = Path(slurm.environment["SLURM_CONF"])
    other = tmp_path / "slurm.conf"
    other.write_text(conf.read_text().replace("munge.socket", "nothing.socket"))
    monkeypatch.setitem(slurm.environment, "SLURM_CONF", str(other))  # type: ignore[arg-type]
    run = submit("no munge")
    monkeypatch.undo()
    assert run.end() == 1
    assert "Slurm's authentication, munge, does not work on this machine" in run.output


@pytest.mark.slow
def test_a_folder_that_the_other_node_does_not_see_is_named(slurm, submit):
    run = submit("no shared storage", f"artifacts_root={slurm.apart}/models")
    assert run.end() == 2
    said = f"{slurm.apart}/models: node n2 (rank 1) does not see what the first one has there."
    assert said in run.output


@pytest.mark.slow
def test_other_code_on_a_node_is_refused_with_its_rank(slurm, project, submit):
    source = project.folder / "account_tax" / "src" / "account_tax"
    other = slurm.folder / "other"
    shutil.copytree(source, other)
    with (other / "ranks.py").open("a") as file:
        file.write("# changed\n")
    slurm.on_n2("mount", "--bind", str(other), str(source))
    try:
        run = submit("other code on a node")
        assert run.end() == 2, run.output
    finally:
        slurm.on_n2("umount", str(source))
    assert "rank 1 (node n2): the code in" in run.output
    assert "All ranks have to run the same." in run.output


@pytest.mark.slow
def test_who_does_not_wait_learns_the_end_from_kedro_runs(slurm, project, submit):
    run = submit("wait: false", *LONG, NO_REGISTER, wait=False)
    assert run.end() == 0
    (job,) = slurm.queue()
    number = job.split()[0]
    while "RUNNING" not in slurm.queue()[0]:
        time.sleep(0.2)
    runs = project.run("kedro", "runs", env=slurm.environment)
    assert f"  {number}  " in runs.output
    slurm.ask("scancel", number)
    while slurm.queue():
        time.sleep(0.2)
    runs = project.run("kedro", "runs", env=slurm.environment)
    line = next(line for line in runs.output.splitlines() if run.run().info.run_id in line)
    assert "KILLED" in line
    assert run.run().info.status == "KILLED"


@pytest.mark.slow
def test_the_environment_is_made_once_on_shared_storage(submit, tmp_path):
    if not shutil.which("uv"):
        pytest.skip("no uv, which makes the environment")
    keys = {"environment": "uv", "shared_folder": str(tmp_path)}
    first = submit("an environment made by uv", "dry_run=true", **keys)
    assert first.end(580) == 0, first.output
    (made,) = [f for f in (tmp_path / "environments").iterdir() if f.is_dir()]
    when = made.stat().st_ctime_ns
    script = next(line for line in first.output.splitlines() if "output " in line)
    job = Path(script.rpartition("output ")[2]).with_name("job.sh").read_text()
    assert f"{made}/bin/activate" in job
    second = submit("the same environment again", "dry_run=true", **keys)
    assert second.end() == 0
    assert made.stat().st_ctime_ns == when


@pytest.mark.slow
def test_at_a_time_limit_the_ranks_save_and_the_job_goes_on(submit):
    run = submit(
        "the time limit, queued again, Ctrl-C", *LONG, NO_REGISTER, time="1", notice_seconds=10
    )
    run.wait_until_said("reached its time limit and is queued again (1 of 3)")
    run.wait_until_said("train: going on from step ")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130


@pytest.mark.slow
def test_a_time_limit_before_anything_is_saved_is_the_reason(submit):
    run = submit(
        "the time limit before training",
        NO_REGISTER,
        time="1",
        notice_seconds=10,
        setup=["sleep 600"],
    )
    assert run.end() == 1
    assert run.run().info.status == "FAILED"
    assert "reached its time limit" in run.reason
