"""Classification metrics on the `evaluate` library, computed offline.

`evaluate.load` downloads a metric's code from the hub; a metric that carries its own `_compute`
downloads nothing. Training (validation) and registration (test) use the same functions.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, F1, precision and recall of predicted class ids, in one pass."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, F1, precision and recall of a classifier.",
            citation="",
            inputs_description="predictions and references: class ids, (N,)",
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
        )

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, predictions: Sequence[int], references: Sequence[int], average: str
    ) -> dict[str, float]:
        precision, recall, f1, _ = _scores(references, predictions, average=average)
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
        }


def compute_classification_metrics(
    logits: np.ndarray, labels: np.ndarray, average: str = "macro"
) -> dict[str, float]:
    """Return accuracy, f1, precision and recall of the highest logit.

    Args:
        logits: Scores, (N, C).
        labels: Class ids, (N,).
        average: macro, micro or weighted, over the classes that occur in labels or predictions;
            a class never predicted has precision 0.

    Source: sklearn.metrics.precision_recall_fscore_support, zero_division=0.
    """
    predictions = np.argmax(logits, axis=-1)
    # In memory: ranks of one machine would otherwise contend for one cache file. evaluate (0.4.6)
    # makes the cache's folder all the same, and the user's may be read-only.
    with tempfile.TemporaryDirectory() as unused:
        metric = ClassificationMetrics(keep_in_memory=True, cache_dir=unused)
        result = metric.compute(predictions=predictions, references=labels, average=average)
    assert result is not None, "only ranks other than 0 of a distributed metric get None"
    return result


def compute_per_class_metrics(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return label, precision, recall, f1 and support of each class, in the order of the ids.

    The scores of a class that no row has are None: it was not measured.
    """
    columns = _scores(labels, np.argmax(logits, axis=-1), labels=range(len(names)))
    return [
        {
            "label": name,
            **{
                metric: float(score) if support else None
                for metric, score in zip(("precision", "recall", "f1"), scores, strict=True)
            },
            "support": int(support),
        }
        for name, *scores, support in zip(names, *columns, strict=True)
    ]


def compute_confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Return the counts, (C, C): rows are the true classes, columns the predicted ones."""
    classes = range(logits.shape[-1])
    return confusion_matrix(labels, np.argmax(logits, axis=-1), labels=classes).tolist()


def _scores(references: Any, predictions: Any, **options: Any) -> tuple[Any, ...]:
    # Any: scikit-learn's return types depend on `average`, and its zero_division is declared str.
    zero: Any = 0
    return precision_recall_fscore_support(references, predictions, zero_division=zero, **options)
