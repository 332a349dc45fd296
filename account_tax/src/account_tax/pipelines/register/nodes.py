"""The two steps after training: evaluate the test split, register the classifier."""

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from mlflow import MlflowClient
from mlflow.entities import Metric
from safetensors.torch import load_file, save_file
from torch import Tensor

from account_tax.errors import RegistrationError
from account_tax.model.calibration import calibrate, fit_fusion, measure_calibration
from account_tax.model.classifier import (
    MANIFEST_FILE,
    NGRAMS_FILE,
    SETTINGS_FILE,
    LoadedClassifier,
    Ngrams,
    fuse,
    has_bf16,
    needs_review,
)
from account_tax.model.evaluation import answer_split, score_answers, score_suppliers
from account_tax.model.metrics import compute_classification_metrics
from account_tax.processes.ranks import get_mlflow_env
from account_tax.provenance.environment import (
    describe_environment,
    environment_in_words,
    unlocked_fault,
)
from account_tax.storage.files import canonical_sha256, sha256_of, write_json
from account_tax.storage.names import (
    ADAPTER_FOLDER,
    ANSWERS_FILE,
    BF16_METRIC,
    BF16_TAG,
    CARD_FILE,
    CONFIG_VARIABLE,
    DATASET_METADATA_FILE,
    LOG_HISTORY_FILE,
    METRICS_FILE,
    PROBE_FILE,
    STATEMENT_TAG,
)
from account_tax.tracking.metric_journal import journal_file, newest_timestamp, send_batch

from .attest import log_statement, sign_registered
from .card import describe_version, write_card
from .plots import save_plots
from .registry import (
    CODE_FILE,
    Candidate,
    check_alias,
    find_same_content,
    register_version,
)

log = logging.getLogger(__name__)

BF16_ROWS = 1000  # what 0.1% of can be counted in; seconds

Answers = tuple[np.ndarray, np.ndarray]  # logits (N, C) and class ids (N,) of a split


# --- the nodes ------------------------------------------------------------------------------------


def evaluate_model(
    adapter: LoadedClassifier,
    tokenized_datasets: DatasetDict,
    ngrams: dict[str, Tensor],
    training_metrics: dict[str, float],
    train_params: dict[str, Any],
    registry_params: dict[str, Any],
    artifacts_root: str,
) -> dict[str, Any]:
    """Return the evaluation of the test split, after logging it and its plots to the run.

    `calibration` is among it, fitted to the validation split. The model on n-grams, where it has a
    part in the answers, is saved beside the adapter.
    """
    root = Path(artifacts_root)
    average = train_params.get("metrics", {}).get("average", "macro")
    adapter.merge()
    test, validation = (
        answer_split(adapter, tokenized_datasets[split]) for split in ("test", "validation")
    )
    fusion = add_ngrams(root / ADAPTER_FOLDER, ngrams, validation)
    alone = measure_parts(test, ngrams, average)
    if fusion:
        validation, test = (
            (fuse(logits, ngrams[split].numpy(), fusion["fusion"]), labels)
            for split, (logits, labels) in (("validation", validation), ("test", test))
        )
    promised = (registry_params[key] for key in ("target_precision", "guarantee"))
    calibration = calibrate(*validation, adapter.labels, *promised)
    evaluation = score_answers(adapter.labels, *test, average, calibration["temperature"])
    evaluation["calibration"] = calibration | fusion
    measured = measure_scores(adapter, test, calibration) | alone
    evaluation["metrics"] |= {f"test/{name}": value for name, value in measured.items()}
    bf16 = compare_bf16(adapter, tokenized_datasets["validation"], validation[0], ngrams, fusion)
    evaluation["metrics"] |= score_suppliers(tokenized_datasets["test"], *test) | bf16
    log_history = json.loads((root / LOG_HISTORY_FILE).read_text(encoding="utf-8"))
    client, run_id = mlflow_run()
    newest_ms = send_kept_metrics(client, run_id, root)
    log_test_metrics(client, run_id, evaluation["metrics"], newest_ms)
    client.log_dict(run_id, training_metrics | evaluation["metrics"], METRICS_FILE)
    counts = {key: evaluation[key] for key in ("labels", "confusion_matrix")}
    client.log_dict(run_id, counts, ANSWERS_FILE)
    for plot in save_plots(root / "plots", evaluation, log_history):
        client.log_artifact(run_id, str(plot), "plots")
    return evaluation


