"""The words of `kedro review`: all that is asked, or every fault at once."""

import pytest

from account_tax.errors import Refused
from account_tax.parameters.config import ConfigError
from account_tax.review.request import parse_request
from tests.review.test_command import APPROVE, NOTHING
from tests.test_mlproject import REPOSITORY


def parse(more=(), **given):
    return parse_request(REPOSITORY, NOTHING | given, more)


def test_what_is_not_given_is_the_projects():
    request = parse()
    assert (request.name, request.version, request.decision) == ("account-tax", "challenger", None)
    assert (request.slices, request.waive, request.data) == ([], [], None)
    assert request.registry["gates"]["min_accuracy"] == 0.8


def test_everything_given_arrives():
    request = parse(
        ["--registry.gates.min_f1", "0.9"], **APPROVE, version="3", waive="min_f1, clean_tree",
        expires="2027-06-30", slices="region,kind", data="books.csv", registered_model_name="other",
    )  # fmt: skip
    assert (request.name, request.version, request.data) == ("other", "3", "books.csv")
    assert request.waive == ["min_f1", "clean_tree"]
    assert request.slices == ["region", "kind"]
    assert (request.reviewer, request.expires) == ("Kim", "2027-06-30")
    assert request.registry["gates"]["min_f1"] == 0.9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decision": "aprove"}, "expected one of approve, reject, retire, rollback"),
        ({"decision": "approve", "reason": "good"}, "reviewer: missing"),
        ({"decision": "reject", "reviewer": "Kim"}, "reason: missing"),
        ({"reviewer": "Kim"}, "only beside a decision"),
        ({"waive": "min_f1"}, "only beside a decision"),
        (APPROVE | {"waive": "min_f2"}, "Did you mean min_f1"),
        (APPROVE | {"decision": "reject", "waive": "min_f1"}, "only with decision=approve"),
        (APPROVE | {"decision": "retire", "expires": "2027-01-01"}, "only with decision=approve"),
        ({"history": "yes"}, "expected true or false"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_read(given, message):
    with pytest.raises(Refused, match=message):
        parse(**given)


def test_every_fault_is_named_at_once():
    with pytest.raises(Refused, match="4 problems") as refused:
        parse(decision="aprove", waive="min_f1", verify_history="maybe", reviewer="Kim")
    assert len(str(refused.value).splitlines()) == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--versoin", "3"], "Did you mean version"),
        (["--train.lora.r", "3"], r"only registry\.\* is taken"),
    ],
)
def test_an_option_that_is_none_is_refused(more, message):
    with pytest.raises(Refused, match=message):
        parse(more)


def test_a_gate_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"Did you mean registry\.gates\.min_f1"):
        parse(["--registry.gates.min_f", "1"])
