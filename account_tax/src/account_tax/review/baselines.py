"""What anyone gets without a language model: the commonest label, TF-IDF with a linear model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union

MAJORITY, TFIDF = "majority", "tfidf"
TITLES = {MAJORITY: "the commonest account", TFIDF: "TF-IDF and logistic regression"}
MOST_TRAIN_ROWS = 50_000  # with thousands of classes more rows take longer than the review
FEW_TRAIN_ROWS = 500  # below, a word that occurs once may be all there is of an account
SEED = 42


def predict_baselines(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> dict[str, list[str]]:
    """Return the labels each baseline, trained on the train split, gives to texts.

    Of more than MOST_TRAIN_ROWS rows a sample with a fixed seed is taken.
    """
    rows = np.arange(len(train_texts))
    if len(rows) > MOST_TRAIN_ROWS:
        rows = np.sort(np.random.RandomState(SEED).permutation(rows)[:MOST_TRAIN_ROWS])
    known, answers = (
        np.asarray(column, dtype=object)[rows].tolist() for column in (train_texts, train_labels)
    )
    models = {
        MAJORITY: DummyClassifier(strategy="most_frequent"),
        TFIDF: make_tfidf(len(rows)),
    }
    return {
        name: [str(label) for label in model.fit(known, answers).predict(list(texts))]
        for name, model in models.items()
    }


def make_tfidf(train_rows: int) -> Pipeline:
    """Return the untrained TF-IDF baseline, as strong as it gets without tuning it to the data.

    Words and pairs of them, and parts of words, so that Korean needs no word list. A weak baseline
    would flatter the version beside it: docs/results.md has what this one reaches.
    """
    common = {"sublinear_tf": True, "min_df": 1 if train_rows < FEW_TRAIN_ROWS else 2}
    return make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), **common),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common),
        ),
        LogisticRegression(C=10, max_iter=2000),
    )
