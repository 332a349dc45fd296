"""Decisions against a real store: what is allowed, what moves, and what an interruption leaves."""

from __future__ import annotations

import inspect
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from account_tax.errors import Failed, Refused
from account_tax.processes.groups import Interrupted
from account_tax.registry.registry_state import DEPLOYMENT_TAG, HEAD_TAG, settle, verify_history
from account_tax.review.allowed import Proposal
from account_tax.review.decision import decide
from tests.registered import FAILED, NOT_MEASURED, NOW, PASSED, read_history, state_of

pytest_plugins = ["tests.registered"]  # client, new_model, model

GIVEN = {"reviewer": "kim", "reason": "looked at it", "now": NOW, "run_id": "a" * 32}


def take(client, model, decision, version, **changes):
    seen = changes.pop("entries_seen", None)
    gates = [PASSED] if decision == "approve" else []
    proposal = Proposal(decision, **{"gates": gates, **GIVEN, **changes})
    return decide(client, model, proposal, version, seen)


def take_all(client, model, *decisions):
    """Take decisions given as "approve 1", "rollback"."""
    for each in decisions:
        decision, _, version = each.partition(" ")
        take(client, model, decision, version)


def states(client, model):
    """Return the state of each version as its tag shows it."""
    versions = client.search_model_versions(f"name = '{model}'", order_by=["version_number ASC"])
    return [state_of(version) for version in versions]


def aliases(client, model):
    return {name: int(n) for name, n in client.get_registered_model(model).aliases.items()}


def picture(client, model):
    """Return all that a decision may move: aliases, tags, entries."""
    registered = client.get_registered_model(model)
    versions = client.search_model_versions(f"name = '{model}'")
    tags = {version.version: dict(version.tags) for version in versions}
    for each in (registered.tags, *tags.values()):
        each.pop("review_history", None)  # where the history is: true whatever was decided
    entries = [entry.sha256 for entry in read_history(client, model)]
    return dict(registered.aliases), dict(registered.tags), tags, entries


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decisions", "state"),
    [
        ([], "pending"),
        (["approve 1"], "approved"),
        (["reject 1"], "rejected"),
        (["approve 1", "retire 1"], "retired"),
    ],
)
@pytest.mark.parametrize("decision", ["approve", "reject", "retire"])
def test_no_move_but_the_four_is_allowed(client, model, decisions, state, decision):
    take_all(client, model, *decisions)
    assert states(client, model)[0] == state
    legal = {("pending", "approve"), ("pending", "reject"), ("approved", "retire")}
    before = picture(client, model)
    if (state, decision) in legal:
        take(client, model, decision, 1)
        assert states(client, model)[0] == {"approve": "approved", "reject": "rejected"}.get(
            decision, "retired"
        )
    else:
        with pytest.raises(Refused, match=f"version 1 is {state}. Allowed from there: "):
            take(client, model, decision, 1)
        assert picture(client, model) == before


def test_the_tag_that_deployment_jobs_wait_for_follows_the_state(client, model):
    take_all(client, model, "approve 1", "reject 2", "approve 3", "retire 3")
    values = [client.get_model_version(model, n).tags[DEPLOYMENT_TAG] for n in "123"]
    assert values == ["Approved", "Rejected", "Retired"]


def test_a_decision_is_told_with_what_it_moved(client, model):
    take_all(client, model, "approve 1")
    told = take(client, model, "approve", "2").message
    assert f"{model} version 2: approve, pending → approved, entry 2" in told
    assert "champion is version 2, was version 1" in told
    assert "previous_champion is version 1, was not set" in told
    assert "kim is not the author lee is advisory" in told


def test_a_version_may_be_named_by_its_alias(client, model):
    client.set_registered_model_alias(model, "challenger", "3")
    assert take(client, model, "approve", "challenger").entry.version == 3


def test_an_unknown_version_is_refused_with_those_there_are(client, model):
    with pytest.raises(Refused, match="There are the versions 1, 2, 3"):
        take(client, model, "approve", "7")


def test_an_unknown_model_is_refused(client):
    with pytest.raises(Refused, match=r"Registered Model with name=nobody not found.*Nothing was"):
        take(client, "nobody", "approve", 1)


# --- who, why, which gates ------------------------------------------------------------------------


