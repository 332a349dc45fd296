from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from kedro.io import DataCatalog

from account_tax.ledger.reading import DataError, read_ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.tokens import (
    load_base,
    load_base_tokenizer,
    read_seen_ledger,
    tokenize_splits,
)
from account_tax.pipelines.prepare.nodes import (
    describe_dataset,
    fit_split_ngrams,
    inputs_sha256,
    plan_data,
    plan_prepared,
)
from account_tax.storage.names import DATASETS

CATALOG = Path(__file__).parents[3] / "conf/base/catalog.yml"
NGRAMS = {"enable": True, "word": [1, 2], "char": [2, 4], "min_rows": None, "max_features": 500}

# --- plan ---------------------------------------------------------------------------------------


def test_a_plan_counts_without_tokenizing(parameters, ledger_csv, two_classes, model):
    data = parameters(ledger_csv(*two_classes, ("rent line 0", "rent")))
    plan = plan_data(data, model | {"num_labels": 2})
    assert plan.faults == []
    assert plan.labels == ["rent", "travel"]
    assert plan.rows == {"train": 32, "validation": 4, "test": 4}
    assert plan.facts["rows read"] == "41, left out: 1 duplicate"
    assert plan.facts["rows"] == (
        "train 32 (2 accounts), validation 4 (2 accounts), test 4 (2 accounts)"
    )
    assert plan.source_sha256 == read_ledger(data).source_sha256


def test_a_plan_gathers_the_faults_of_split_and_labels(parameters, ledger_csv, two_classes, model):
    data = parameters(ledger_csv(*two_classes, ("once", "rare")), rare="refuse")
    plan = plan_data(data, model | {"num_labels": 5})
    assert [fault.split(":")[0] for fault in plan.faults] == [
        "data.rare = refuse",
        "train.model.num_labels = 5",
    ]
    (fault,) = plan_data(parameters("none.csv"), model).faults
    assert "no such file" in fault


def test_a_plan_names_the_accounts_that_a_split_can_not_measure(parameters, ledger_csv, model):
    rows = {
        "train": [("1", "a"), ("2", "b"), ("3", "b"), ("4", "c")],
        "validation": [("5", "a")],
        "test": [("6", "a"), ("7", "b"), ("8", "c")],
    }
    for name, each in rows.items():
        path = ledger_csv(*each, name=f"folder/{name}.csv")
    facts = plan_data(parameters(path.parent), model).facts
    assert facts["rows of train alone"] == "validation b (2), c (1)"


def test_a_plan_says_that_there_are_no_ngrams(parameters, ledger_csv, two_classes, model):
    data, whole = parameters(ledger_csv(*two_classes)), model | {"num_labels": 2}
    assert plan_data(data, whole, NGRAMS).faults == []
    long = NGRAMS | {"word": [10, 10], "char": [10, 10]}
    (fault,) = plan_data(data, whole, long).faults
    assert "none is in 1 of the 32 training rows. Shorten train.ngrams.word" in fault
    assert plan_data(data, whole, long | {"enable": False}).faults == []


def test_a_length_that_leaves_no_text_is_no_fault_of_the_ledger(
    parameters, ledger_csv, two_classes, model
):
    data = parameters(ledger_csv(*two_classes), max_length=3)
    prefixed = {"prefix": "query: ", "num_labels": 2}
    assert plan_data(data, model | prefixed).faults == []  # the check of the base has it
    with pytest.raises(DataError, match=r"data\.max_length = 3: special tokens and train\.model"):
        read_seen_ledger(data, model | prefixed)


