"""Labels that are one account stay one account, and what is none is named."""

from __future__ import annotations

import pytest

from account_tax.errors import Refused
from account_tax.ledger.labels import find_doubtful, read_label_map
from account_tax.ledger.reading import DataError, read_ledger


def rows_of(*labels: str) -> dict[str, int]:
    return dict.fromkeys(labels, 3)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["Travel", "TRAVEL"], "case"),
        (["０８１１", "0811"], "full width"),
        (["0811", "811"], "leading zeros"),
        (["811", "811.0"], "how a number is written"),
        (["0811.00", "0811"], "how a number is written"),
        (["8.11E+02", "811"], "how a number is written"),
        (["1,811", "1811"], "how a number is written"),
        (["여비 교통비", "여비교통비"], "spaces and dashes"),
        (["A-1", "A\u20131"], "spaces and dashes"),
        (['="0811"', "0811"], 'as ="text"'),
        (["'0811", "0811"], 'as ="text"'),
        (["ＴＲＡＶＥＬ", "travel"], "full width, case"),
    ],
)
def test_spellings_of_one_account_are_found_with_what_they_differ_in(labels, kind):
    found = find_doubtful(rows_of(*labels, "rent", "812"))
    assert [set(group) for group in found.alike.values()] == [set(labels)]
    assert ", ".join(found.kinds) == kind


def test_the_spelling_with_most_rows_comes_first():
    found = find_doubtful({"811": 2, "0811": 5, "811.0": 5, "0812": 9})
    assert found.alike == {"0811": {"0811": 5, "811.0": 5, "811": 2}}
    assert found.first_spellings == {"811.0": "0811", "811": "0811"}


@pytest.mark.parametrize(
    "label",
    ["#N/A", "nan", "NULL", "-", "--", "?", "#REF!", "#DIV/0!", "#NV", "None", "N/A", "n.a."],
)
def test_words_for_nothing_are_found(label):
    assert find_doubtful(rows_of(label, "rent")).nulls == {label: 3}


@pytest.mark.parametrize(
    "label",
    [
        "합계",
        "Total",
        "SUMME",
        "1월 합계",
        "월계 합계",
        "Total 2024",
        "rent Total",
        "소계:",
        "계",
        "합 계",
        "Grand Total",
        "총 합계",
        "Sub-total",
        "합계 금액",
        "총계 10건",
        "1月合計",
    ],
)
def test_words_for_a_total_are_found(label):
    assert find_doubtful(rows_of(label, "rent")).totals == {label: 3}


@pytest.mark.parametrize(
    "label",
    [
        "회계",
        "Total Energies",
        "6.5",
        "100",
        "10.05",
        "#Miete",
        "Nanny",
        "계약금",
        "Lump sum",
        "Grand",
    ],
)
def test_an_ordinary_account_is_in_no_doubt(label):
    assert find_doubtful(rows_of(label, "rent", "1", "605")).in_words() == ""


# --- in a ledger --------------------------------------------------------------------------------

LABELS = ["0811", "811", "812", "812", "#N/A", "합계"]


@pytest.fixture
def doubtful(parameters, ledger_csv):
    rows = [(f"secret line {i}", label) for i, label in enumerate(LABELS * 4)]
    rows += [(f"more {i}", "0811") for i in range(2)]
    return lambda **changes: parameters(ledger_csv(*rows), **changes)


def test_strict_names_kinds_and_counts_and_the_key_that_decides(doubtful):
    with pytest.raises(DataError) as caught:
        read_ledger(doubtful(labels="strict"))
    assert caught.value.faults == [
        "data.label_column = label: look like one account (leading zeros): 0811 (6) = 811 (4); "
        "a word for nothing: #N/A (4); a total: 합계 (4). Set data.labels to merge, which joins "
        "one account's spellings and leaves out what is none, or to as_is, which keeps all; or "
        "write the right ones into a file, data.label_map."
    ]


def test_merge_joins_spellings_and_leaves_out_what_is_no_account(doubtful):
    ledger = read_ledger(doubtful(labels="merge"))
    assert ledger.frame["label"].value_counts().to_dict() == {"0811": 10, "812": 8}
    assert (ledger.dropped["null_label"], ledger.dropped["total_label"]) == (4, 4)
    assert ledger.rows_read == len(ledger.frame) + sum(ledger.dropped.values())
    assert ledger.facts()["doubtful accounts"].startswith("look like one account (leading zeros)")


def test_as_is_keeps_all_and_says_so(doubtful):
    ledger = read_ledger(doubtful(labels="as_is"))
    assert set(ledger.frame["label"]) == set(LABELS)
    assert "look like one account" in ledger.facts()["doubtful accounts"]


def test_a_version_that_was_recorded_before_is_read_as_it_was(doubtful):
    data = doubtful()
    del data["labels"], data["label_map"]
    assert set(read_ledger(data).frame["label"]) == set(LABELS)


def test_a_map_from_old_to_new_labels_decides_first(doubtful, tmp_path):
    (tmp_path / "map.csv").write_text("old;new\n811;0811\n812;4000 Miete\n#N/A;\n합계;\n", "cp949")
    ledger = read_ledger(doubtful(labels="strict", label_map=str(tmp_path / "map.csv")))
    assert ledger.frame["label"].value_counts().to_dict() == {"0811": 10, "4000 Miete": 8}
    assert ledger.dropped["no_label"] == 8
    assert ledger.facts()["label map"] == "20 rows have a new account"
    (tmp_path / "map.csv").write_text("old,new\n811,0811\n999,812\n998,812\n")
    ledger = read_ledger(doubtful(labels="merge", label_map=str(tmp_path / "map.csv")))
    words = "4 rows have a new account; 2 of its 3 old ones are not in the ledger"
    assert ledger.facts()["label map"] == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("old,new\na,b\nd,d\na,c\n", "with several new ones: a. Leave one"),
        ("alt,neu\na,b\n", "expected the columns"),
        ("old,new\na,b\nc\n", r"1 of its rows can't be read, the first in line 3: 1 fields"),
        ("", "the file is empty"),
    ],
)
def test_a_map_that_can_not_be_read_is_refused(tmp_path, text, message):
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(Refused, match=message):
        read_label_map(tmp_path / "map.csv")


def test_a_map_that_is_not_there_is_one_of_the_faults(doubtful):
    with pytest.raises(DataError, match=r"data\.label_map = none\.csv: .*No such file"):
        read_ledger(doubtful(label_map="none.csv"))
