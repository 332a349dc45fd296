import json

import numpy as np
import pytest
from mlflow import MlflowClient

from account_tax.errors import RegistrationError
from account_tax.model.calibration import calibrate, measure_calibration
from account_tax.model.classifier import (
    TamperedModelError,
    has_bf16,
    load_classifier,
    needs_review,
    read_classifier,
)
from account_tax.model.evaluation import answer_split
from account_tax.pipelines.register.nodes import (
    compare_bf16,
    complete_settings,
    evaluate_model,
    write_manifest,
)
from account_tax.storage.names import BF16_METRIC

REGISTRY = {"target_precision": 0.4, "guarantee": 0.95}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a run of a real store, named in the environment as a launcher does."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{tmp_path.name}.db")
    client = MlflowClient()
    experiment = client.create_experiment("ledger", str(tmp_path / "artifacts"))
    run = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    return run


def evaluate(trained, splits):
    classifier = read_classifier(trained.folder)
    root = str(trained.root)
    return evaluate_model(classifier, splits, {}, trained.metrics, trained.train, REGISTRY, root)


def test_the_calibration_is_fitted_to_validation_rows_and_measured_on_test_rows(trained, run):
    evaluation = evaluate(trained, trained.splits)
    classifier = read_classifier(trained.folder).merge()
    split = trained.splits["validation"]
    logits = classifier.logits_of_ids(split["input_ids"])
    promised = (classifier.labels, 0.4, 0.95)
    assert evaluation["calibration"] == calibrate(logits, np.asarray(split["labels"]), *promised)
    assert evaluation["calibration"]["rows"] == 12
    test = trained.splits["test"]
    classifier.settings["calibration"] = evaluation["calibration"]
    logits = classifier.logits_of_ids(test["input_ids"])
    answer = classifier.rank(logits)
    expected = measure_calibration(
        logits,
        np.asarray(test["labels"]),
        evaluation["calibration"]["temperature"],
        ~needs_review(answer["label"], answer["score"], evaluation["calibration"]),
    )
    found = MlflowClient().get_run(run.info.run_id).data.metrics
    assert {f"test/{name}": value for name, value in expected.items()}.items() <= found.items()


def test_accuracy_is_told_apart_for_suppliers_that_train_never_saw(trained, run):
    unseen = np.arange(24) < 5
    splits = trained.splits | {"test": trained.splits["test"].add_column("unseen", unseen)}
    evaluation = evaluate(trained, splits)
    logits, labels = answer_split(read_classifier(trained.folder).merge(), trained.splits["test"])
    right = logits.argmax(-1) == labels
    expected = {
        "test/unseen_suppliers_rows": 5,
        "test/unseen_suppliers_accuracy": right[:5].mean(),
        "test/other_suppliers_rows": 19,
        "test/other_suppliers_accuracy": right[5:].mean(),
    }
    found = MlflowClient().get_run(run.info.run_id).data.metrics
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert expected.items() <= evaluation["metrics"].items()


@pytest.mark.skipif(not has_bf16("cpu"), reason="this machine has no bf16")
def test_the_labels_of_bf16_are_compared_and_no_part_of_the_content(trained, run, monkeypatch):
    split = trained.splits["validation"]
    classifier = read_classifier(trained.folder).merge()
    logits = classifier.logits_of_ids(split["input_ids"])
    monkeypatch.setattr("account_tax.pipelines.register.nodes.BF16_ROWS", 5)
    assert compare_bf16(classifier, split, -logits, {}, {}) == {BF16_METRIC: 1.0}
    assert not classifier.bf16
    evaluation = evaluate(trained, trained.splits)
    rows = split["input_ids"][::3]  # 4 of 12: at most 5
    classifier.bf16 = True
    other = (classifier.logits_of_ids(rows).argmax(-1) != logits[::3].argmax(-1)).mean()
    assert evaluation["metrics"][BF16_METRIC] == other
    assert MlflowClient().get_run(run.info.run_id).data.metrics[BF16_METRIC] == other
    assert not [key for key in evaluation["calibration"] if "bf16" in key]


def test_the_same_classifier_has_the_same_content_after_a_second_calibration(trained):
    digests = []
    for _ in range(2):
        classifier = read_classifier(trained.folder)
        answers = answer_split(classifier, trained.splits["validation"])
        calibration = calibrate(*answers, classifier.labels, 0.4, 0.95)
        complete_settings(trained.folder, trained.metadata, calibration)
        digests.append(write_manifest(trained.folder)["content_sha256"])
    assert digests[0] == digests[1]
    kept = load_classifier(trained.folder).settings["calibration"]
    assert kept["target_precision"] == 0.4


def test_manifest_lists_every_file_and_the_code(trained):
    manifest = write_manifest(trained.folder)
    names = {file.name for file in trained.folder.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == names
    assert list(manifest["files"]) == sorted(manifest["files"])
    assert set(manifest["code"]) == {"classifier.py"}
    assert json.loads((trained.folder / "manifest.json").read_text()) == manifest


def test_manifest_is_the_same_when_written_again(trained):
    first, second = write_manifest(trained.folder), write_manifest(trained.folder)
    assert first == second


def test_content_digest_changes_with_a_byte(trained):
    before = write_manifest(trained.folder)["content_sha256"]
    flip_byte(trained.folder / "adapter_model.safetensors")
    assert write_manifest(trained.folder)["content_sha256"] != before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "classifier.json"])
def test_a_flipped_byte_is_refused_at_load(trained, name):
    write_manifest(trained.folder)
    load_classifier(trained.folder)
    flip_byte(trained.folder / name)
    with pytest.raises(TamperedModelError, match=name):
        load_classifier(trained.folder)


def test_without_a_run_it_says_which_variable_is_missing(trained, monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with pytest.raises(RegistrationError, match="MLFLOW_RUN_ID"):
        evaluate(trained, trained.splits)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