def test_what_was_prepared_before_is_planned_without_reading_it(
    parameters, ledger_csv, two_classes, model, tmp_path, monkeypatch
):
    data = parameters(ledger_csv(*two_classes, ("once", "rare"), ("rent line 0", "rent")))
    train = {"model": model | {"num_labels": 3}, "ngrams": {"enable": False}}
    monkeypatch.chdir(tmp_path)
    assert plan_prepared(data, train) is None
    save_prepared(data, train)
    read = plan_data(data, train["model"])
    assert read.rows["train"] == 33
    monkeypatch.setattr("account_tax.pipelines.prepare.nodes.read_seen_ledger", None)
    assert plan_prepared(data, train) == read
    assert plan_prepared(data, {**train, "model": model | {"num_labels": 5}}).faults
    assert plan_prepared(data | {"seed": 7}, train) is None
    with Path(data["source"]).open("a") as file:
        file.write("another,rent\n")
    assert plan_prepared(data, train) is None


def save_prepared(data, train):
    """Save below this folder what `prepare` saves, as Kedro does."""
    base, _ = load_base(train["model"])
    pinned = {**train["model"], "revision": base.revision, "sha256": base.sha256}
    train = {**train, "model": pinned}
    ledger = read_seen_ledger(data, pinned)
    splits, labels = split_ledger(ledger, data)
    tokenizer = load_base_tokenizer(pinned, labels, data["max_length"])
    tokenized = tokenize_splits(splits, labels, tokenizer, data["max_length"], ledger)
    facts = describe_dataset(ledger, splits, tokenized, tokenizer, {}, data, train)
    saved = {"tokenized_datasets": tokenized, "tokenizer": tokenizer, "ngrams": {}}
    entries = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))
    catalog = DataCatalog.from_config({name: entries[name] for name in DATASETS})
    for name, value in (saved | {"dataset_metadata": facts}).items():
        catalog.save(name, value)


# --- n-grams --------------------------------------------------------------------------------------


def test_ngrams_are_fitted_to_train_and_answer_the_other_splits(prepared):
    data, splits, tokenized, _ = prepared()
    ledger = read_ledger(data)
    found = fit_split_ngrams(ledger, splits, tokenized, NGRAMS)
    for name in ("validation", "test"):
        likely = found[name].argmax(-1).tolist()
        assert [["rent", "travel"][index] for index in likely] == splits[name]["label"].tolist()
    assert fit_split_ngrams(ledger, splits, tokenized, NGRAMS | {"enable": False}) == {}


def test_a_ledger_without_common_ngrams_is_a_fault_of_its_data(prepared, parameters, ledger_csv):
    _, splits, tokenized, _ = prepared()
    signs = [(chr(0x2600 + number), "xy"[number % 2]) for number in range(40)]
    ledger = read_ledger(parameters(ledger_csv(*signs)))
    with pytest.raises(DataError, match="none is in 1 of the 32 training rows"):
        fit_split_ngrams(ledger, splits, tokenized, NGRAMS)


# --- describe -----------------------------------------------------------------------------------


def test_the_description_counts_what_is_there(prepared):
    data, _, _, facts = prepared()
    assert facts["rows"]["read"] == facts["rows"]["kept"] == 40
    assert set(facts["rows"]["dropped"].values()) == {0}
    assert facts["splits"]["train"]["rows"] == 32
    assert facts["splits"]["train"]["classes"] == {"rent": 16, "travel": 16}
    assert facts["labels"] == data["labels"] == "strict"
    assert facts["split"] == data["split"]
    assert json.loads(json.dumps(facts)) == facts


def test_a_split_by_time_is_planned_and_described_by_its_days(
    parameters, ledger_csv, tokenizer, model
):
    rows = [(f"line {i}", "ab"[i % 2], f"2024-01-{i // 2 + 1:02}", f"shop {i}") for i in range(40)]
    path = ledger_csv(*rows, columns="text label date shop")
    data = parameters(path, time_column="date", supplier_column="shop")
    assert plan_data(data, model).facts["rows"] == (
        "train 32 (2 accounts, 2024-01-01 to 2024-01-16), "
        "validation 4 (2 accounts, 2024-01-17 to 2024-01-18, 4 rows of suppliers new to train), "
        "test 4 (2 accounts, 2024-01-19 to 2024-01-20, 4 rows of suppliers new to train)"
    )
    ledger = read_ledger(data)
    splits, labels = split_ledger(ledger, data)
    tokenized = tokenize_splits(ledger.with_texts(splits), labels, tokenizer, data["max_length"])
    facts = describe_dataset(ledger, splits, tokenized, tokenizer, {}, data, {"model": model})
    assert facts["days"]["validation"] == ["2024-01-17", "2024-01-18"]
    assert tokenized["test"]["unseen"] == [True] * 4
    found = {"dates": "2024-01-01 to 2024-01-20", "suppliers": "40 in the column shop"}
    assert facts["typed_columns"] == found


