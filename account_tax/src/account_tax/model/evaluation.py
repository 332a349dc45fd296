"""A split's rows answered by a loaded classifier, and scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from account_tax.errors import RegistrationError

from .calibration import compute_cross_entropy
from .classifier import LoadedClassifier, load_classifier
from .metrics import (
    compute_classification_metrics,
    compute_confusion_matrix,
    compute_per_class_metrics,
)


def evaluate_test_split(
    test: Any, texts: Sequence[str], folder: Path, average: str
) -> dict[str, Any]:
    """Return how the saved classifier does on a split, computed in float32 on the CPU.

    Args:
        test: A `datasets.Dataset` with input_ids and labels (a ClassLabel).
        texts: What it was made of.
        folder: The saved classifier.
        average: Of F1, precision and recall: macro, micro or weighted.

    Returns:
        rows, labels, average, metrics (`test/…`), per_class and confusion_matrix.
    """
    classifier = load_classifier(folder).merge()
    logits, labels = answer_split(classifier, test)
    logits = classifier.add_ngrams(logits, texts)
    temperature = classifier.calibration.get("temperature", 1.0)
    return score_answers(classifier.labels, logits, labels, average, temperature)


def answer_split(classifier: LoadedClassifier, split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's logits, (N, C), and the class ids, (N,), of a split.

    Raises:
        RegistrationError: If its labels are not those of the data.
    """
    if classifier.labels != split.features["labels"].names:
        raise RegistrationError(
            f"the classifier knows {len(classifier.labels)} labels that are not the "
            f"{len(split.features['labels'].names)} of the data. Train on this data, or prepare "
            "the data it was trained on."
        )
    logits = classifier.logits_of_ids(split["input_ids"])
    return logits, np.asarray(split["labels"], dtype=np.int64)


def score_suppliers(test: Any, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `test/…` rows and accuracy of suppliers that train never saw, and of the others.

    Of a split that says which, by its column unseen; logits, (N, C), and class ids, (N,), are its.
    """
    if "unseen" not in test.column_names:
        return {}
    right, unseen = logits.argmax(-1) == labels, np.asarray(test["unseen"])
    found = {}
    for name, rows in (("unseen", unseen), ("other", ~unseen)):
        found[f"test/{name}_suppliers_rows"] = float(rows.sum())
        if rows.any():
            found[f"test/{name}_suppliers_accuracy"] = float(right[rows].mean())
    return found


def score_answers(
    names: list[str], logits: np.ndarray, labels: np.ndarray, average: str, temperature: float
) -> dict[str, Any]:
    """Return the evaluation of logits, (N, C), against class ids; see `evaluate_test_split`.

    The loss is that of the scores which the temperature makes of the logits, as a version gives
    them.
    """
    metrics = compute_classification_metrics(logits, labels, average)
    metrics["loss"] = compute_cross_entropy(logits / temperature, labels)
    metrics["loss_uncalibrated"] = compute_cross_entropy(logits, labels)
    return {
        "rows": len(labels),
        "labels": names,
        "average": average,
        "metrics": {f"test/{name}": value for name, value in metrics.items()},
        "per_class": compute_per_class_metrics(logits, labels, names),
        "confusion_matrix": compute_confusion_matrix(logits, labels),
    }
