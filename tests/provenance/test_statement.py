"""The patch of a working tree, with real git, and the statement about a run."""

import hashlib
import json

from account_tax.confidential import hide_secrets
from account_tax.provenance.statement import (
    NOT_RECORDED,
    RunRecord,
    build_statement,
    recorded_digest,
    statement_bytes,
)

SHA = "0123456789abcdef" * 4


# --- the statement --------------------------------------------------------------------------------


MANIFEST = {"files": {"adapter_model.safetensors": {"sha256": SHA, "bytes": 1}}, "code": {}}
DATASET = {
    "source": "s3://user:hush@bucket/ledger.csv?token=hush",
    "source_sha256": "b" * 64,
    "splits": {"test": {"rows": 24, "sha256": "c" * 64}},
}
BASE = {"name": "org/base", "kind": "hub", "revision": "4" * 40, "sha256": "d" * 64}
ENVIRONMENT = {"lock_sha256": "e" * 64, "differences": ["numpy 1: the lock has 2"], "packages": {}}


def make_statement(parameters=None, environment=None, **tags):
    kept = {"parameters.yml": parameters, "environment.json": environment}
    files = {name: json.dumps(each).encode() for name, each in kept.items() if each}  # YAML as well
    record = RunRecord("run", tags, "2", "1", 0.0, files)
    digests = {"manifest_sha256": "f" * 64, "config_sha256": "a" * 64}
    return build_statement(record, MANIFEST, digests, DATASET, BASE, 61.0)


def test_the_statement_has_the_published_field_names():
    statement = make_statement()
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    definition, details = statement["predicate"].values()
    assert list(statement["predicate"]) == ["buildDefinition", "runDetails"]
    assert set(definition) == {
        *("buildType", "externalParameters", "internalParameters", "resolvedDependencies"),
    }
    assert set(details) == {"builder", "metadata", "byproducts"}
    assert set(details["builder"]) == {"id", "version"}
    assert details["metadata"] == {
        "invocationId": "run",
        "startedOn": "1970-01-01T00:00:00Z",
        "finishedOn": "1970-01-01T00:01:01Z",
    }
    for entry in definition["resolvedDependencies"]:  # a ResourceDescriptor, nothing else
        assert entry["digest"]
        assert set(entry) <= {"name", "uri", "digest", "mediaType", "annotations"}


def test_the_subject_is_the_classifiers_files():
    assert make_statement()["subject"] == [
        {"name": "adapter_model.safetensors", "digest": {"sha256": SHA}},
        {"name": "manifest.json", "digest": {"sha256": "f" * 64}},
    ]


def test_what_was_not_recorded_is_said():
    definition = make_statement()["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"command": NOT_RECORDED, "parameters": NOT_RECORDED}
    assert definition["internalParameters"]["environment"] == NOT_RECORDED
    names = [entry["name"] for entry in definition["resolvedDependencies"]]
    assert names == ["data/source", "data/test", "base"]


PARAMETERS_SHA256 = hashlib.sha256(b'{"data": {"source": "x"}}').hexdigest()


def test_every_input_has_its_digest():
    statement = make_statement(
        {"data": {"source": "x"}}, ENVIRONMENT, commit="9" * 40, dirty="true", patch_sha256="8" * 64
    )
    found = {
        name: recorded_digest(statement, name)
        for name in ("code", "code.patch", "data/source", "data/test", "base", "environment lock")
    }
    assert [digest[0] for digest in found.values()] == ["9", "8", "b", "c", "d", "e"]
    assert recorded_digest(statement, "parameters.yml") == PARAMETERS_SHA256
    assert recorded_digest(statement, "environment.json")
    assert recorded_digest(statement, "no such thing") is None


def test_a_sources_password_stands_nowhere():
    parameters = {"data": {"source": DATASET["source"]}, "train": {}}
    command = hide_secrets(f"kedro train --data.source '{DATASET['source']}'")
    raw = statement_bytes(make_statement(parameters, command=command)).decode()
    assert "hush" not in raw
    assert raw.count("s3://bucket/ledger.csv") == 2


def test_a_run_that_went_on_with_other_code_says_so():
    statement = make_statement(commit="9" * 40, dirty="false", code_before="commit 1")
    entries = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert entries[0]["annotations"] == {"dirty": False, "before": "commit 1"}
