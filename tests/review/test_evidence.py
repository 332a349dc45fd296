import csv
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion
from transformers import AutoTokenizer

from account_tax.errors import Refused
from account_tax.ledger.reading import read_ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.tokens import tokenize_splits
from account_tax.model.classifier import LoadedClassifier
from account_tax.registry.record import Difference, Record
from account_tax.review.evidence import (
    Contender,
    Evidence,
    count_leaked_rows,
    gather_evidence,
    read_slices,
    remake_test_split,
)
from account_tax.storage.prepared import split_digest
from tests.conftest import WORDS

ACCOUNTS = {"meals": WORDS[:5], "travel": WORDS[5:10], "office": WORDS[10:]}
SPLIT = {"train": 0.6, "validation": 0.2, "test": 0.2, "seed": 1, "stratified": True}


def write_ledger(file, rows=150):
    draw = random.Random(0)
    lines = {}
    while len(lines) < rows:
        account = list(ACCOUNTS)[len(lines) % 3]
        words = draw.choices(ACCOUNTS[account], k=4)
        lines.setdefault(" ".join(words), account)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "memo", "label", "region"])
        for number, (text, label) in enumerate(lines.items()):
            region = ["seoul", "busan"][number % 2]
            writer.writerow([text, f"{WORDS[number % 15]} memo", label, region])
    return file


class WordCounts(torch.nn.Module):
    """Logits that follow from the words of a line: how many are of each account."""

    def __init__(self, tokenizer, labels):
        super().__init__()
        weight = torch.zeros(len(tokenizer), len(labels))
        for index, label in enumerate(labels):
            for word in ACCOUNTS.get(label, ()):
                weight[tokenizer.convert_tokens_to_ids(word), index] = 1.0
        self.weight = torch.nn.Parameter(weight)

    def forward(self, input_ids, attention_mask):
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self.weight[input_ids].sum(1))


@pytest.fixture(scope="session")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture
def data(tmp_path):
    return {
        "source": str(write_ledger(tmp_path / "ledger.csv")),
        "text_columns": ["text"],
        "label_column": "label",
        "group_column": None,
        "separator": " | ",
        "max_length": 32,
        "duplicates": "drop",
        "split": SPLIT,
    }


def make_contender(data, tokenizer, number=2, labels=("meals", "office", "travel")):
    """Return a version registered with exactly this data."""
    ledger = read_ledger(data)
    splits, names = split_ledger(ledger, data)
    texts = ledger.with_texts(splits)
    digest = split_digest(tokenize_splits(texts, names, tokenizer, data["max_length"])["test"].data)
    version = ModelVersion("account-tax", number, 0)
    digests = {"data/source": ledger.source_sha256, "data/test": digest}
    settings = {**data, "labels": list(labels)}
    classifier = LoadedClassifier(WordCounts(tokenizer, labels), tokenizer, settings)
    return Contender(version, classifier, make_record(data, digests), 1000)


def make_record(data, digests):
    """Return what a run kept of its data and of their digests."""
    inputs = [{"name": name, "digest": {"sha256": digests[name]}} for name in digests]
    predicate = {"buildDefinition": {"resolvedDependencies": inputs}, "runDetails": {}}
    return Record(parameters={"data": data}, statement={"predicate": predicate})


@pytest.fixture
def challenger(data, tokenizer):
    return make_contender(data, tokenizer)


def gather(challenger, champion=None, source=None, slices=()) -> Evidence:
    note = "" if champion else "no version has the alias champion yet"
    return gather_evidence(challenger, champion, note, source=source, slices=slices)


# --- the rows -------------------------------------------------------------------------------------


def test_the_split_is_the_recorded_one(challenger, data):
    rows = remake_test_split(challenger, None)
    ledger = read_ledger(data)
    splits, _ = split_ledger(ledger, data)
    expected = ledger.with_texts(splits)["test"]
    assert rows.test.drop(columns="seen").equals(expected.drop(columns="seen"))


def test_one_byte_of_the_ledger_is_seen_with_both_digests(challenger, data, tmp_path):
    file = tmp_path / "ledger.csv"
    before = challenger.record.digest("data/source")
    file.write_bytes(file.read_bytes().replace(b"memo,travel", b"mem0,travel", 1))
    after = read_ledger(data).source_sha256
    with pytest.raises(Refused, match="-P data=PATH") as refused:
        remake_test_split(challenger, None)
    assert before in str(refused.value)
    assert after in str(refused.value)