def test_every_fault_is_said_at_once_and_nothing_changes(client, model):
    before = picture(client, model)
    with pytest.raises(Refused) as refusal:
        take(
            client, model, "approve", 1,
            reviewer=" Lee", reason=" \n", gates=[PASSED, FAILED, NOT_MEASURED],
            waive=["acuracy", "accuracy", "min_unseen_accuracy"], expires="2026-03-01",
        )  # fmt: skip
    said = str(refusal.value)
    for part in (
        f"8 problems with the decision to approve {model} version 1",
        "reason (-P reason): blank",
        "reviewer = Lee (-P reviewer): also the author of the version",
        "gate calibration_error: failed, found 0.09; wanted at most 0.05",
        "gate reproduced: not measured; wanted within tolerance. Nobody tried. Waive it",
        "waive = acuracy (-P waive): no such gate. Did you mean accuracy?",
        "waive = min_unseen_accuracy (-P waive): this gate is not asked of this version.",
        "waive = accuracy (-P waive): this gate passed. Leave it out.",
        "expires = 2026-03-01 (-P expires): expected a day after today, 2026-03-01.",
        "Nothing was changed.",
    ):
        assert part in said
    assert picture(client, model) == before


@pytest.mark.parametrize(
    ("gates", "status"),
    [([PASSED, NOT_MEASURED], 4), ([FAILED, NOT_MEASURED], 2), ([FAILED], 2)],
)
def test_a_gate_that_was_only_not_measured_ends_otherwise(client, model, gates, status):
    with pytest.raises(Refused) as refusal:
        take(client, model, "approve", 1, gates=gates)
    assert refusal.value.status == status


def test_gates_that_did_not_pass_can_be_waived_by_name(client, model):
    gates, waive = [PASSED, FAILED, NOT_MEASURED], ["calibration_error", "reproduced"]
    entry = take(client, model, "approve", 1, gates=gates, waive=waive).entry
    assert entry.waived == waive
    assert entry.gates[1] == {
        "name": "calibration_error", "status": "failed", "found": "0.09", "wanted": "at most 0.05",
    }  # fmt: skip


def test_waivers_and_expiry_belong_to_an_approval(client, model):
    with pytest.raises(Refused, match=r"waive \(-P waive\): belongs(.|\n)*expires \(-P expires\)"):
        take(client, model, "reject", 1, gates=[FAILED], waive=[FAILED.name], expires="2027-01-01")


def test_gates_do_not_hinder_a_rejection(client, model):
    entry = take(client, model, "reject", 1, gates=[FAILED], reviewer="lee").entry
    assert (entry.state_to, entry.gates[0]["status"]) == ("rejected", "failed")


def test_an_unknown_decision_is_refused(client, model):
    with pytest.raises(Refused, match=r"decision = aprove .* expected approve, reject, retire or"):
        take(client, model, "aprove", 1)


def test_an_unknown_author_is_waived_by_name_or_hinders(client, new_model):
    model = new_model(author="")
    before = picture(client, model)
    with pytest.raises(Refused, match=r"no mlflow\.user(.|\n)*-P waive=known_author"):
        take(client, model, "approve", 1)
    assert picture(client, model) == before
    decision = take(client, model, "approve", 1, waive=["known_author"])
    assert "The author is not known" in decision.message
    assert read_history(client, model)[0].waived == ["known_author"]


def test_a_known_author_is_not_waived(client, model):
    with pytest.raises(Refused, match=r"waive = known_author .* the author is lee"):
        take(client, model, "approve", 1, waive=["known_author"])


def test_an_expiry_is_kept_on_the_version(client, model):
    take(client, model, "approve", 1, expires="2026-12-31")
    assert client.get_model_version(model, "1").tags["review_expires"] == "2026-12-31"
    with pytest.raises(Refused, match="expected a date such as 2027-01-31"):
        take(client, model, "approve", 2, expires="next year")


def test_an_approval_with_a_last_day_is_renewed(client, model):
    later = NOW.replace(day=9)
    take_all(client, model, "approve 2")
    take(client, model, "approve", 1, expires="2026-03-02")
    take(client, model, "approve", 1, expires="2026-12-31", now=later)
    assert client.get_model_version(model, "1").tags["review_expires"] == "2026-12-31"
    assert aliases(client, model) == {"champion": 1, "previous_champion": 2}
    take(client, model, "approve", 1, now=later)  # from now on without a last day
    assert "review_expires" not in client.get_model_version(model, "1").tags
    with pytest.raises(Refused, match=r"version 1 is approved\. Allowed from there: retire"):
        take(client, model, "approve", 1, now=later)
    assert verify_history(client, model) == []


def test_a_version_of_unknown_content_is_refused(client, model):
    client.delete_model_version_tag(model, "1", "content_sha256")
    with pytest.raises(Refused, match="version 1 has no tag content_sha256"):
        take(client, model, "approve", 1)


