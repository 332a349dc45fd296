import pytest

from account_tax.backends.tracking_faults import find_tracking_faults
from tests.fake_services import serving


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "KUBE_MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    """A tracking server that knows one experiment, and where its artifacts go."""

    def answer(request):
        location = "mlflow-artifacts:/1" if request.query["experiment_name"] == "good" else "/disk"
        found = {"experiment_id": "1", "name": "any", "artifact_location": location}
        return 200, {"experiment": found | {"lifecycle_stage": "active"}}

    with serving(answer) as service:
        yield service


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("", "MLFLOW_TRACKING_URI = .not set."),
        ("sqlite:////srv/mlflow.db", "a store of this machine"),
        ("file:///srv/mlruns", "a store of this machine"),
        ("http://localhost:5000", "loopback"),
        ("http://127.0.0.2:5000", "loopback"),
        ("http://[::1]:5000", "loopback"),
        ("http://0.0.0.0:5000", "loopback"),
    ],
)
def test_an_address_that_means_nothing_elsewhere_is_refused(monkeypatch, uri, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (fault,) = find_tracking_faults()
    assert said.replace(".not set.", "(not set)") in fault


def test_a_password_is_not_repeated(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:open-sesame@mlflow.example.com")
    (fault,) = find_tracking_faults()
    assert "MLFLOW_TRACKING_TOKEN" in fault
    assert "sesame" not in fault


def test_in_a_cluster_the_job_has_an_address_of_its_own(monkeypatch, server):
    monkeypatch.setenv("KUBE_MLFLOW_TRACKING_URI", "http://mlflow.account-tax.svc:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)  # as kubectl port-forward gives it
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "good")
    assert find_tracking_faults() == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert "from here, on the same server" in find_tracking_faults()[0]


def test_artifacts_on_a_disk_that_the_job_does_not_have_are_refused(monkeypatch, server):
    monkeypatch.setenv("KUBE_MLFLOW_TRACKING_URI", "http://mlflow.account-tax.svc:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "old")
    (fault,) = find_tracking_faults()
    assert "experiment old: its artifacts go to /disk" in fault


def test_a_server_that_does_not_answer_is_named(monkeypatch, server):
    monkeypatch.setenv("KUBE_MLFLOW_TRACKING_URI", "http://mlflow.account-tax.svc:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (fault,) = find_tracking_faults()
    assert fault.startswith("MLFLOW_TRACKING_URI = http://127.0.0.1:9: ")


def test_a_workspace_wants_the_path_of_an_experiment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert "/Shared/account-tax" in find_tracking_faults()[0]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/account-tax")
    assert find_tracking_faults() == []