def register_model(
    test_evaluation: dict[str, Any],
    dataset_metadata: dict[str, Any],
    training_metrics: dict[str, float],
    train_params: dict[str, Any],
    registry_params: dict[str, Any],
    artifacts_root: str,
) -> dict[str, Any]:
    """Return the registered version, its test metrics and its digests.

    Raises:
        RegistrationError: If the version does not repeat the trainer's logits; none is left.
    """
    check_alias(registry_params["alias"])
    environment = _require_locked(registry_params["allow_unlocked"])
    client, run_id = mlflow_run()
    folder = Path(artifacts_root) / ADAPTER_FOLDER
    complete_settings(folder, dataset_metadata, test_evaluation["calibration"])
    manifest = write_manifest(folder)
    facts = {
        "name": registry_params["name"],
        "settings": json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8")),
        "metrics": training_metrics | test_evaluation["metrics"],
        "evaluation": test_evaluation,
        "dataset": dataset_metadata,
        "train": train_params,
        "environment": environment,
        "digests": collect_digests(
            folder, manifest, dataset_metadata, os.environ.get(CONFIG_VARIABLE)
        ),
    }
    candidate = _log_candidate(client, run_id, folder, manifest, facts)
    registration = register_version(
        client, run_id, registry_params["name"], registry_params["alias"], candidate
    )
    if key := registry_params.get("sign_key"):
        sign_registered(client, registration["name"], registration["version"], Path(key))
    log.info("%s is %s", registration["model_uri"], registration["alias"])
    return registration | {"metrics": test_evaluation["metrics"], "digests": facts["digests"]}


def _require_locked(allow_unlocked: bool) -> dict[str, Any]:
    """Return the running environment, or raise RegistrationError where it is not the locked one."""
    environment = describe_environment(Path.cwd())
    if not (environment["locked"] or allow_unlocked):
        raise RegistrationError(unlocked_fault(environment))
    return environment


def _log_candidate(
    client: MlflowClient,
    run_id: str,
    folder: Path,
    manifest: dict[str, Any],
    facts: dict[str, Any],
) -> Candidate:
    """Return the candidate version, after its manifest, card and statement went to the run."""
    client.log_artifact(run_id, str(folder / MANIFEST_FILE))
    client.log_dict(run_id, facts["dataset"], DATASET_METADATA_FILE)
    client.log_text(run_id, write_card(facts), CARD_FILE)
    tags = version_tags(facts)
    # A version of this run keeps its provenance: another has another time, and its digest no more.
    there = find_same_content(client, facts["name"], manifest["content_sha256"])
    kept = there.tags.get(STATEMENT_TAG) if there and there.run_id == run_id else None
    tags[STATEMENT_TAG] = kept or log_statement(client, run_id, facts, manifest)
    return Candidate(folder, manifest["content_sha256"], tags, describe_version(facts))


# --- their parts ----------------------------------------------------------------------------------


def complete_settings(
    folder: Path, dataset_metadata: dict[str, Any], calibration: dict[str, Any]
) -> None:
    """Add to classifier.json how a ledger line becomes text, and what a score is worth.

    Training knows tokens only; whoever loads the version brings a table. The trainer's answers are
    its encoder's alone: the n-grams' part is added to them.
    """
    path = folder / SETTINGS_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {key: dataset_metadata[key] for key in ("text_columns", "separator", "max_length")}
    settings["calibration"] = calibration
    write_json(path, settings)
    path = folder / PROBE_FILE
    probe = json.loads(path.read_text(encoding="utf-8"))
    probe["logits"] = probe.pop("encoder_logits", probe["logits"])
    if "fusion" in calibration:
        probe["encoder_logits"] = probe["logits"]
        ngrams = Ngrams(**load_file(folder / NGRAMS_FILE)).logits(probe["texts"])
        encoder = np.array(probe["logits"], dtype=np.float32)
        probe["logits"] = fuse(encoder, ngrams, calibration["fusion"]).tolist()
    write_json(path, probe)


def measure_scores(
    classifier: LoadedClassifier, test: Answers, calibration: dict[str, Any]
) -> dict[str, float]:
    """Return how a calibration holds on test rows, filed as whoever uses the version files them."""
    settings = {**classifier.settings, "calibration": calibration}
    answer = replace(classifier, settings=settings).rank(test[0])
    filed = ~needs_review(answer["label"], answer["score"], calibration)
    return measure_calibration(*test, calibration["temperature"], filed)


def add_ngrams(
    folder: Path, ngrams: dict[str, Tensor], validation: Answers
) -> dict[str, dict[str, float]]:
    """Save the model on n-grams beside the encoder, if it has a weight; return `fusion`, if so."""
    file = folder / NGRAMS_FILE
    file.unlink(missing_ok=True)
    if not ngrams:
        return {}
    logits, labels = validation
    fusion = fit_fusion(logits, ngrams["validation"].numpy(), labels)
    if not fusion["ngrams"]:
        return {}
    save_file({key: ngrams[key] for key in Ngrams.__annotations__}, file)
    return {"fusion": fusion}