def test_evidence_older_than_the_last_decision_is_refused(client, model):
    take_all(client, model, "approve 1")
    before = picture(client, model)
    with pytest.raises(Refused, match=r"entry 1, approve of version 1 by kim.*Review the version"):
        take(client, model, "approve", 2, entries_seen=0)
    assert picture(client, model) == before
    take(client, model, "approve", 2, entries_seen=1)


# --- what serves ----------------------------------------------------------------------------------

SERVING = [
    (["approve 1"], {"champion": 1}),
    (["approve 1", "approve 2"], {"champion": 2, "previous_champion": 1}),
    (["approve 1", "approve 2", "approve 3"], {"champion": 3, "previous_champion": 2}),
    (["approve 1", "reject 2"], {"champion": 1}),
    (["approve 1", "approve 2", "rollback"], {"champion": 1, "previous_champion": 2}),
    (["approve 1", "approve 2", "rollback", "rollback"], {"champion": 2, "previous_champion": 1}),
    (["approve 1", "approve 2", "retire 1"], {"champion": 2}),
    (["approve 1", "approve 2", "retire 2"], {"previous_champion": 1}),
    (["approve 1", "approve 2", "retire 2", "rollback"], {"champion": 1}),
    (["approve 1", "approve 2", "retire 2", "approve 3"], {"champion": 3, "previous_champion": 1}),
    # Two back: the version that was left is retired, and the one before it is next.
    (
        ["approve 1", "approve 2", "approve 3", "rollback", "retire 3", "rollback"],
        {"champion": 1, "previous_champion": 2},
    ),
]


@pytest.mark.parametrize(("decisions", "serving"), SERVING, ids=[", ".join(d) for d, _ in SERVING])
def test_aliases_follow_the_decisions(client, model, decisions, serving):
    take_all(client, model, *decisions)
    assert aliases(client, model) == serving
    assert read_history(client, model)[-1].aliases_after == serving
    assert verify_history(client, model) == []


def test_other_aliases_stay(client, model):
    client.set_registered_model_alias(model, "challenger", "3")
    take_all(client, model, "approve 1", "retire 1")
    assert aliases(client, model) == {"challenger": 3}


def test_without_a_previous_champion_there_is_no_rollback(client, model):
    take_all(client, model, "approve 1")
    with pytest.raises(Refused, match="there is no previous_champion to go back to"):
        take(client, model, "rollback", "")


def test_a_superseded_champion_stays_approved(client, model):
    take_all(client, model, "approve 1", "approve 2")
    assert states(client, model) == ["approved", "approved", "pending"]


def test_a_rollback_to_an_expired_approval_says_so(client, model):
    take(client, model, "approve", 1, expires="2026-03-02")
    take_all(client, model, "approve 2")
    later = take(client, model, "rollback", None, now=NOW.replace(day=9))
    assert "The approval of version 1 ended on 2026-03-02." in later.message


def test_a_champion_from_before_the_history_is_kept_as_previous(client, model):
    client.set_registered_model_alias(model, "champion", "1")
    take_all(client, model, "approve 2")
    assert aliases(client, model) == {"champion": 2, "previous_champion": 1}
    assert verify_history(client, model) == []
    back = take(client, model, "rollback", "")
    assert "Version 1 served before, but was never approved here." in back.message
    assert states(client, model)[0] == "pending"


def test_a_rejection_leaves_a_champion_from_before_the_history(client, model):
    client.set_registered_model_alias(model, "champion", "1")
    take_all(client, model, "reject 2")
    assert aliases(client, model) == {"champion": 1}
    take_all(client, model, "reject 1")
    assert aliases(client, model) == {}


def test_a_deleted_former_champion_is_passed_over(client, model):
    take_all(client, model, "approve 1", "approve 2", "approve 3")
    client.delete_model_version(model, "2")
    assert take(client, model, "rollback", "").entry.version == 1
    assert aliases(client, model)["champion"] == 1
    assert verify_history(client, model) == [
        "version 2, approved by the history, is no longer registered."
    ]


# --- two at once ----------------------------------------------------------------------------------


class Overtaken(MlflowClient):
    """A client whose user is slow: somebody else decides between its reading and its recording."""

    def __init__(self, uri, other):
        super().__init__(uri)
        self._other = other

    def log_text(self, *given, **how):
        if other := self._other:
            self._other = None
            other()
        return super().log_text(*given, **how)


