"""From the rungs to the verdict."""

import pytest

from account_tax.registry.record import Difference, Record
from account_tax.reproduce.rungs import Rung, Verdict, _compare_metrics, judge, skip

GOOD = [Rung(name, "pass", "") for name in ("R0", "R1", "R2")]


def test_a_bitwise_training_is_bitwise():
    assert judge([*GOOD, Rung("R3", "pass", "", verdict="bitwise")]) == Verdict("bitwise", None, "")


def test_another_environment_that_gives_the_same_bits_is_named_and_bitwise():
    other = Difference("environment", "numpy 2.2 instead of 2.1")
    verdict = judge([*GOOD, Rung("R3", "pass", "", (other,), verdict="bitwise")])
    assert (verdict.word, verdict.cause) == ("bitwise", "environment")
    assert verdict.reason == "environment: numpy 2.2 instead of 2.1"


def test_nothing_trained_is_no_verdict():
    assert judge(GOOD).word is None
    assert judge([*GOOD, skip("R3", "not recorded: parameters.yml")]).word is None


def test_the_cause_first_in_order_is_named_whichever_rung_found_it():
    first = Rung("R1", "fail", "", (Difference("environment", "e"),))
    second = Rung("R2", "fail", "", (Difference("data", "d"),))
    assert judge([GOOD[0], first, second]) == Verdict("different", "data", "data: d")


def test_a_package_that_was_seen_to_differ_is_named_before_what_a_result_suggests():
    guess = Rung("R2", "fail", "", (Difference("environment", "test/loss differs", inferred=True),))
    seen = Difference("environment", "peft 0.22 instead of 0.21")
    verdict = judge([*GOOD[:2], guess, Rung("R3", "fail", "", (seen,), verdict="different")])
    assert verdict.reason == "environment: peft 0.22 instead of 0.21"
    assert judge([*GOOD[:2], guess]).reason == "environment: test/loss differs"


def test_a_failed_rung_outweighs_the_same_weights():
    failed = Rung("R2", "fail", "", (Difference("data", "d"),))
    bitwise = Rung("R3", "pass", "", verdict="bitwise")
    assert judge([*GOOD[:2], failed, bitwise]).word == "different"


def test_without_a_known_cause_the_rung_is_named():
    verdict = judge([*GOOD, Rung("R3", "fail", "weights differ by 0.1", verdict="different")])
    assert (verdict.word, verdict.cause) == ("different", None)
    assert verdict.reason == "R3: weights differ by 0.1; no input is known to differ"


@pytest.mark.parametrize(
    ("recorded", "status"),
    [
        ({"test/loss": 0.3, "test/loss_uncalibrated": 1.7}, "pass"),
        ({"test/loss": 1.7}, "pass"),  # a version of before, when it was without temperature
        ({"test/loss": 0.3}, "fail"),
        ({"test/loss": 1.7, "test/loss_uncalibrated": 1.7}, "fail"),
    ],
)
def test_a_loss_is_compared_with_what_it_was(recorded, status):
    found = {"test/loss": 0.3, "test/loss_uncalibrated": 1.7}
    assert _compare_metrics(Record(metrics=recorded), found, 9).status == status
