"""Each gate on a version that passes it, one that fails it, and one where nothing was measured."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
from mlflow.models import MetricThreshold

from account_tax.parameters.config import ConfigError, resolve
from account_tax.parameters.schema import Gates
from account_tax.review.gates import Measured, evaluate_gates, gate_names, judge, meets

REPOSITORY = Path(__file__).parents[2]
NOTHING = dict.fromkeys(get_type_hints(Gates)) | {"class_floor_rows": 20}
GOOD = Measured(
    challenger={
        "accuracy": 0.9,
        "f1": 0.8,
        "loss": 0.3,
        "calibration_error": 0.05,
        "coverage": 0.6,
        "unseen_accuracy": 0.65,
    },
    reference={"accuracy": 0.88, "f1": 0.8},
    reference_title="account-tax version 1 (champion)",
    missing="",
    difference={
        "accuracy": {"value": 0.02, "low": 0.004, "high": 0.036},
        "f1": {"value": 0.0, "low": -0.02, "high": 0.02},
    },
    over_tfidf={"accuracy": {"value": 0.0, "low": -0.008, "high": 0.008}},
    classes=[
        {"label": "접대비", "rows": 40, "recall": 0.9, "f1": 0.85, "hits": 36, "claimed": 45},
        {"label": "통신비", "rows": 25, "recall": 0.5, "f1": 0.6, "hits": 12, "claimed": 15},
        {"label": "소모품비", "rows": 4, "recall": 0.0, "f1": 0.0, "hits": 0, "claimed": 5},
    ],
    tags={"verified": "true", "reproduced": "within tolerance"},
    run_tags={"dirty": "false"},
    environment={"differences": []},
    checked_by="0123456789abcdef" * 4,
)
NO_CHAMPION = replace(
    GOOD, reference=None, difference=None, missing="the champion could not be scored"
)
UNRECORDED = replace(GOOD, tags={}, run_tags={}, environment=None, checked_by="")


def with_nan(metric):
    return replace(GOOD, challenger=GOOD.challenger | {metric: math.nan})


def run(name, wanted, measured=GOOD, **more):
    (result,) = evaluate_gates(NOTHING | {name: wanted} | more, measured)
    return result


@pytest.mark.parametrize(
    ("name", "wanted", "status", "found"),
    [
        ("min_accuracy", 0.9, "passed", "0.9000"),  # MLflow: >= passes
        ("min_accuracy", 0.901, "failed", "0.9000"),
        ("min_f1", 0.75, "passed", "0.8000"),
        ("min_unseen_accuracy", 0.6, "passed", "0.6500"),
        ("min_unseen_accuracy", 0.7, "failed", "0.6500"),
        ("max_loss", 0.3, "passed", "0.3000"),
        ("max_loss", 0.29, "failed", "0.3000"),
        ("accuracy_min_absolute_change", 0.01, "passed", "+0.0200"),
        ("accuracy_min_absolute_change", 0.05, "failed", "+0.0200"),
        ("accuracy_min_relative_change", 0.02, "passed", "+0.0227"),  # 0.02 / 0.88
        ("accuracy_min_relative_change", 0.03, "failed", "+0.0227"),
        ("f1_min_relative_change", 0.0, "passed", "+0.0000"),
        ("f1_min_absolute_change", 0.001, "failed", "+0.0000"),
        ("accuracy_change_lower_bound", 0.0, "passed", "+0.0040"),
        ("f1_change_lower_bound", -0.01, "failed", "-0.0200"),
        ("tfidf_accuracy_change_lower_bound", -0.01, "passed", "-0.0080"),
        ("tfidf_accuracy_change_lower_bound", -0.005, "failed", "-0.0080"),
        ("min_class_recall", 0.5, "passed", "0.5000 (통신비)"),
        ("min_class_recall", 0.6, "failed", "0.5000 (통신비)"),
        ("min_class_f1", 0.7, "failed", "0.6000 (통신비)"),
        ("min_class_rows", 4, "passed", "4 (소모품비)"),
        ("min_class_rows", 5, "failed", "4 (소모품비)"),
        ("max_calibration_error", 0.05, "passed", "0.0500"),
        ("max_calibration_error", 0.04, "failed", "0.0500"),
        ("min_coverage", 0.7, "failed", "0.6000"),
        ("locked_environment", True, "passed", "0 differences"),
        ("clean_tree", True, "passed", "clean"),
        ("cold_load_verified", True, "passed", "true"),
        ("signed", True, "passed", "key 0123456789abcdef"),
        ("reproduced", "within tolerance", "passed", "within tolerance"),
        ("reproduced", "bitwise", "failed", "within tolerance"),
    ],
)
def test_a_gate_shows_both_numbers(name, wanted, status, found):
    result = run(name, wanted)
    assert (result.name, result.status, result.found) == (name, status, found)
    assert result.wanted
    assert result.why.endswith(".")
    if isinstance(wanted, float):
        assert f"{wanted:g}" in result.wanted


@pytest.mark.parametrize(
    ("name", "wanted", "measured", "reason"),
    [
        ("accuracy_min_absolute_change", 0.01, NO_CHAMPION, "could not be scored"),
        ("f1_min_relative_change", 0.01, NO_CHAMPION, "could not be scored"),
        ("f1_change_lower_bound", -0.05, NO_CHAMPION, "could not be scored"),
        ("locked_environment", True, UNRECORDED, "does not record its environment"),
        ("clean_tree", True, UNRECORDED, "does not record its commit"),
        ("signed", True, UNRECORDED, "No key is known to check a signature with"),
        ("reproduced", "bitwise", UNRECORDED, "Nobody has reproduced"),
        (
            "max_loss",
            0.5,
            replace(GOOD, challenger=GOOD.challenger | {"loss": None}),
            "could not be measured",
        ),
        ("max_loss", 0.5, with_nan("loss"), "The loss is NaN"),
        ("min_f1", 0.5, with_nan("f1"), "The macro-F1 is NaN"),
        ("f1_min_absolute_change", -1.0, with_nan("f1"), "The macro-F1 is NaN"),
    ],
)
def test_what_was_not_measured_does_not_pass(name, wanted, measured, reason):
    result = run(name, wanted, measured)
    assert result.status == "not measured"
    assert not result.passed
    assert reason in result.why


def test_a_class_floor_counts_accounts_with_enough_rows():
    assert run("min_class_recall", 0.5, class_floor_rows=4).status == "failed"
    assert run("min_class_recall", 0.5, class_floor_rows=50).status == "not measured"


def small(*rows: tuple[int, int, int]) -> Measured:
    """Return accounts of so many test rows, hits and rows filed under them."""
    classes = [
        {"label": f"s{i}", "rows": n, "hits": hits, "claimed": claimed, "recall": 0.0, "f1": 0.0}
        for i, (n, hits, claimed) in enumerate(rows)
    ]
    return replace(GOOD, classes=classes)


TWELVE = small(*[(2, 1, 2)] * 12)  # 24 test rows, 12 of them found


@pytest.mark.parametrize(
    ("name", "wanted", "status", "found"),
    [
        ("min_class_recall", 0.5, "passed", "0.5000 (12 small accounts together)"),
        ("min_class_recall", 0.6, "failed", "0.5000 (12 small accounts together)"),
        (
            "min_class_f1",
            0.5,
            "passed",
            "0.5000 (12 small accounts together)",
        ),
        ("min_class_rows", 24, "passed", "24 (12 small accounts together)"),
        ("min_class_rows", 25, "failed", "24 (12 small accounts together)"),
    ],
)
def test_small_accounts_have_one_floor_together(name, wanted, status, found):
    result = run(name, wanted, TWELVE, pool_small_accounts=True)
    assert (result.status, result.found) == (status, found)
    assert run("min_class_recall", 0.5, TWELVE).status == "not measured"


def test_small_accounts_stand_beside_the_large_ones_where_they_have_the_rows():
    alone = run("min_class_recall", 0.5, pool_small_accounts=True)  # 4 rows together are too few
    assert (alone.status, alone.found) == ("passed", "0.5000 (통신비)")
    assert "Too few test rows, so not measured: 1 small account together." in alone.why
    beside = replace(GOOD, classes=[*GOOD.classes[:2], *TWELVE.classes])
    assert "3 accounts" in run("min_class_recall", 0.5, beside, pool_small_accounts=True).why
    none = run("min_class_recall", 0.5, small((4, 4, 4)), pool_small_accounts=True)
    assert none.status == "not measured"


def test_what_has_too_few_rows_to_be_measured_says_how_it_can_be():
    result = run("min_class_recall", 0.5, TWELVE)
    assert "At most 2 test rows (s0), fewer than class_floor_rows = 20" in result.why
    assert "pool_small_accounts" in result.why


def test_rare_accounts_are_not_asked_for_test_rows():
    rare = replace(GOOD, classes=[*GOOD.classes, *small((0, 0, 1)).classes], rare=["s0"])
    result = run("min_class_rows", 4, rare)
    assert (result.status, result.found) == ("passed", "4 (소모품비)")
    assert "Rare, so not measured: s0." in result.why
    assert run("min_class_rows", 4, replace(rare, rare=[])).status == "failed"


@pytest.mark.parametrize(
    ("statuses", "outcome", "sentence"),
    [
        ("pp", "passed", "All 2 gates passed."),
        ("pfn", "failed", "1 of 3 gates failed: b. 1 was not measured: c."),
        ("pff", "failed", "2 of 3 gates failed: b, c."),
        ("pnn", "not measured", "None of 3 gates failed, and 2 were not measured: b, c."),
    ],
)
def test_failed_and_not_measured_are_two_things(statuses, outcome, sentence):
    words = {"p": "passed", "f": "failed", "n": "not measured"}
    gates = [
        {"name": name, "status": words[each]} for name, each in zip("abc", statuses, strict=False)
    ]
    assert judge(gates) == (outcome, sentence)


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("locked_environment", replace(GOOD, environment={"differences": ["torch 2.1"]})),
        ("clean_tree", replace(GOOD, run_tags={"dirty": "true"})),
        # It began dirty and went on from a clean commit.
        ("clean_tree", replace(GOOD, run_tags={"dirty": "false", "code_before": "dirty=true"})),
        ("cold_load_verified", UNRECORDED),
    ],
)
def test_a_version_that_came_to_be_otherwise_fails(name, measured):
    assert run(name, True, measured).status == "failed"


def test_only_what_is_asked_for_is_a_gate():
    assert evaluate_gates(NOTHING | {"clean_tree": False}, GOOD) == []


def test_every_key_of_the_section_is_a_gate_or_a_setting():
    settings = {"class_floor_rows", "pool_small_accounts"}
    assert set(gate_names()) == set(get_type_hints(Gates)) - settings


@pytest.mark.parametrize(
    ("threshold", "value", "baseline", "holds"),
    [
        # From MLflow's own words in mlflow.models.MetricThreshold.
        ({"min_absolute_change": 0.1}, 0.75, 0.5, True),
        ({"min_relative_change": 0.5}, -0.5, -1.0, True),  # a negative baseline's magnitude counts
        ({"min_relative_change": 0.1}, 0.0, 0.0, False),  # a baseline of 0: better by 1e-10
        ({"min_relative_change": 0.1}, 0.001, 0.0, True),
        ({"min_absolute_change": 0.1, "greater_is_better": False}, 0.4, 0.5, True),
        ({"min_absolute_change": 0.2, "greater_is_better": False}, 0.4, 0.5, False),
    ],
)
def test_changes_mean_what_mlflow_means(threshold, value, baseline, holds):
    asked = MetricThreshold(**{"greater_is_better": True, **threshold})
    assert meets(asked, value, baseline) is holds


def test_a_gate_is_set_by_its_dotted_name():
    resolved = resolve(REPOSITORY, [("registry.gates.min_f1", "0.9")])
    assert resolved.values["registry"]["gates"]["min_f1"] == 0.9


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("min_f", "0.9", "Did you mean registry.gates.min_f1"),
        ("min_f1", "90", "expected a number from 0 to 1"),
        ("reproduced", "yes", "expected one of bitwise, within tolerance, or null"),
    ],
)
def test_a_gate_that_can_not_be_is_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        resolve(REPOSITORY, [(f"registry.gates.{key}", value)])


def test_gates_do_not_change_what_a_configuration_is():
    plain, strict = (
        resolve(REPOSITORY, pairs).sha256 for pairs in ([], [("registry.gates.min_f1", "0.99")])
    )
    assert plain == strict
