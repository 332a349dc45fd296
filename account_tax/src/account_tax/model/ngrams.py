"""Fitting the linear model on n-grams that stands beside the encoder, and alone as a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from account_tax.errors import Refused

from .classifier import Ngrams, count_ngrams

DEFAULTS = {"word": [1, 2], "char": [2, 4], "min_rows": None, "max_features": 50_000}
MIN_ROWS = 2  # that have an n-gram, where a person sets nothing else
FEW_ROWS = 500  # below, 1: an n-gram that one row has may be all there is of an account
MOST_ROWS = 200_000  # more take longer and add next to nothing; a sample with a fixed seed is taken
MOST_WEIGHTS = 5_000_000  # F * C: 10 MB in float16; what the solver holds is 50 times that
FEWEST_FEATURES = 100
INVERSE_PENALTY = 10.0  # C of logistic regression, the same for every ledger (docs/results.md)
COUNTED_ROWS = 10_000  # rows counted at once; bounds the memory
SEED = 42


class NgramsError(Refused):
    """There is nothing to fit."""


def sample_rows(count: int) -> np.ndarray:
    """Return which of so many rows are enough to fit to, rising; all, or `MOST_ROWS` of them."""
    if count <= MOST_ROWS:
        return np.arange(count)
    return np.sort(np.random.RandomState(SEED).permutation(count)[:MOST_ROWS])


def fit_ngrams(
    texts: list[str], ids: np.ndarray, classes: int, params: Mapping[str, Any] = DEFAULTS
) -> Ngrams:
    """Return the model fitted to texts; the same on any number of cores.

    Args:
        texts: Of the train split, N; of many those of `sample_rows`.
        ids: Their class ids, (N,), 0 to C - 1.
        classes: C.
        params: word, char, min_rows and max_features, as in train.ngrams.

    Raises:
        NgramsError: If no n-gram is in enough rows, or there are too many classes.
    """
    hashes, rows_with = choose_ngrams(texts, len(texts), classes, params)
    sizes = torch.tensor([params["word"], params["char"]])
    idf = np.log((1 + len(texts)) / (1 + rows_with)) + 1
    shape = (len(hashes), classes)
    empty = Ngrams(
        sizes, torch.from_numpy(hashes), torch.from_numpy(idf.astype(np.float32)),
        torch.zeros(shape, dtype=torch.float16), torch.zeros(classes),
    )  # fmt: skip
    rows, columns, values = (part.numpy() for part in empty.weigh(texts))
    matrix = csr_matrix((values, (rows, columns)), shape=(len(texts), len(hashes)))
    empty.weights[:], empty.bias[:] = map(torch.from_numpy, _fit(matrix, ids, shape))
    return empty


def choose_ngrams(
    texts: Sequence[str], rows: int, classes: int, params: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the n-grams to fit to, rising, and how many of the texts have each.

    Args:
        texts: Of the train split, the first ones or all.
        rows: How many it has.
        classes: See `fit_ngrams`.
        params: Likewise.

    Raises:
        NgramsError: As `fit_ngrams`.
    """
    room = min(params["max_features"], MOST_WEIGHTS // classes)
    if room < min(FEWEST_FEATURES, params["max_features"]):
        raise NgramsError(
            f"train.ngrams: {classes:,} accounts leave room for {room} n-grams, of "
            f"{MOST_WEIGHTS:,} weights. Set train.ngrams.enable to false."
        )
    sizes = torch.tensor([params["word"], params["char"]])
    least = params["min_rows"] or (1 if rows < FEW_ROWS else MIN_ROWS)
    hashes, rows_with = _choose(texts, sizes, least, room)
    if not len(hashes):
        mend = "Shorten train.ngrams.word or char" if least == 1 else "Lower train.ngrams.min_rows"
        raise NgramsError(
            f"train.ngrams: of words of {params['word']} and characters of {params['char']} none "
            f"is in {least:,} of the {rows:,} training rows. {mend}, or set "
            "train.ngrams.enable to false."
        )
    return hashes, rows_with


def _choose(
    texts: Sequence[str], sizes: torch.Tensor, least: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the commonest n-grams, rising, and how many rows have each."""
    hashes, rows_with = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, len(texts), COUNTED_ROWS):
        keys, *_ = count_ngrams(texts[start : start + COUNTED_ROWS], sizes.tolist())
        hashes, places = np.unique(np.concatenate([hashes, keys]), return_inverse=True)
        known = len(places) - len(keys)
        added = np.bincount(places[known:], minlength=len(hashes))
        added[places[:known]] += rows_with
        rows_with = added
    order = np.argsort(-rows_with, kind="stable")[:most]
    kept = np.sort(order[rows_with[order] >= least])
    return hashes[kept], rows_with[kept]


def _fit(
    matrix: csr_matrix, ids: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights, (F, C), and biases, (C,), of a logistic regression."""
    with threadpool_limits(1):  # sums in one order, whatever cores there are
        fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(matrix, ids)
    weights, bias = fitted.coef_.T, fitted.intercept_
    if len(fitted.classes_) == 2:  # one column says it all there
        weights, bias = np.hstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    whole = np.zeros(shape, np.float32)
    whole[:, fitted.classes_] = weights
    biases = np.full(
        shape[1], bias.min(), np.float32
    )  # an account without a row is the unlikeliest
    biases[fitted.classes_] = bias
    return whole, biases
