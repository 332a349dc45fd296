"""A rung of the ladder, the verdict that all of them give, and the rungs that train nothing.

R0 the bytes, R1 the logits from a cold process, R2 the test split and its metrics. R3, the training
done again, is retrain.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.errors import Refused, RegistrationError
from account_tax.ledger.reading import DataError, Ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.tokens import (
    load_base_tokenizer,
    read_seen_ledger,
    tokenize_splits,
)
from account_tax.model.classifier import BaseModelError, TamperedModelError
from account_tax.model.evaluation import evaluate_test_split
from account_tax.provenance.signing import KEY_TAG, verify_key
from account_tax.registry.cold import load_cold
from account_tax.registry.download import download_version, model_of
from account_tax.registry.record import Difference, Record
from account_tax.reporting.markdown import format_number
from account_tax.storage.names import CONTENT_TAG, PROBE_FILE
from account_tax.storage.prepared import split_digest

from .differences import first_cause

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"
CLAIMS = {
    "R0": "the files are those registered",
    "R1": "a cold process gives the stored logits",
    "R2": "the test split and its metrics are the recorded ones",
    "R3": "trained again, it is the same",
}
BITWISE, WITHIN, DIFFERENT = "bitwise", "within tolerance", "different"  # the tag `reproduced`
# Of metrics computed again from the same files: sums in another order, on another CPU.
METRIC_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Rung:
    """One rung: whether its claim holds, by what evidence, and what differs where it doesn't."""

    name: str
    status: str
    evidence: str
    differences: tuple[Difference, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    verdict: str | None = None  # of R3 alone


@dataclass(frozen=True)
class Verdict:
    """What the ladder says: one of the tag's words, or None where nothing was trained again."""

    word: str | None
    cause: str | None
    reason: str


def judge(rungs: Sequence[Rung]) -> Verdict:
    """Return the verdict; the first cause in the order of `CAUSES` is named, whoever found it."""
    first = first_cause([each for rung in rungs for each in rung.differences])
    cause, reason = (first.cause, f"{first.cause}: {first.text}") if first else (None, "")
    failed = [rung for rung in rungs if rung.status == FAIL]
    retrained = next((rung.verdict for rung in rungs if rung.verdict), None)
    if failed:
        nothing = f"{failed[0].name}: {failed[0].evidence}; no input is known to differ"
        return Verdict(DIFFERENT, cause, reason or nothing)
    return Verdict(retrained, cause, reason)


# --- R0 -------------------------------------------------------------------------------------------


def check_bytes(
    version: ModelVersion, folder: Path, key: Path | None, record: Record
) -> tuple[Rung, Path | None]:
    """Return rung R0, and the classifier's folder where its files are whole."""
    try:
        classifier = download_version(version, folder, key)
    except (TamperedModelError, Refused, MlflowException, OSError) as err:
        return _failed("R0", "files", str(err)), None
    if edited := [each for each in record.changed if each.cause == "files"]:
        return _failed("R0", "files", edited[0].text), None
    count = sum(1 for file in classifier.rglob("*") if file.is_file())
    signer = version.tags.get(KEY_TAG)
    signed = f"signed by {signer[:16]}…" if signer else "not signed"
    checked = "signature checked" if verify_key(key) else f"{signed}, no key to verify with"
    evidence = f"{count} files, content_sha256 {version.tags['content_sha256']}; {checked}"
    return Rung("R0", PASS, evidence), classifier


# --- R1 -------------------------------------------------------------------------------------------


def check_logits(version: ModelVersion, classifier: Path) -> Rung:
    """Return rung R1: what R0 checked, loaded by a fresh process, away from the project."""
    uri = str(model_of(classifier))  # what the registry has may be other files by now
    outcome = load_cold(uri, classifier / PROBE_FILE, version.tags[CONTENT_TAG])
    if not outcome["verified"]:
        seen = "BaseModelError" in outcome["reason"]
        cause = "base" if seen else "environment"
        return _failed("R1", cause, outcome["reason"], inferred=not seen)
    largest, tolerance = outcome["max_abs_diff"], outcome["tolerance"]
    texts = outcome["texts"]
    evidence = f"largest difference {largest:.3g} on {texts} lines, allowed {tolerance:.3g}"
    return Rung("R1", PASS, evidence, numbers={"max_abs_diff": largest, "tolerance": tolerance})


# --- R2 -------------------------------------------------------------------------------------------


def check_metrics(classifier: Path, record: Record) -> Rung:
    """Return rung R2: the test split made again, and what the classifier scores on it.

    Args:
        classifier: The downloaded classifier.
        record: With parameters, dataset and the metrics of then.
    """
    assert record.parameters is not None
    assert record.dataset is not None
    data, train = (record.parameters[name] for name in ("data", "train"))
    expected = record.dataset["splits"]["test"]["sha256"]
    try:
        ledger = read_seen_ledger(data, train["model"])
        if found := source_difference(record, ledger.source_sha256):
            return Rung("R2", FAIL, found.text, (found,))
        test, texts = _make_test_split(ledger, data, train["model"])
        if (digest := split_digest(test.data)) != expected:
            return _failed("R2", "code", f"test split: sha256 {digest} instead of {expected}")
        evaluation = evaluate_test_split(test, texts, classifier, train["metrics"]["average"])
    except DataError as err:
        return _failed("R2", "data", "; ".join(err.faults))
    except BaseModelError as err:
        return _failed("R2", "base", str(err))
    except RegistrationError as err:  # other labels
        return _failed("R2", "data", str(err))
    return _compare_metrics(record, evaluation["metrics"], len(test))


def source_difference(record: Record, found: str) -> Difference | None:
    """Return the difference if the source has another digest than the recorded one."""
    assert record.dataset is not None
    if found == record.dataset["source_sha256"]:
        return None
    return Difference("data", f"sha256 {found} instead of {record.dataset['source_sha256']}")


def _make_test_split(
    ledger: Ledger, data: dict[str, Any], model: dict[str, Any]
) -> tuple[Any, list[str]]:
    """Return the tokens of the test split, as prepare makes them, and its texts."""
    splits, labels = split_ledger(ledger, data)
    tokenizer = load_base_tokenizer(model, labels, data["max_length"])
    test = {"test": splits["test"]}
    tokens = tokenize_splits(test, labels, tokenizer, data["max_length"], ledger)
    return tokens["test"], ledger.texts.of(splits["test"])


def _compare_metrics(record: Record, found: Mapping[str, float], rows: int) -> Rung:
    recorded = recorded_metrics(record)
    if "test/loss_uncalibrated" not in recorded:  # a version's loss was without temperature once
        found = {**found, "test/loss": found["test/loss_uncalibrated"]}
    deltas = {name: found[name] - recorded[name] for name in sorted(recorded.keys() & found.keys())}
    if not deltas:
        return Rung("R2", SKIPPED, "the version has no test metrics")
    worst = max(deltas, key=lambda name: abs(np.nan_to_num(deltas[name], nan=np.inf)))
    far = format_number(abs(deltas[worst]), ".3g")
    evidence = f"{rows:,} rows; largest difference {far}, of {worst}"
    if not abs(deltas[worst]) <= METRIC_TOLERANCE:  # also true of NaN
        text = f"{evidence}, allowed {METRIC_TOLERANCE:g}"
        return _failed("R2", "environment", text, inferred=True)
    return Rung("R2", PASS, f"sha256 and metrics equal: {evidence}", numbers={"deltas": deltas})


def recorded_metrics(record: Record) -> dict[str, float]:
    """Return the test metrics a version was registered with."""
    return {name: value for name, value in record.metrics.items() if name.startswith("test/")}


def _failed(name: str, cause: str, text: str, inferred: bool = False) -> Rung:
    return Rung(name, FAIL, text, (Difference(cause, text, inferred),))


def skip(name: str, why: str) -> Rung:
    """Return a rung that was not tried."""
    return Rung(name, SKIPPED, why)
