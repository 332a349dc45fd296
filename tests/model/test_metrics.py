import socket

import evaluate
import numpy as np
import pytest

from account_tax.model.metrics import (
    compute_classification_metrics,
    compute_confusion_matrix,
    compute_per_class_metrics,
)

# Three classes, true ids 0 0 0 1 1 2, predicted 0 0 1 1 2 2.
LABELS = np.array([0, 0, 0, 1, 1, 2])
LOGITS = np.eye(3)[[0, 0, 1, 1, 2, 2]]


def test_macro_metrics_equal_the_ones_by_hand():
    result = compute_classification_metrics(LOGITS, LABELS, "macro")
    # precision 1, 1/2, 1/2; recall 2/3, 1/2, 1; f1 4/5, 1/2, 2/3
    assert result == pytest.approx(
        {
            "accuracy": 4 / 6,
            "precision": 2 / 3,
            "recall": (2 / 3 + 1 / 2 + 1) / 3,
            "f1": (4 / 5 + 1 / 2 + 2 / 3) / 3,
        }
    )


def test_micro_f1_is_accuracy_and_weighted_f1_weighs_by_support():
    assert compute_classification_metrics(LOGITS, LABELS, "micro")["f1"] == pytest.approx(4 / 6)
    weighted = compute_classification_metrics(LOGITS, LABELS, "weighted")["f1"]
    assert weighted == pytest.approx((3 * 4 / 5 + 2 * 1 / 2 + 1 * 2 / 3) / 6)


def test_a_class_never_predicted_counts_as_zero():
    logits = np.eye(2)[[0, 0]]
    result = compute_classification_metrics(logits, np.array([0, 1]), "macro")
    assert result["f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_metrics_need_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert compute_classification_metrics(LOGITS, LABELS)["accuracy"] == pytest.approx(4 / 6)


def test_half_precision_logits_are_accepted():
    assert compute_classification_metrics(LOGITS.astype(np.float16), LABELS)["accuracy"] > 0.6


def test_per_class_metrics_list_absent_classes_with_support_zero():
    rows = compute_per_class_metrics(np.eye(3)[[0, 1]], np.array([0, 1]), ["a", "b", "c"])
    assert [row["label"] for row in rows] == ["a", "b", "c"]
    assert [row["support"] for row in rows] == [1, 1, 0]
    assert rows[0]["f1"] == 1.0
    assert rows[2]["f1"] is rows[2]["precision"] is rows[2]["recall"] is None


def test_confusion_matrix_has_true_classes_as_rows():
    assert compute_confusion_matrix(LOGITS, LABELS) == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_nothing_is_written_to_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "file" / "metrics")
    assert compute_classification_metrics(np.eye(2), np.array([0, 1]))["f1"] == 1.0
