import json

import pytest
import yaml

from account_tax.backends.kubernetes import checks
from account_tax.parameters.config import resolve
from tests.fake_services import docker_engine, serving

from .conftest import ROOT

CLIENTS = "Python packages kubernetes, kubernetes_validate"


@pytest.fixture
def engine(monkeypatch):
    with serving(docker_engine()) as service:
        monkeypatch.setenv("DOCKER_HOST", service.address.replace("http", "tcp"))
        yield service


def config(project):
    return json.loads((project / "backends/kubernetes/config.json").read_text())


def faults(project, given=None, resolved=None):
    """Return the faults but those of this machine, which has no client and perhaps no docker."""
    found = checks(project, given or config(project), resolved).faults
    return [each for each in found if not each.startswith((CLIENTS, "docker:"))]


def change_job(project, change):
    file = project / "backends/kubernetes/job.yaml"
    job = yaml.safe_load(file.read_text())
    change(job, job["spec"]["template"]["spec"]["containers"][0])
    file.write_text(yaml.safe_dump(job))


def test_the_files_as_they_are_shipped_have_their_placeholders_and_nothing_else_against_them():
    found = faults(ROOT)
    assert len(found) == 2
    assert all("a placeholder" in each for each in found)


def test_with_the_placeholders_filled_in_nothing_speaks_against_it(ready):
    assert faults(ready) == []


def test_missing_clients_are_named_with_the_command_that_has_them(ready, engine):
    # The lock has no Kubernetes client; these tests run in it.
    (fault,) = checks(ready, config(ready), None).faults
    assert fault.startswith(CLIENTS)
    assert "--with 'kubernetes<37'" in fault


def test_no_docker_engine_is_a_fault(ready, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    assert any(each.startswith("docker:") for each in checks(ready, config(ready), None).faults)


def test_every_fault_is_said_at_once(ready):
    file = ready / "backends/kubernetes/mlproject"
    file.write_text(file.read_text().replace("@sha256:", ":latest-"))
    (ready / "backends/kubernetes/wheels").mkdir()
    given = {"repository-uri": "registry.internal/account-tax:1", "kube-contxt": "x"}
    found = "\n".join(faults(ready, given))
    for said in (
        "kube-contxt: unknown key. Did you mean kube-context?",
        "repository-uri = registry.internal/account-tax:1: MLflow adds the tag itself",
        "a tag may mean another image tomorrow",
        "would put wheels into the image",
        "kube-job-template-path = None: no such file",
    ):
        assert said in found


def test_a_project_file_that_mlflow_can_not_read_is_named(ready):
    (ready / "backends/kubernetes/mlproject").write_text("docker_env: {}\nconda_env: c.yaml\n")
    assert "backends/kubernetes/mlproject: Project cannot contain multiple" in faults(ready)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda job, _: job["metadata"].pop("namespace"), "MLflow needs metadata.namespace"),
        (lambda job, _: job["spec"]["template"]["spec"].pop("containers"), "containers"),
        (lambda _, box: box["resources"]["limits"].pop("cpu") and box["resources"].pop("requests"),
         "no cpu is asked for"),
        (lambda _, box: box["env"].append({"name": "HF_TOKEN", "value": "hf_open-sesame"}),
         "HF_TOKEN: a secret is written here"),
    ],
)  # fmt: skip
def test_a_job_template_that_can_not_do_is_named(ready, change, said):
    change_job(ready, change)
    found = "\n".join(faults(ready))
    assert said in found
    assert "sesame" not in found


def test_more_ranks_than_the_pod_has_gpus_are_refused(ready):
    four = resolve(ROOT, [("num_gpus", "4")])
    assert faults(ready, resolved=four) == [
        "num_gpus = 4: the pod is given 1 (nvidia.com/gpu in the job template)."
    ]
    change_job(ready, lambda _, box: box["resources"]["limits"].update({"nvidia.com/gpu": "4"}))
    assert faults(ready, resolved=four) == []
    change_job(ready, lambda _, box: box["volumeMounts"].pop())
    assert "no /dev/shm" in faults(ready, resolved=four)[0]


def test_secrets_are_shown_by_name(ready):
    facts = checks(ready, config(ready), None).facts
    assert facts["secrets"] == "account-tax/mlflow-tracking-token, account-tax/hf-token"
    assert facts["namespace"] == "account-tax"


def test_a_key_that_every_version_has_to_be_signed_by_reaches_the_pod(ready, monkeypatch):
    monkeypatch.setenv("ACCOUNT_TAX_VERIFY_KEY", "key.pub")
    (fault,) = faults(ready)
    assert fault.startswith("ACCOUNT_TAX_VERIFY_KEY: set here and not in env of the job template")
    entry = {"name": "ACCOUNT_TAX_VERIFY_KEY", "value": "/keys/key.pub"}
    change_job(ready, lambda _, container: container["env"].append(entry))
    assert faults(ready) == []
