"""Training and predict read the same of ledgers as they really come, where there are some."""

import pytest

from benchmarks.ledger_cases import (
    FOLDER,
    find_cases,
    have_same_texts,
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
