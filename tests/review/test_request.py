from datetime import date, timedelta

import pytest

from account_tax.errors import Refused
from account_tax.review.request import read_request
from tests.commands import as_words
from tests.test_mlproject import REPOSITORY

NEXT_YEAR = str(date.today() + timedelta(days=365))
APPROVE = {"decision": "approve", "reviewer": "Kim", "reason": "better on every account"}


def parse(more=(), **given):
    return read_request(REPOSITORY, [*as_words(given), *more])


def test_what_is_not_given_is_the_projects():
    request = parse()
    assert (request.name, request.reference, request.decision) == (
        "account-tax",
        "challenger",
        None,
    )
    assert (request.slices, request.waive, request.data) == ([], [], None)
    assert request.registry["gates"]["min_accuracy"] == 0.8


def test_everything_given_arrives():
    request = parse(
        ["--registry.gates.min_f1", "0.9"], **APPROVE, version="3", waive="min_f1, clean_tree",
        expires=NEXT_YEAR, slices="region,kind", data="books.csv", registered_model_name="other",
    )  # fmt: skip
    assert (request.name, request.reference, request.data) == ("other", "3", "books.csv")
    assert request.waive == ["min_f1", "clean_tree"]
    assert request.slices == ["region", "kind"]
    assert (request.reviewer, request.expires) == ("Kim", NEXT_YEAR)
    assert request.registry["gates"]["min_f1"] == 0.9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decision": "aprove"}, "expected one of approve, reject, retire, rollback"),
        ({"decision": "approve", "reason": "good"}, r"reviewer \(-P reviewer\): blank"),
        ({"decision": "reject", "reviewer": "Kim"}, r"reason \(-P reason\): blank"),
        ({"reviewer": "Kim"}, "belongs to a decision"),
        ({"waive": "min_f1"}, "belongs to a decision"),
        ({"history": "true", "version": "3"}, r"version \(-P version\): the history takes none"),
        (APPROVE | {"decision": "rollback", "version": "3"}, "decision = rollback takes none"),
        (APPROVE | {"decision": "retire", "slices": "region"}, "decision = retire takes none"),
        (APPROVE | {"waive": "min_f2"}, "Did you mean min_f1"),
        (APPROVE | {"decision": "reject", "waive": "min_f1"}, "belongs to approve only"),
        (APPROVE | {"decision": "retire", "expires": NEXT_YEAR}, "belongs to approve only"),
        (APPROVE | {"expires": "yesterday"}, r"yesterday \(-P expires\): expected a date such as"),
        (APPROVE | {"expires": "2020-01-31"}, "expected a day after today"),
        (APPROVE | {"history": "true"}, r"approve \(-P decision\): history only shows"),
        (APPROVE | {"verify_history": "true"}, "Leave one of them out"),
        ({"version": "a b"}, r"a b \(--version\): expected a version's number or an alias"),
        ({"slices": "region,,kind"}, "expected a list, each a name"),
        ({"history": "maybe"}, "expected true or false"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_read(given, message):
    with pytest.raises(Refused, match=message):
        parse(**given)


def test_every_fault_is_named_at_once():
    with pytest.raises(Refused, match="3 problems") as refused:
        parse(["--versoin", "3"], decision="aprove", verify_history="maybe")
    assert len(str(refused.value).splitlines()) == 4
    with pytest.raises(Refused, match="3 problems in the options"):
        parse(decision="reject", waive="min_f1")
    with pytest.raises(Refused) as refused:
        parse(
            ["stray", "--registry.gates.min_f1", "2", "--registry.gates.f1", "1", "--history=no_"],
            decision="approve", reviewer="Kim", expires="yesterday", registered_model_name="a/b",
        )  # fmt: skip
    said = str(refused.value).splitlines()
    assert said[0] == "7 problems in the options"
    keys = (
        "stray",
        "history",
        "registered_",
        "registry.gates.min",
        "registry.gates.f1",
        "rea",
        "exp",
    )
    for key in keys:
        assert any(line.startswith(f"  {key}") for line in said), said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--versoin", "3"], "Did you mean version"),
        (["--train.lora.r", "3"], r"train \(--train\.lora\.r\): unknown parameter"),
    ],
)
def test_an_option_that_is_none_is_refused(more, message):
    with pytest.raises(Refused, match=message):
        parse(more)


def test_a_gate_that_is_none_is_refused():
    with pytest.raises(Refused, match=r"Did you mean registry\.gates\.min_f1"):
        parse(["--registry.gates.min_f", "1"])


def test_history_may_be_a_bare_flag():
    for words in (["--history", "--verify-history"], ["--history", "true"], ["--version", "3"]):
        asked = parse(words)
        flags = "--history" in words, "--verify-history" in words
        assert (asked.history, asked.verify_history) == flags
