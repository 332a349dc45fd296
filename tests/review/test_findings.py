import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from account_tax.registry.record import Record
from account_tax.review.findings import find, gate_results
from account_tax.review.report import render_html, render_markdown

from .conftest import LABELS, RUN, make_contender, make_record


def test_the_champion_is_what_a_version_is_compared_with(findings):
    assert findings["reference"]["key"] == "champion"
    models = findings["models"]
    assert list(models) == ["challenger", "champion", "majority", "tfidf"]
    change = models["challenger"]["accuracy"]["value"] - models["champion"]["accuracy"]["value"]
    assert np.isclose(findings["difference"]["accuracy"]["value"], change)


def test_without_a_champion_it_is_the_better_baseline(first_findings):
    assert first_findings["reference"]["key"] == "tfidf"
    assert list(first_findings["models"]) == ["challenger", "majority", "tfidf"]
    statuses = {gate["name"]: gate["status"] for gate in first_findings["gates"]}
    assert statuses["f1_change_lower_bound"] == "passed"


def test_a_champion_that_can_not_be_scored_is_no_comparison(evidence, gates):
    """Its numbers would stand for nothing, and no baseline may take its place unsaid."""
    answers = {"challenger": evidence.answers["challenger"]}
    note = "account-tax version 2 reads columns that this ledger does not have"
    found = find(replace(evidence, answers=answers, champion_note=note), gates)
    statuses = {gate["name"]: gate["status"] for gate in found["gates"]}
    assert statuses["f1_change_lower_bound"] == "not measured"
    assert found["outcome"] != "passed"
    assert any(note in warning for warning in found["warnings"])


def test_a_version_may_come_from_a_run_that_recorded_nothing(evidence, gates):
    bare = make_contender(3, Record())
    found = find(replace(evidence, challenger=bare), gates)
    shown = [row for rows in found["differences"].values() for row in rows]
    assert {row["challenger"] for row in shown if row["what"] == "commit"} == {"not recorded"}
    statuses = {gate.name: gate.status for gate in gate_results(found)}
    assert statuses["clean_tree"] == statuses["locked_environment"] == "not measured"


def test_rare_accounts_of_the_record_are_named_and_not_measured(evidence, gates):
    dataset = {"rare": "train_only", "min_rows": 3, "rare_accounts": {LABELS[0]: 2}}
    rare = make_contender(3, make_record(16, dataset=make_record(16).dataset | dataset))
    truth = np.maximum(evidence.truth, 1)  # no test row of the first account
    found = find(replace(evidence, challenger=rare, truth=truth), gates)
    assert found["rare"] == f"With fewer than 3 different texts, so in train only: {LABELS[0]} (2)."
    (gate,) = [each for each in found["gates"] if each["name"] == "min_class_rows"]
    assert gate["status"] == "passed"
    assert find(evidence, gates)["rare"] == ""


def test_leaked_and_unknown_rows_are_counted_in_words(evidence, gates):
    found = find(replace(evidence, leaked_rows=12, unknown_rows=7), gates)
    leaked, unknown = found["warnings"]
    assert "trained on 12 of these 120 test rows" in leaked
    assert "7 of the 120 test rows belong to accounts that the champion does not know" in unknown


def test_a_leak_that_can_not_be_looked_for_is_said(evidence, gates):
    note = "the ledger the champion was trained on has changed since"
    found = find(replace(evidence, leaked_rows=None, leak_note=note), gates)
    assert [note in warning for warning in found["warnings"]] == [True]