@pytest.mark.parametrize("earlier", [[], ["approve 1"]])
def test_who_is_overtaken_is_refused_and_changes_nothing(client, model, earlier):
    take_all(client, model, *earlier)
    slow = Overtaken(client.tracking_uri, lambda: take(client, model, "approve", 2))
    with pytest.raises(Refused, match=r"another decision .* was recorded at the same time"):
        take(slow, model, "approve", 3, reviewer="park")
    assert states(client, model)[1:] == ["approved", "pending"]
    assert aliases(client, model)["champion"] == 2
    assert [entry.reviewer for entry in read_history(client, model)[len(earlier) :]] == ["kim"]
    assert verify_history(client, model) == []
    run_id = client.get_registered_model(model).tags["review_history"]
    assert len(client.list_artifacts(run_id, "entries")) == len(earlier) + 1


class HeldUp(MlflowClient):
    """A client that is held up between recording its decision and moving the first alias."""

    def __init__(self, uri, meanwhile):
        super().__init__(uri)
        self._meanwhile = meanwhile

    def set_registered_model_alias(self, *given):
        if meanwhile := self._meanwhile:
            self._meanwhile = None
            meanwhile()
        super().set_registered_model_alias(*given)


def test_who_was_held_up_does_not_show_an_old_state_for_long(client, model):
    def meanwhile():
        take_all(client, model, "approve 2", "retire 1")

    take(HeldUp(client.tracking_uri, meanwhile), model, "approve", 1)
    assert states(client, model) == ["retired", "approved", "pending"]
    assert aliases(client, model) == {"champion": 2}
    assert verify_history(client, model) == []


# --- a registry that goes away --------------------------------------------------------------------

WRITES = (
    *("create_experiment", "create_run", "update_run", "set_experiment_tag"),
    *("rename_experiment", "set_registered_model_tag", "set_model_version_tag"),
    *("delete_registered_model_alias", "log_text", "log_param", "set_registered_model_alias"),
)


class GoesAway(MlflowClient):
    """A client whose server is gone from the k-th write on; done or not before it went."""

    def __init__(self, uri, last, answered):
        super().__init__(uri)
        self.left, self._answered, self.gone = last, answered, False

    def _call(self, name, given, how):
        if self.gone:
            raise MlflowException("connection refused")
        method = getattr(MlflowClient, name)
        if name not in WRITES:
            return method(self, *given, **how)
        self.left -= 1
        self.gone = self.left == 0
        if self.gone and not self._answered:
            raise MlflowException("connection refused")
        answer = method(self, *given, **how)
        if self.gone:
            raise MlflowException("connection reset")  # it was done, and nobody heard
        return answer


def _passed_on(name):
    return lambda self, *given, **how: self._call(name, given, how)


for _name, _ in inspect.getmembers(MlflowClient, inspect.isfunction):
    if _name in WRITES or _name.startswith(("get_", "search_", "list_", "download_")):
        setattr(GoesAway, _name, _passed_on(_name))


@pytest.fixture
def noted(client, tmp_path):
    """Return what notes the store as it is, and returns what puts it back so."""
    file = Path(client.tracking_uri.removeprefix("sqlite:///"))
    artifacts, copied = file.parent / "mlruns", tmp_path / "mlruns"

    def copy(source, target, tree, tree_copy):
        with closing(sqlite3.connect(source)) as a, closing(sqlite3.connect(target)) as b:
            a.backup(b)
        shutil.rmtree(tree_copy, ignore_errors=True)
        shutil.copytree(tree, tree_copy)

    def note():
        copy(file, tmp_path / file.name, artifacts, copied)
        return lambda: copy(tmp_path / file.name, file, copied, artifacts)

    return note


