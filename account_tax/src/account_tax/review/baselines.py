"""What anyone gets without a language model: the commonest label, n-grams with a linear model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAJORITY, TFIDF = "majority", "tfidf"
TITLES = {MAJORITY: "the commonest account", TFIDF: "TF-IDF and logistic regression"}


def predict_baselines(
    train_texts: list[str], train_labels: Sequence[str], texts: Sequence[str]
) -> dict[str, list[str]]:
    """Return the labels each baseline, trained on the train split, gives to texts."""
    # Imported here: it brings torch and scikit-learn, and the gates ask for the names above alone.
    from account_tax.model.ngrams import NgramsError, fit_ngrams, sample_rows

    names, ids = np.unique(np.asarray(train_labels, dtype=object), return_inverse=True)
    common = np.full(len(texts), np.bincount(ids).argmax())
    rows = sample_rows(len(ids))
    try:
        fitted = fit_ngrams([train_texts[row] for row in rows], ids[rows], len(names))
        likely = fitted.logits(texts).argmax(-1)
    except NgramsError:  # a version's ledger may have none, or too many accounts
        likely = common
    return {
        title: [str(label) for label in names[found]]
        for title, found in ((MAJORITY, common), (TFIDF, likely))
    }
