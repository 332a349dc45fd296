"""What a run recorded, compared with the provenance."""

import hashlib
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from account_tax.registry.record import Difference, Record, _changed, read_record
from tests.provenance.test_statement import make_statement

PATCH = b"--- a/x\n+++ b/x\n"
TAGS = {"commit": "9" * 40, "dirty": "true", "patch_sha256": hashlib.sha256(PATCH).hexdigest()}


@pytest.fixture(params=[True, False], ids=["with-provenance", "without"])
def changed(request):
    """Return what finds a change in files and tags of a run that has a statement, or none."""
    statement = make_statement(**TAGS) if request.param else None
    version = SimpleNamespace(tags={})
    return lambda raw, **tags: list(_changed(version, raw, statement, TAGS | tags))


def test_a_patch_is_the_recorded_one_or_the_code_differs(changed):
    assert changed({"code.patch": PATCH}) == []
    expected = f"instead of sha256 {TAGS['patch_sha256']}"
    (lost,) = changed({})
    assert (lost.cause, lost.text) == ("code", f"code.patch: missing {expected}")
    (other,) = changed({"code.patch": b"other"})
    assert other.cause == "code"
    assert other.text.endswith(expected)


def test_tags_that_are_not_the_provenances_are_code():
    statement = make_statement(**TAGS)
    found = _changed(
        SimpleNamespace(tags={}), {"code.patch": PATCH}, statement, TAGS | {"commit": "8" * 40}
    )
    text = f"the run's tag account_tax.commit: {'8' * 40} instead of {'9' * 40}"
    assert list(found) == [Difference("code", text)]


def test_a_run_that_is_gone_recorded_nothing_and_the_version_says_what_is_missing(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = SimpleNamespace(run_id="0" * 32, tags={})
    assert read_record(client, version) == Record()
    version.tags["provenance_sha256"] = "9" * 64
    missing = f"provenance.json: missing instead of sha256 {'9' * 64}"
    assert read_record(client, version).changed == (Difference("files", missing),)


def test_files_and_tags_are_read_once_for_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = client.create_run("0", tags={"account_tax.dirty": "false"}).info.run_id
    client.log_text(run_id, "data: {source: a.csv}\n", "parameters.yml")
    client.log_dict(run_id, {"packages": {"numpy": "2.1"}}, "environment.json")
    record = read_record(client, SimpleNamespace(run_id=run_id, tags={}))
    assert record.tags["dirty"] == "false"
    assert record.data == {"source": "a.csv"}
    assert record.environment == {"packages": {"numpy": "2.1"}}
    assert record.missing == ["dataset_metadata.json"]
    assert record.changed == ()