@pytest.mark.integration  # some 150 decisions, each interrupted at another write
@pytest.mark.parametrize("answered", [False, True], ids=["not done", "done, not heard"])
@pytest.mark.parametrize(
    ("earlier", "decision"),
    [
        ([], "approve 1"),
        (["approve 1"], "approve 2"),
        (["approve 1"], "retire 1"),
        (["approve 1", "approve 2"], "rollback"),
        ([], "reject 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_whatever_write_is_the_last_all_moves_or_nothing(
    client, model, noted, earlier, decision, answered
):
    word, _, number = decision.partition(" ")
    take_all(client, model, *earlier)
    before, back = (aliases(client, model), states(client, model)), noted()
    take(client, model, word, number)
    after = (aliases(client, model), states(client, model))
    outcomes = []
    for last in range(1, 30):
        back()
        away = GoesAway(client.tracking_uri, last, answered)
        try:
            take(away, model, word, number)
        except (Failed, Refused) as err:
            outcomes.append(said := _outcome(str(err)))
        else:
            assert away.left > 0
            break
        entries = read_history(client, model)
        assert said in ("unknown", "recorded" if len(entries) > len(earlier) else "nothing")
        if answered:
            continue  # the store is as where the next write was not done: the other case has it
        settle(client, model)
        settle(client, model)  # as often as one likes
        recorded = len(entries) > len(earlier)
        assert (aliases(client, model), states(client, model)) == (after if recorded else before)
        assert verify_history(client, model) == []
        if not recorded:
            take(client, model, word, number)
            assert (aliases(client, model), states(client, model)) == after
    assert (aliases(client, model), states(client, model)) == after  # no write was left
    assert verify_history(client, model) == []
    assert outcomes == sorted(outcomes, key=["nothing", "unknown", "recorded"].index)
    assert set(outcomes) == {"nothing", "unknown", "recorded"}


def _outcome(said):
    """Return what a message says became of the decision."""
    kinds = {
        "nothing": "Nothing was changed.",
        "recorded": "stands: it is entry",
        "unknown": "it is not known whether the decision stands",
    }
    (kind,) = [kind for kind, words in kinds.items() if words in said]
    return kind


def test_the_next_decision_finishes_an_interrupted_one(client, model):
    take_all(client, model, "approve 1")
    away = GoesAway(client.tracking_uri, 5, False)  # two links, file and entry are written
    with pytest.raises(Failed, match=r"approve of .* version 2 stands: it is entry 2"):
        take(away, model, "approve", 2)
    assert aliases(client, model) == {"champion": 1}
    assert verify_history(client, model) == [
        "entry 2: recorded, but interrupted before tags and aliases showed it. "
        "The next decision or review finishes it."
    ]
    take(client, model, "reject", 3)
    assert aliases(client, model) == {"champion": 2, "previous_champion": 1}
    assert states(client, model) == ["approved", "approved", "rejected"]
    assert verify_history(client, model) == []


class Struck(MlflowClient):
    """A client whose process gets SIGTERM once it has made a call."""

    def set_registered_model_alias(self, *given):
        super().set_registered_model_alias(*given)
        raise Interrupted(signal.SIGTERM)

    def log_param(self, *given):
        super().log_param(*given)
        if isinstance(self, StruckWhileRecording):
            raise Interrupted(signal.SIGTERM)


class StruckWhileRecording(Struck):
    """One whose process gets it while the entry is recorded."""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Struck, "SIGTERM: approve of .* version 2 stands: it is entry 2"),
        (StruckWhileRecording, "SIGTERM: while entry 2 was recorded; the history tells whether"),
    ],
)
def test_a_signal_says_what_became_of_the_decision(client, model, kind, said):
    take_all(client, model, "approve 1")
    with pytest.raises(Interrupted, match=said):
        take(kind(client.tracking_uri), model, "approve", 2)
    take(client, model, "reject", 3)
    assert aliases(client, model) == {"champion": 2, "previous_champion": 1}
    assert verify_history(client, model) == []


# --- what somebody changed by hand ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c, m: c.set_registered_model_alias(m, "champion", "3"),
            "alias champion is version 3, but the history says version 2.",
        ),
        (
            lambda c, m: c.delete_registered_model_alias(m, "previous_champion"),
            "alias previous_champion is not set, but the history says version 1.",
        ),
        (
            lambda c, m: c.set_model_version_tag(m, "3", "review_status", "approved"),
            "version 3: tag review_status is approved, but the history says not set.",
        ),
        (
            lambda c, m: c.set_model_version_tag(m, "3", DEPLOYMENT_TAG, "approved"),
            f"version 3: tag {DEPLOYMENT_TAG} is approved, but the history says not set.",
        ),
        (
            lambda c, m: c.delete_model_version_tag(m, "2", "review_status"),
            "version 2: tag review_status is not set, but the history says approved.",
        ),
        (
            lambda c, m: c.set_model_version_tag(m, "2", "content_sha256", "0" * 64),
            f"version 2: tag content_sha256 is {'0' * 64}, but the history says {'2' * 64}.",
        ),
        (
            lambda c, m: c.set_model_version_tag(m, "1", "review_expires", "2099-01-01"),
            "version 1: tag review_expires is 2099-01-01, but the history says not set.",
        ),
    ],
)
def test_what_contradicts_the_history_is_named_and_hinders_decisions(client, model, change, said):
    take_all(client, model, "approve 1", "approve 2")
    change(client, model)
    assert verify_history(client, model) == [said]
    before = picture(client, model)
    with pytest.raises(Refused) as refusal:
        take(client, model, "retire", 1)
    assert said in str(refusal.value)
    settle(client, model)
    assert picture(client, model) == before


def test_a_lost_head_is_written_again(client, model):
    take_all(client, model, "approve 1", "approve 2")
    client.delete_registered_model_tag(model, HEAD_TAG)
    take_all(client, model, "rollback")
    assert verify_history(client, model) == []