def test_rows_of_suppliers_new_to_train_are_scored_beside_the_others(evidence, gates):
    unseen = np.arange(len(evidence.truth)) < 4  # so few are shown all the same
    found = find(replace(evidence, unseen=pd.Series(unseen)), gates)
    right = evidence.answers["challenger"].predicted == evidence.truth
    new, others = found["slices"]["supplier in train"]
    assert (new["value"], new["rows"]) == ("suppliers that train never saw", 4)
    assert new["challenger"]["accuracy"] == right[:4].mean()
    assert (others["value"], others["rows"]) == ("others", len(unseen) - 4)
    for shown in (render_markdown(found | RUN), render_html(found | RUN)):
        assert "suppliers that train never saw" in shown
    assert "supplier in train" not in find(evidence, gates)["slices"]
    asked = gates | {"min_unseen_accuracy": 1.0}
    for least, names in ((5, []), (4, ["min_unseen_accuracy"])):
        some = replace(evidence, unseen=pd.Series(unseen))
        outcomes = find(some, asked | {"class_floor_rows": least})
        assert outcomes["warnings"] == [
            "The gate min_unseen_accuracy is not asked: 4 test rows are of suppliers that train "
            "never saw, and it takes 5 (registry.gates.class_floor_rows)."
        ] * (not names)
        found = [gate for gate in outcomes["gates"] if gate["name"] == "min_unseen_accuracy"]
        assert [gate["name"] for gate in found] == names, "asked where there are enough rows"
        assert all(gate["found"] == f"{right[:4].mean():.4f}" for gate in found)
    none = find(replace(evidence, unseen=pd.Series(unseen & False)), gates)["slices"][
        "supplier in train"
    ]
    assert [each["value"] for each in none] == ["others"]


def test_the_share_of_the_amount_that_is_filed_right_stands_beside_that_of_the_rows(
    evidence, gates
):
    amounts = np.where(np.arange(len(evidence.truth)) < 10, -1000.0, 1.0)
    amounts[-1] = np.nan
    found = find(replace(evidence, amounts=pd.Series(amounts)), gates)
    right = evidence.answers["challenger"].predicted == evidence.truth
    share = np.nansum(abs(amounts)[right]) / np.nansum(abs(amounts))
    assert found["amounts"]["shares"]["challenger"] == pytest.approx(share)
    assert set(found["amounts"]["shares"]) == set(found["models"])
    assert (found["amounts"]["rows"], found["amounts"]["unread"]) == (119, 1)
    for render in (render_html, render_markdown):
        shown = render(found | RUN)
        assert "of the amount" in shown
        assert f"{share:.1%}" in shown
        assert "of the amount" not in render(find(evidence, gates) | RUN)
    none = replace(evidence, amounts=pd.Series(amounts * 0))
    assert find(none, gates)["amounts"] is None


def test_only_keys_that_differ_are_shown_with_both_values(findings):
    rows = findings["differences"]["configuration"]
    assert rows == [{"what": "train.lora.r", "challenger": "16", "champion": "8"}]
    packages = {row["what"]: row for row in findings["differences"]["environment"]}
    assert packages["numpy"] == {"what": "numpy", "challenger": "2.16", "champion": "2.8"}
    assert "torch" not in packages


def test_accounts_are_counted_and_told_apart(findings):
    (row,) = (row for row in findings["differences"]["data"] if "accounts" in row["what"])
    assert row["challenger"] == row["champion"]
    assert re.fullmatch(r"3, [0-9a-f]{12}", row["challenger"])


def test_an_unrecorded_configuration_is_not_taken_for_an_equal_one(evidence, gates):
    bare = make_contender(2, make_record(8, parameters=None))
    found = find(replace(evidence, champion=bare), gates)
    assert found["differences"]["configuration"] == [
        {"what": "all keys", "challenger": "recorded", "champion": "not recorded"}
    ]


def test_disagreements_without_a_champion_are_with_the_ledger(first_findings, first_evidence):
    scored = first_evidence.answers["challenger"]
    wrong = scored.predicted != first_evidence.truth
    assert len(first_findings["disagreements"]) == min(20, wrong.sum())
    first = first_findings["disagreements"][0]
    assert first["challenger_score"] == scored.scores[wrong].max()
    assert (first["champion"], first["challenger"] == first["true"]) == (None, False)


def test_findings_are_json_and_hold_no_secret_of_the_source(findings):
    text = json.dumps(findings)
    assert "books/ledger.csv" in text
    assert "secret" not in text


def test_the_same_evidence_gives_the_same_findings(evidence, gates):
    first, second = (json.dumps(find(evidence, gates)) for _ in range(2))
    assert first == second