def compare_bf16(
    classifier: LoadedClassifier,
    split: Any,
    logits: np.ndarray,
    ngrams: dict[str, Tensor],
    fusion: dict[str, dict[str, float]],
) -> dict[str, float]:
    """Return the share of validation rows, `BF16_ROWS` at most, with another label in bf16.

    It is a tag of the version that `predict` asks, and no part of its content, which may not hang
    on the machine; one without bf16 measures nothing.
    """
    if not (len(logits) and has_bf16("cpu")):
        return {}
    rows = np.arange(0, len(logits), -(-len(logits) // BF16_ROWS))
    found = replace(classifier, bf16=True).logits_of_ids(split.select(rows)["input_ids"])
    if fusion:
        found = fuse(found, ngrams["validation"].numpy()[rows], fusion["fusion"])
    return {BF16_METRIC: float((found.argmax(-1) != logits[rows].argmax(-1)).mean())}


def measure_parts(test: Answers, ngrams: dict[str, Tensor], average: str) -> dict[str, float]:
    """Return what encoder and n-grams are worth alone; nothing where there is one part."""
    logits, labels = test
    parts = {"encoder": logits, "ngrams": ngrams["test"].numpy()} if ngrams else {}
    scores = {
        part: compute_classification_metrics(answers, labels, average)
        for part, answers in parts.items()
    }
    return {f"{part}_{name}": scores[part][name] for part in parts for name in ("accuracy", "f1")}


def write_manifest(folder: Path) -> dict[str, Any]:
    """Write manifest.json: sha256 and bytes of every file of the classifier and of its code.

    `content_sha256` is the digest of that list. It depends on nothing else, so that the same
    classifier has it wherever and whenever it is registered.
    """
    path = folder / MANIFEST_FILE
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != path)
    content = {
        "files": {file.relative_to(folder).as_posix(): _entry(file) for file in files},
        "code": {CODE_FILE.name: _entry(CODE_FILE)},
    }
    manifest = content | {"content_sha256": canonical_sha256(content, ensure_ascii=True)}
    write_json(path, manifest)
    return manifest


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def collect_digests(
    folder: Path,
    manifest: dict[str, Any],
    dataset_metadata: dict[str, Any],
    config_sha256: str | None,
) -> dict[str, str]:
    """Return every digest that identifies the version, by name."""
    weights = {
        f"{Path(name).stem}_sha256": entry["sha256"]
        for name, entry in manifest["files"].items()
        if name.endswith(".safetensors")
    }
    splits = {
        f"data/{name}_sha256": split["sha256"] for name, split in dataset_metadata["splits"].items()
    }
    digests = {
        "content_sha256": manifest["content_sha256"],
        "manifest_sha256": sha256_of(folder / MANIFEST_FILE),
        **weights,
        "data/source_sha256": dataset_metadata["source_sha256"],
        **splits,
    }
    return digests | ({"config_sha256": config_sha256} if config_sha256 else {})


def version_tags(facts: dict[str, Any]) -> dict[str, str]:
    """Return what a person looks for among a version's tags; the card has the rest."""
    shown = {key: f"{facts['metrics'][key]:.4f}" for key in ("test/accuracy", "test/f1")}
    if BF16_METRIC in facts["metrics"]:
        shown[BF16_TAG] = f"{facts['metrics'][BF16_METRIC]:g}"
    environment = environment_in_words(facts["environment"])
    return shown | {"base": facts["settings"]["base"]["name"], "environment": environment}


def mlflow_run() -> tuple[MlflowClient, str]:
    """Return a client and the id of the run that this process belongs to."""
    run = get_mlflow_env()
    if not run["run_id"]:
        raise RegistrationError(
            "no MLflow run to register from: MLFLOW_RUN_ID is not set. Use `kedro train`, which "
            "sets it, or export the id of the run that trained this classifier."
        )
    return MlflowClient(run["tracking_uri"]), run["run_id"]


def send_kept_metrics(client: MlflowClient, run_id: str, artifacts_root: Path) -> int:
    """Store the metric points that training kept, and return the time of the newest, ms."""
    journal = journal_file(artifacts_root, run_id)
    while send_batch(client, run_id, journal):
        pass
    return newest_timestamp(journal)


def log_test_metrics(
    client: MlflowClient, run_id: str, metrics: dict[str, float], not_before_ms: int
) -> None:
    """Log metrics to the run, those it has not, and wait for the store to have them."""
    logged = client.get_run(run_id).data.metrics
    now_ms = max(int(time.time() * 1000), not_before_ms)
    points = [
        Metric(key, value, now_ms, 0) for key, value in metrics.items() if logged.get(key) != value
    ]
    client.log_batch(run_id, points, synchronous=True)