def test_another_split_of_the_same_bytes_is_refused(challenger, data):
    another = data | {"split": SPLIT | {"seed": 2}}
    record = replace(challenger.record, parameters={"data": another})
    other = replace(challenger, record=record)
    with pytest.raises(Refused, match=r"its test split has sha256 [0-9a-f]{64}, recorded is"):
        remake_test_split(other, None)


def test_a_ledger_that_moved_is_given_by_hand(challenger, tmp_path):
    moved = (tmp_path / "ledger.csv").rename(tmp_path / "moved.csv")
    with pytest.raises(Refused, match=r"no such file or folder(.|\n)*-P data=PATH"):
        remake_test_split(challenger, None)
    assert len(remake_test_split(challenger, str(moved)).test) == 30


def test_an_unknown_label_in_the_test_split_is_named(data, tokenizer):
    knows_two = make_contender(data, tokenizer, labels=("meals", "office"))
    with pytest.raises(Refused, match=r"labels that the version does not know: \['travel'\]"):
        remake_test_split(knows_two, None)


def test_a_ledger_with_other_columns_is_refused(challenger, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("memo,label\ntaxi,travel\n")
    with pytest.raises(Refused, match=r"expected the columns \['label', 'text'\]"):
        remake_test_split(challenger, str(other))


def test_a_run_that_recorded_nothing_can_not_be_reviewed(challenger):
    with pytest.raises(Refused, match=r"has no parameters.yml, so"):
        remake_test_split(replace(challenger, record=Record()), None)


def test_a_folder_is_read_split_by_split(data, tokenizer, tmp_path):
    rows = (tmp_path / "ledger.csv").read_text().splitlines(keepends=True)
    folder = tmp_path / "books"
    folder.mkdir()
    for name, part in (("train", rows[1:91]), ("validation", rows[91:121]), ("test", rows[121:])):
        (folder / f"{name}.csv").write_text("".join([rows[0], *part]))
    contender = make_contender(data | {"source": str(folder)}, tokenizer)
    split = remake_test_split(contender, None)
    assert split.read(["text"])["text"].tolist() == split.test["text"].tolist()


# --- slices ---------------------------------------------------------------------------------------


def test_a_slice_has_the_test_rows_own_values(challenger, data):
    rows = remake_test_split(challenger, None)
    parts = read_slices(rows, ["region"], ["text"])
    table = pd.read_csv(data["source"])
    assert parts["region"].tolist() == table["region"].iloc[rows.test["row_id"]].tolist()


def test_columns_that_may_hold_text_are_refused_and_none_of_it_is_shown(challenger, data, tmp_path):
    file = tmp_path / "wide.csv"
    table = pd.read_csv(data["source"])
    table["voucher"] = [f"V{number}" for number in range(len(table))]
    table.to_csv(file, index=False)
    wide = data | {"source": str(file), "split": SPLIT | {"train": 0.4, "test": 0.4}}
    rows = remake_test_split(make_contender(wide, challenger.classifier.tokenizer), None)
    with pytest.raises(Refused) as refused:
        read_slices(rows, ["text", "voucher"], ["text"])
    message = str(refused.value)
    assert "text: the model reads it" in message
    assert "voucher: 60 different values in the test split, at most 30" in message
    assert not any(word in message.split() for word in (*WORDS[:4], "V1"))


def test_a_slice_that_is_no_column_names_those_there_are(challenger):
    rows = remake_test_split(challenger, None)
    with pytest.raises(Refused, match=r"expected the columns \['city', .*found .*'region'"):
        read_slices(rows, ["city"], ["text"])


def test_suppliers_are_told_apart_and_none_is_named(data, tokenizer):
    challenger = make_contender(data | {"supplier_column": "memo"}, tokenizer)
    evidence = gather(challenger)
    rows = remake_test_split(challenger, None)
    assert evidence.slices == {}
    assert evidence.unseen.tolist() == rows.test["unseen"].tolist()
    bare = gather(make_contender(data, tokenizer))
    assert (bare.unseen, bare.amounts) == (None, None)
    with pytest.raises(Refused, match="memo: it holds suppliers, whom no report names"):
        read_slices(rows, ["memo"], ["text"])


# --- the answers ----------------------------------------------------------------------------------


def test_both_answer_the_same_rows_in_their_own_way(data, challenger, tokenizer):
    """The champion reads two columns, joined; its ids are in another order."""
    joined = data | {"text_columns": ["text", "memo"], "separator": " / "}
    champion = make_contender(joined, tokenizer, 1, ("travel", "meals", "office"))
    evidence = gather(challenger, champion)
    for role in ("challenger", "champion"):
        assert len(evidence.answers[role].predicted) == len(evidence.truth) == 30
    right = evidence.answers["challenger"].predicted == evidence.truth
    assert right.all()  # four words of the account
    assert (evidence.answers["champion"].predicted == evidence.truth).mean() > 0.8
    assert not np.allclose(
        evidence.answers["challenger"].scores, evidence.answers["champion"].scores
    )  # the memo's word counts for it


def test_a_champion_of_fewer_accounts_is_wrong_where_it_can_only_be(challenger, data, tokenizer):
    champion = make_contender(data, tokenizer, 1, ("office", "meals"))
    evidence = gather(challenger, champion)
    travel = evidence.truth == evidence.names.index("travel")
    assert evidence.unknown_rows == travel.sum() == 10
    assert not (evidence.answers["champion"].predicted == evidence.truth)[travel].any()
    assert (evidence.answers["champion"].predicted == evidence.truth)[~travel].all()
    assert evidence.answers["champion"].loss is None


def test_a_champion_of_more_accounts_brings_their_names(challenger, data, tokenizer):
    champion = make_contender(data, tokenizer, 1, ("gifts", "meals", "office", "travel"))
    evidence = gather(challenger, champion)
    assert evidence.names == ["meals", "office", "travel", "gifts"]
    assert evidence.answers["champion"].loss is not None


def test_a_champion_that_reads_a_missing_column_is_left_out_with_the_reason(
    challenger, data, tokenizer
):
    champion = make_contender(data, tokenizer, 1)
    champion.classifier.settings["text_columns"] = ["text", "purpose"]
    evidence = gather(challenger, champion)
    assert list(evidence.answers) == ["challenger"]
    assert "reads columns that this ledger does not have" in evidence.champion_note


def test_scores_use_the_versions_own_temperature(challenger):
    plain = gather(challenger).answers["challenger"].scores
    challenger.classifier.settings["calibration"] = {"temperature": 4.0}
    cool = gather(challenger).answers["challenger"].scores
    # Four words of one account: logits 4, 0, 0
    assert plain.max() == pytest.approx(np.exp(4) / (np.exp(4) + 2))
    assert cool.max() == pytest.approx(np.exp(1) / (np.exp(1) + 2))


# --- leaks ----------------------------------------------------------------------------------------


def leaks(challenger, champion):
    rows = remake_test_split(challenger, None)
    return count_leaked_rows(champion, rows.test["text"].tolist(), rows, challenger)


def test_equal_splits_leak_nothing(challenger, data, tokenizer):
    assert leaks(challenger, make_contender(data, tokenizer, 1)) == (0, "")


def test_rows_of_another_split_that_the_champion_trained_on_are_counted(
    challenger, data, tokenizer
):
    other = data | {"split": SPLIT | {"seed": 5}}
    champion = make_contender(other, tokenizer, 1)
    train = split_ledger(read_ledger(other), other)[0]["train"]["row_id"]
    expected = remake_test_split(challenger, None).test["row_id"].isin(train).sum()
    assert expected > 5
    assert leaks(challenger, champion) == (expected, "")


def test_another_ledger_leaks_by_its_texts(challenger, data, tokenizer, tmp_path):
    """A later ledger that repeats the lines under other row numbers."""
    table = pd.read_csv(data["source"])
    table.iloc[::-1].to_csv(tmp_path / "later.csv", index=False)
    champion = make_contender(data | {"source": str(tmp_path / "later.csv")}, tokenizer, 1)
    found, note = leaks(challenger, champion)
    assert found is not None
    assert found > 5
    assert note == ""


def test_a_champions_ledger_that_is_gone_or_changed_is_said(challenger, data, tokenizer, tmp_path):
    file = tmp_path / "older.csv"
    file.write_text((tmp_path / "ledger.csv").read_text() + "taxi taxi,memo,travel,busan\n")
    champion = make_contender(data | {"source": str(file)}, tokenizer, 1)
    file.write_text(file.read_text() + "hotel hotel,memo,travel,busan\n")
    assert leaks(challenger, champion) == (
        None,
        "the ledger the champion was trained on has changed since",
    )
    file.unlink()
    assert leaks(challenger, champion) == (
        None,
        "the ledger the champion was trained on can't be read",
    )
    bare = replace(champion, record=Record())
    assert leaks(challenger, bare) == (None, "the champion's run does not record its data")


# --- baselines ------------------------------------------------------------------------------------


def test_a_run_that_keeps_other_files_than_it_recorded_is_not_reviewed(challenger):
    edited = Difference("configuration", "parameters.yml: sha256 1 instead of sha256 2")
    changed = replace(challenger, record=replace(challenger.record, changed=(edited,)))
    with pytest.raises(Refused, match=r"not keep what it recorded\n  parameters.yml: sha256 1"):
        remake_test_split(changed, None)
