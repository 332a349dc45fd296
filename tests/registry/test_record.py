"""What a version's run kept, read from a real store."""

from types import SimpleNamespace

from mlflow import MlflowClient

from account_tax.registry.record import Difference, Record, read_record


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
