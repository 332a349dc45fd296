import json
import shutil
import subprocess

import pytest
from databricks.sdk.service.compute import ClusterSpec, Library

from account_tax.backends.databricks import checks
from account_tax.parameters.config import resolve
from tests.fake_services import databricks_workspace, serving

from .conftest import ROOT

CONFIG = json.loads((ROOT / "backends/databricks/cluster.json").read_text())
CATALOG = ("registry.name", "main.ledgers.account_tax")


@pytest.fixture
def workspace(monkeypatch):
    with serving(databricks_workspace("SUCCESS", {"account-tax": ["hf-token"]})) as service:
        monkeypatch.setenv("DATABRICKS_HOST", service.address)
        monkeypatch.setenv("DATABRICKS_TOKEN", "open-sesame")
        yield service


@pytest.fixture
def clone(tmp_path):
    shutil.copytree(ROOT / "backends", tmp_path / "backends")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    return tmp_path


def faults(project, config=CONFIG, *words):
    return checks(project, config, resolve(ROOT, [CATALOG, *words])).faults


def with_cluster(**changes):
    return CONFIG | {"new_cluster": CONFIG["new_cluster"] | changes}


def test_the_shipped_file_is_what_the_published_models_say():
    cluster = CONFIG["new_cluster"]
    assert ClusterSpec.from_dict(cluster).as_dict() == cluster
    assert [Library.from_dict(each).as_dict() for each in CONFIG["libraries"]] == CONFIG[
        "libraries"
    ]


def test_nothing_speaks_against_the_shipped_file_in_a_workspace_that_has_it_all(clone, workspace):
    assert faults(clone) == []
    assert not workspace.sent("POST", ".*")
    assert all(each.path != "/api/2.0/secrets/get" for each in workspace.requests)


def test_every_fault_is_said_at_once(clone, workspace):
    (clone / "data").mkdir()
    (clone / "data" / "ledger.csv").write_text("text,label\n")
    config = {
        **with_cluster(
            spark_version="9.x", node_type_id="abacus", data_security_mode="OPEN", nodes=2,
            spark_env_vars={"HF_TOKEN": "open-sesame", "A_TOKEN": "{{secrets/account-tax/gone}}"},
            spark_conf={"fs.s3a.secret.key": "{{secrets/nowhere/key}}"},
        ),
        "libraries": [],
        "existing_cluster_id": "1",
    }  # fmt: skip
    found = "\n".join(faults(clone, config))
    for said in (
        "data/ (0.0 MiB)",
        "existing_cluster_id: unknown key",
        "HF_TOKEN: a secret is written here",
        "A_TOKEN: the scope account-tax has no secret gone",
        "fs.s3a.secret.key: scope nowhere",
        "spark_version = 9.x: the workspace does not have it",
        "node_type_id = abacus: the workspace does not have it",
        "new_cluster.data_security_mode = OPEN",
        "new_cluster.nodes = 2",
        "libraries: no",
    ):
        assert said in found
    assert "sesame" not in found


def test_a_workspace_that_refuses_is_said_in_its_words(clone, monkeypatch):
    with serving(lambda _: (403, {"error_code": "PERMISSION_DENIED", "message": "no"})) as service:
        monkeypatch.setenv("DATABRICKS_HOST", service.address)
        monkeypatch.setenv("DATABRICKS_TOKEN", "open-sesame")
        (fault,) = faults(clone)
    assert fault.startswith("workspace: ")
    assert "PERMISSION_DENIED" in fault
    assert "sesame" not in fault


def test_more_ranks_than_the_machine_has_gpus_are_refused(clone, workspace):
    assert faults(clone, CONFIG, ("num_gpus", "4")) == ["num_gpus = 4: a g5.xlarge has 1."]


def test_unity_catalog_wants_a_name_of_three_parts(clone, workspace):
    plain = resolve(ROOT, [])
    (fault,) = checks(clone, CONFIG, plain).faults
    assert "CATALOG.SCHEMA.NAME" in fault
    variables = CONFIG["new_cluster"]["spark_env_vars"] | {"MLFLOW_REGISTRY_URI": "databricks"}
    assert checks(clone, with_cluster(spark_env_vars=variables), plain).faults == []


def test_a_cluster_of_its_own_is_needed(clone):
    assert any("new_cluster: missing" in each for each in faults(clone, {"libraries": []}))


def test_a_key_that_every_version_has_to_be_signed_by_reaches_the_cluster(
    clone, workspace, monkeypatch
):
    monkeypatch.setenv("ACCOUNT_TAX_VERIFY_KEY", "key.pub")
    (fault,) = faults(clone)
    assert fault.startswith("ACCOUNT_TAX_VERIFY_KEY: set here and not in new_cluster.spark_env_var")
    variables = {"ACCOUNT_TAX_VERIFY_KEY": "/Volumes/main/keys/key.pub"}
    assert faults(clone, with_cluster(spark_env_vars=variables)) == []
