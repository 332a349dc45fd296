"""What the review history says of a version that somebody wants to use."""

from __future__ import annotations

import pytest

from account_tax.errors import Refused
from account_tax.registry.find import find_version
from account_tax.registry.history import HISTORY_TAG
from account_tax.registry.registry_state import check_standing, find_expired, read_registry
from tests.review.test_decision import take, take_all

pytest_plugins = ["tests.registered"]  # client, new_model, model


def use(client, model, reference, allow=False):
    return check_standing(client, find_version(client, model, reference), reference, allow)


def test_one_whose_registration_was_killed_before_its_cold_check_is_refused(client, model):
    client.delete_model_version_tag(model, "2", "verified")
    with pytest.raises(Refused, match=r"before its cold check: `kedro register --run .* does it"):
        use(client, model, "2")
    assert "cold check" in use(client, model, "2", allow=True)
    take_all(client, model, "approve 2")  # by a person who saw that gate
    assert use(client, model, "2") == ""


def test_a_version_that_names_no_run_is_of_no_training(client, model, tmp_path):
    made = client.create_model_version(model, tmp_path.as_uri())
    try:
        with pytest.raises(Refused, match=f"{model} version {made.version}: it names no run"):
            use(client, model, str(made.version), allow=True)
    finally:
        client.delete_model_version(model, made.version)


@pytest.mark.parametrize("reference", ["1", "champion"])
def test_without_a_decision_an_alias_is_what_it_is(client, model, reference):
    client.set_registered_model_alias(model, "champion", "1")
    assert use(client, model, reference) == ""


def test_what_is_approved_superseded_or_pending_may_be_used(client, model):
    take_all(client, model, "approve 1", "approve 2")
    for reference in ("champion", "previous_champion", "1", "2", "3"):
        assert use(client, model, reference) == ""


@pytest.mark.parametrize(
    ("decisions", "moved", "said"),
    [
        (["approve 1", "reject 2"], "2", "champion is version 1 by the review history"),
        (["approve 1"], "3", "champion is version 1 by the review history"),
        (["reject 1"], "1", "champion is not set by the review history"),
    ],
)
def test_a_champion_that_nobody_decided_on_is_refused(client, model, decisions, moved, said):
    take_all(client, model, *decisions)
    client.set_registered_model_alias(model, "champion", moved)
    with pytest.raises(Refused, match=f"version {moved}: {said}.*-P allow_unapproved=true"):
        use(client, model, "champion")
    assert said in use(client, model, "champion", allow=True)


@pytest.mark.parametrize(
    ("decisions", "state"), [(["reject 1"], "rejected"), (["approve 1", "retire 1"], "retired")]
)
@pytest.mark.parametrize("reference", ["1", "of-mine"])
def test_a_version_that_was_judged_is_refused_by_any_name(
    client, model, decisions, state, reference
):
    take_all(client, model, *decisions)
    client.set_registered_model_alias(model, "of-mine", "1")
    with pytest.raises(Refused, match=f"version 1: it is {state} by the review history"):
        use(client, model, reference)


def test_another_content_than_the_one_judged_is_refused(client, model):
    take_all(client, model, "approve 1")
    client.set_model_version_tag(model, "1", "content_sha256", "0" * 64)
    with pytest.raises(Refused, match=r"version 1: entry 1 is about the content 1111.* is 0000"):
        use(client, model, "champion")


def test_an_approval_ends_with_its_last_day(client, model):
    take(client, model, "approve", 1, expires="2026-03-02")
    take(client, model, "approve", 2, expires="2999-12-31")
    with pytest.raises(Refused, match="its approval ended on 2026-03-02"):
        use(client, model, "1")
    assert use(client, model, "champion") == ""
    assert find_expired(read_registry(client, model)) == [
        "previous_champion is version 1, and its approval ended on 2026-03-02."
    ]


def test_a_history_that_was_changed_vouches_for_nothing(client, model):
    take_all(client, model, "approve 1")
    client.set_registered_model_tag(model, HISTORY_TAG, "0" * 32)
    with pytest.raises(Refused, match="Somebody changed one of them"):
        use(client, model, "champion")
