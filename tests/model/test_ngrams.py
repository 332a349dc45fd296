"""The linear model on n-grams."""

from __future__ import annotations

import zlib
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from account_tax.ledger.sample import sample_ledger
from account_tax.model import ngrams
from account_tax.model.classifier import Ngrams, count_ngrams
from account_tax.model.ngrams import DEFAULTS, NgramsError, fit_ngrams

TEXTS = ["Blue Whale taxi", "blue whale hotel", "카페 라떼", "카페 라떼 두 잔", "taxi, taxi"]
IDS = np.array([0, 0, 1, 1, 0])


def test_its_matrix_is_scikit_learns():
    model = fit_ngrams(TEXTS, IDS, 2, DEFAULTS | {"word": [1, 2], "char": [10, 10]})
    rows, columns, values = model.weigh(TEXTS)
    found = torch.zeros(len(TEXTS), len(model.hashes)).index_put((rows, columns), values)
    expected = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+"
    ).fit_transform(TEXTS)
    assert found.shape == expected.shape  # no word here has ten letters
    np.testing.assert_allclose(found @ found.T, (expected @ expected.T).toarray(), atol=1e-6)


def test_ngrams_of_characters_stay_within_words():
    keys, counts, per_text = count_ngrams(["ab cd", "", "카"], [[9, 9], [2, 3]])
    # " a" "ab" "b " " ab" "ab ", the same of cd; then " 카" "카 " " 카 "
    assert per_text.tolist() == [10, 0, 3]
    assert len(set(keys.tolist())) == len(keys)
    assert counts.tolist() == [1.0] * 13
    spelt = [" a", "ab", "b ", " ab", "ab ", " c", "cd", "d ", " cd", "cd ", " 카", "카 ", " 카 "]
    assert keys.tolist() == [zlib.crc32(each.encode()) | 1 << 32 for each in spelt]


def test_it_is_solved_and_not_left_where_the_solver_was_tired(monkeypatch):
    lines = sample_ledger(1200).drop_duplicates("text")
    ids = np.unique(lines["label"], return_inverse=True)[1]
    texts, others = lines["text"].tolist()[:800], lines["text"].tolist()[800:]
    found = fit_ngrams(texts, ids[:800], 10).logits(others)
    to_the_end = partial(LogisticRegression, C=ngrams.INVERSE_PENALTY, max_iter=20_000, tol=1e-9)
    monkeypatch.setattr(ngrams, "LogisticRegression", lambda **_: to_the_end())
    assert np.abs(found - fit_ngrams(texts, ids[:800], 10).logits(others)).max() < 0.1


def test_it_learns_and_is_the_same_again_from_its_file(tmp_path):
    model = fit_ngrams(TEXTS, IDS, 2)
    assert model.logits(TEXTS).argmax(-1).tolist() == IDS.tolist()
    assert model.logits(["", "qqq"]).tolist() == [model.bias.tolist()] * 2
    save_file(vars(model), tmp_path / "a")
    save_file(vars(fit_ngrams(TEXTS, IDS, 2)), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = Ngrams(**load_file(tmp_path / "a"))
    np.testing.assert_array_equal(again.logits(TEXTS), model.logits(TEXTS))


def test_it_holds_no_words(tmp_path):
    save_file(vars(fit_ngrams(TEXTS * 9, np.tile(IDS, 9), 2)), tmp_path / "model")
    raw = (tmp_path / "model").read_bytes().lower()
    assert not any(word.encode() in raw for text in TEXTS for word in text.lower().split())


def test_an_account_without_rows_is_the_unlikeliest():
    model = fit_ngrams(["taxi", "hotel", "rent"] * 4, np.array([0, 3, 4] * 4), 5)
    logits = model.logits(["unknown"])[0]
    assert logits[1] == logits[2] == logits.min()


def test_the_commonest_ngrams_are_kept():
    few = fit_ngrams(TEXTS, IDS, 2, DEFAULTS | {"max_features": 3})
    assert len(few.hashes) == 3
    assert few.hashes.tolist() == sorted(few.hashes.tolist())


@pytest.mark.parametrize(
    ("texts", "classes", "found"),
    [
        (["taxi", "hotel"], 2, r"none is in 400 of the 2 training rows\. Lower train\.ngrams\.min"),
        (["-", "..."], 2, r"none is in 1 of the 2 training rows\. Shorten train\.ngrams\.word or"),
        (["taxi", "hotel"] * 300, 2, r"400 of the 600 training rows\. Lower train\.ngrams\.min"),
        (["taxi", "hotel"], 100_000, "100,000 accounts leave room for 50 n-grams"),
    ],
)
def test_nothing_to_fit_is_refused(texts, classes, found):
    least = {} if texts[0] == "-" else {"min_rows": 400}
    with pytest.raises(NgramsError, match=found):
        fit_ngrams(texts, np.arange(len(texts)), classes, DEFAULTS | least)
