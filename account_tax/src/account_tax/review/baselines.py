"""What anyone gets without a language model: the commonest label, TF-IDF with a linear model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

MAJORITY, TFIDF = "majority", "tfidf"
TITLES = {MAJORITY: "the commonest account", TFIDF: "TF-IDF and logistic regression"}
MOST_TRAIN_ROWS = 50_000  # with thousands of classes more rows take longer than the review
SEED = 42


def predict_baselines(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> dict[str, list[str]]:
    """Return the labels each baseline, trained on the train split, gives to texts.

    Characters rather than words, so that Korean needs no word list. Of more than MOST_TRAIN_ROWS
    rows a sample with a fixed seed is taken.
    """
    rows = np.arange(len(train_texts))
    if len(rows) > MOST_TRAIN_ROWS:
        rows = np.sort(np.random.RandomState(SEED).permutation(rows)[:MOST_TRAIN_ROWS])
    known, answers = (
        np.asarray(column, dtype=object)[rows].tolist() for column in (train_texts, train_labels)
    )
    models = {
        MAJORITY: DummyClassifier(strategy="most_frequent"),
        TFIDF: make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4)),
            LogisticRegression(max_iter=2000),
        ),
    }
    return {
        name: [str(label) for label in model.fit(known, answers).predict(list(texts))]
        for name, model in models.items()
    }