def test_the_description_holds_no_text(prepared):
    _, splits, _, facts = prepared()
    written = json.dumps(facts)
    assert not any(text in written for text in splits["test"]["text"])


def test_token_lengths_are_those_before_truncation(parameters, ledger_csv, tokenizer, model):
    # "a " * n gives n + 2 tokens; of 3..102 tokens, 95 rows have more than 7.
    path = ledger_csv(*(("a " * n, "xy"[n % 2]) for n in range(1, 101)))
    data = parameters(path, max_length=7)
    ledger = read_ledger(data)
    splits, labels = split_ledger(ledger, data)
    tokenized = tokenize_splits(ledger.with_texts(splits), labels, tokenizer, 7)
    facts = describe_dataset(ledger, splits, tokenized, tokenizer, {}, data, {"model": model})
    assert facts["token_length"] == {
        "p50": 52,
        "p90": 92,
        "p95": 97,
        "p99": 101,
        "max": 102,
        "truncated_share": 0.95,
    }


def test_digests_follow_the_content(prepared):
    _, _, _, first = prepared()
    _, _, _, again = prepared()
    _, _, _, other = prepared(split={"seed": 1})
    assert first == again
    for name in ("train", "validation", "test"):
        assert first["splits"][name]["sha256"] != other["splits"][name]["sha256"]
    assert first["inputs_sha256"] != other["inputs_sha256"]


# --- inputs ---------------------------------------------------------------------------------------


def test_the_key_covers_data_model_and_source(parameters, model):
    data, train = parameters("x.csv"), {"model": model, "ngrams": NGRAMS}
    key = inputs_sha256(data, train, "s")
    same = train | {"model": model | {"num_labels": 9}, "lora": {"r": 4}}
    assert key == inputs_sha256(dict(reversed(data.items())), same, "s")
    others = [
        inputs_sha256(data, train, "t"),
        inputs_sha256(data | {"max_length": 33}, train, "s"),
        inputs_sha256(parameters("x.csv", split={"seed": 1}), train, "s"),
        inputs_sha256(data, train | {"model": model | {"revision": "abc"}}, "s"),
        inputs_sha256(data, train | {"model": model | {"name": "bert-base-uncased"}}, "s"),
        inputs_sha256(data, train | {"ngrams": NGRAMS | {"min_rows": 3}}, "s"),
        inputs_sha256(data, {"model": model}, "s"),
    ]
    assert len({key, *others}) == 8


def test_the_key_follows_the_label_map(parameters, model, tmp_path):
    data = parameters("x.csv", label_map=str(tmp_path / "map.csv"))
    keys = {inputs_sha256(data, {"model": model}, "s")}
    for text in ("old,new\na,b\n", "old,new\na,c\n"):
        (tmp_path / "map.csv").write_text(text)
        keys.add(inputs_sha256(data, {"model": model}, "s"))
    assert len(keys) == 3


def test_the_key_follows_the_tokenizer_of_a_local_base(parameters, model, tmp_path):
    (tmp_path / "vocab.txt").write_text("a\n")
    local = model | {"name": str(tmp_path)}
    before = inputs_sha256(parameters("x.csv"), {"model": local}, "s")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert inputs_sha256(parameters("x.csv"), {"model": local}, "s") != before
