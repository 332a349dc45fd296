"""The history found, read and checked: every way to tamper with it is named."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from account_tax.errors import Refused
from account_tax.provenance.signing import signer_faults
from account_tax.registry.history import (
    BEFORE_FIRST,
    MARK_PARAM,
    EntryTakenError,
    HistoryError,
    count_entries,
    experiment_name,
    file_of,
    marked_value,
    open_run,
    parse_entry,
    read_digests,
    record_entry,
    render_entry,
    seal_entry,
    write_entry,
)
from account_tax.registry.registry_state import HEAD_TAG, check_standing, verify_history
from account_tax.review.allowed import Proposal
from account_tax.review.decision import decide
from account_tax.review.history_text import format_history
from tests.provenance.test_signing import write_key
from tests.registered import FAILED, NOW, PASSED, read_history

pytest_plugins = ["tests.registered"]  # client, new_model, model

GIVEN = {"reviewer": "kim", "reason": "looked at it", "now": NOW, "run_id": "a" * 32}


@pytest.fixture
def decided(client, model):
    """A model with three decisions: approved 1, approved 2, rolled back to 1."""
    for version in (1, 2):
        approve(client, model, version)
    rollback(client, model)
    return model


def approve(client, model, version, **changes):
    proposal = Proposal("approve", **{"gates": [PASSED], **GIVEN, **changes})
    return decide(client, model, proposal, version)


def rollback(client, model, **changes):
    return decide(client, model, Proposal("rollback", **GIVEN | changes))


def refuse_next(client, model):
    with pytest.raises(Refused) as refusal:
        decide(client, model, Proposal("reject", **GIVEN), 3)
    return str(refusal.value)


def run_of(client, model):
    return client.get_registered_model(model).tags["review_history"]


def file_at(client, model, n):
    """Return the path of an entry's file in the artifact store."""
    run_id = run_of(client, model)
    root = client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    return Path(root) / "entries" / file_of(n, read_digests(client, run_id)[n])


def database(client):
    return sqlite3.connect(client.tracking_uri.removeprefix("sqlite:///"))


# --- what is kept ---------------------------------------------------------------------------------


def test_an_entry_has_all_that_was_decided(client, model):
    approve(
        client, model, 1,
        gates=[PASSED, FAILED], waive=[FAILED.name], expires="2026-12-31", reason="  두 줄\nlang  ",
    )  # fmt: skip
    approve(client, model, 2)
    first, second = read_history(client, model)
    assert first == seal_entry(
        replace(
            first,
            n=1,
            time="2026-03-01T09:30:00+00:00",
            model=model,
            decision="approve",
            version=1,
            content_sha256="1" * 64,
            state_from="pending",
            state_to="approved",
            reviewer="kim",
            author="lee",
            reason="두 줄\nlang",
            waived=[FAILED.name],
            expires="2026-12-31",
            run_id="a" * 32,
            aliases_before={},
            aliases_after={"champion": 1},
            previous_sha256=BEFORE_FIRST,
        )
    )
    assert [set(gate) for gate in first.gates] == [{"name", "status", "found", "wanted"}] * 2
    assert second.previous_sha256 == first.sha256
    assert second.aliases_after == {"champion": 2, "previous_champion": 1}


def test_the_digest_is_that_of_the_canonical_json_without_itself(client, decided):
    content = json.loads(file_at(client, decided, 2).read_text(encoding="utf-8"))
    sha256 = content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == sha256
    assert read_digests(client, run_of(client, decided))[2] == sha256


def test_a_file_gives_the_entry_back(client, decided):
    for entry in read_history(client, decided):
        assert parse_entry(render_entry(entry)) == entry


def test_an_unknown_schema_is_not_read(client, decided):
    entry = read_history(client, decided)[0]
    with pytest.raises(ValueError, match="expected an entry of schema 1"):
        parse_entry(render_entry(replace(entry, schema=2)))


def test_nothing_decided_is_an_empty_history(client, model):
    assert read_history(client, model) == []
    assert verify_history(client, model) == []
    assert format_history([]) == "No decision has been recorded.\n"


def test_one_experiment_holds_it_and_nothing_half_made_is_left(client, decided):
    name = client.get_registered_model(decided).name
    held = [each for each in client.search_experiments() if f"history of {name}," in each.name]
    assert len(held) == 1
    (run,) = client.search_runs([held[0].experiment_id])
    assert run.info.run_id == run_of(client, decided)
    assert run.info.status == "FINISHED"


def test_it_survives_a_renaming(client, decided):
    client.rename_registered_model(decided, f"{decided}-renamed")
    assert len(read_history(client, f"{decided}-renamed")) == 3
    assert verify_history(client, f"{decided}-renamed") == []
    approve(client, f"{decided}-renamed", 3)
    assert len(read_history(client, f"{decided}-renamed")) == 4


def test_a_model_made_again_starts_anew(client, decided):
    client.delete_registered_model(decided)
    client.create_registered_model(decided)
    assert read_history(client, decided) == []
    assert verify_history(client, decided) == []


def test_no_entry_takes_the_number_of_another(client, decided):
    run_id = run_of(client, decided)
    last = read_history(client, decided)[-1]
    record_entry(client, run_id, last)  # the same one again is no fault: an answer may be lost
    another = seal_entry(replace(last, reason="another"))
    write_entry(client, run_id, another)
    with pytest.raises(EntryTakenError):
        record_entry(client, run_id, another)
    assert len(client.list_artifacts(run_id, "entries")) == 3
    assert read_history(client, decided)[-1] == last


def test_the_run_is_made_once(client, model):
    registered = client.get_registered_model(model)
    assert open_run(client, registered) == open_run(client, registered)


def test_a_decision_reads_the_history_in_one_download(client, decided, monkeypatch):
    downloads, download = [], LocalArtifactRepository.download_artifacts

    def counted(self, path, folder=None):
        downloads.append(path)
        return download(self, path, folder)

    monkeypatch.setattr(LocalArtifactRepository, "download_artifacts", counted)
    assert count_entries(client, decided) == 3
    approve(client, decided, 3)
    own = file_at(client, decided, 4).name  # read back: does the store give what was written?
    assert downloads == ["entries", f"entries/{own}"]


# --- tampering ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_edited_entry_is_named(client, decided, n):
    file = file_at(client, decided, n)
    file.write_text(file.read_text().replace('"kim"', '"lee"'))
    said = f"entry {n}: its file {file.name} was edited: its sha256 is not the recorded one."
    assert said in verify_history(client, decided)
    assert said in refuse_next(client, decided)
    assert n not in [entry.n for entry in read_history(client, decided)]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("\n", " \n", 1),
        lambda text: text.replace('"n": 2,', '"n": 2, "reviewer": "park",', 1),
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]\n",
        lambda text: text.replace('"reviewer"', '"rev"'),
    ],
    ids=["blank", "doubled key", "cut short", "empty", "no entry", "renamed field"],
)
def test_any_other_byte_is_an_edit(client, decided, edit):
    file = file_at(client, decided, 2)
    file.write_text(edit(file.read_text()))
    assert verify_history(client, decided)[0].startswith(f"entry 2: its file {file.name} was edite")


def test_an_entry_resealed_after_the_edit_is_found_all_the_same(client, decided):
    file = file_at(client, decided, 2)
    forged = seal_entry(replace(parse_entry(file.read_text()), reviewer="lee"))
    file.write_text(render_entry(forged))
    assert re.match("entry 2: .* was edited", verify_history(client, decided)[0])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_missing_entry_is_named(client, decided, n):
    file = file_at(client, decided, n)
    file.unlink()
    assert f"entry {n}: its file {file.name} is missing." in verify_history(client, decided)
    assert f"entry {n}: its file" in refuse_next(client, decided)


def test_reordered_entries_are_named(client, decided):
    first, second = file_at(client, decided, 1), file_at(client, decided, 2)
    texts = first.read_text(), second.read_text()
    second.write_text(texts[0])
    first.write_text(texts[1])
    faults = verify_history(client, decided)
    assert f"entry 1: its file {first.name} holds entry 2: entries were reordered." in faults
    assert f"entry 2: its file {second.name} holds entry 1: entries were reordered." in faults


def forge(client, model, n, **changes):
    """Replace entry n by a forged one, in the file and in the database's digest."""
    run_id, file = run_of(client, model), file_at(client, model, n)
    forged = seal_entry(replace(parse_entry(file.read_text()), **changes))
    file.unlink()
    file.with_name(file_of(n, forged.sha256)).write_text(render_entry(forged))
    with database(client) as connection:
        connection.execute(
            "update params set value = ? where run_uuid = ? and key = ?",
            (forged.sha256, run_id, f"{n:05d}"),
        )
    return forged


def test_an_entry_replaced_in_the_database_too_breaks_the_chain(client, decided):
    forge(client, decided, 1, reviewer="park")
    faults = verify_history(client, decided)
    assert "entry 2: it does not follow entry 1: entries were replaced or reordered." in faults


def test_a_replaced_last_entry_is_found_by_the_tags(client, decided):
    forge(client, decided, 3, reviewer="park")
    faults = verify_history(client, decided)
    assert re.match(f"the registered model's tag {HEAD_TAG} refers to entry 3", faults[0])
    assert re.match("version 1: its tag review_entry refers to entry 3", faults[1])
    assert "entries were cut off or replaced" in refuse_next(client, decided)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_entry_deleted_in_the_database_is_found(client, decided, n):
    run_id, file = run_of(client, decided), file_at(client, decided, n)
    file.unlink()
    with database(client) as connection:
        connection.execute(
            "delete from params where run_uuid = ? and key = ?", (run_id, f"{n:05d}")
        )
    said = {1: "entry 1: it is missing", 2: "entry 2: it is missing", 3: "entries were cut off"}[n]
    assert any(said in fault for fault in verify_history(client, decided))
    assert said in refuse_next(client, decided)


def test_an_entry_that_does_not_follow_from_those_before_is_named(client, decided):
    forge(client, decided, 3, aliases_before={"champion": 3})
    assert (
        "entry 3: rollback of version 1 does not follow from the entries before it."
        in verify_history(client, decided)
    )


@pytest.mark.parametrize("how", ["run", "experiment", "everything"])
def test_a_deleted_history_is_said_with_how_to_restore_it(client, decided, how):
    run_id = run_of(client, decided)
    experiment = client.get_run(run_id).info.experiment_id
    if how == "run":
        client.delete_run(run_id)
        said = f"Restore it: mlflow runs restore --run-id {run_id}"
    elif how == "experiment":
        client.delete_experiment(experiment)
        said = f"Restore it: mlflow experiments restore -x {experiment}"
    else:
        with database(client) as connection:
            for table in ("params", "tags", "latest_metrics", "runs"):
                connection.execute(f"delete from {table} where run_uuid = ?", (run_id,))
            connection.execute("delete from experiment_tags where experiment_id = ?", (experiment,))
            connection.execute("delete from experiments where experiment_id = ?", (experiment,))
        said = f"run {run_id}, which held the review history, is gone"
    (fault,) = verify_history(client, decided)
    assert said in fault
    assert said in refuse_next(client, decided)


def test_a_history_without_which_only_tags_are_left_is_missed(client, decided):
    run_id = run_of(client, decided)
    experiment = client.get_run(run_id).info.experiment_id
    client.rename_experiment(experiment, "hidden")
    client.delete_registered_model_tag(decided, "review_history")
    assert any("history of 0 entries" in fault for fault in verify_history(client, decided))
    assert "history of 0 entries" in refuse_next(client, decided)


def test_another_run_named_by_the_model_is_found(client, decided, new_model):
    other = new_model()
    approve(client, other, 1)
    client.set_registered_model_tag(decided, "review_history", run_of(client, other))
    (fault,) = verify_history(client, decided)
    assert "Somebody changed one of them" in fault


# --- what is shown --------------------------------------------------------------------------------


def test_the_history_is_shown_as_a_table_with_the_reasons(client, model):
    gates = [PASSED, FAILED]
    approve(client, model, 1, gates=gates, waive=[FAILED.name], reason="good\nenough")
    approve(client, model, 2, expires="2026-12-31")
    rollback(client, model, reason="word " * 40)
    entries = read_history(client, model)
    lines = format_history(entries).splitlines()
    assert lines[0].split() == [
        *("#", "time", "(UTC)", "decision", "version", "state", "champion", "reviewer", "sha256"),
    ]
    assert lines[1].split() == [
        *("1", "2026-03-01T09:30:00", "approve", "1", "pending", "→", "approved"),
        *("none", "→", "1", "kim", entries[0].sha256[:12]),
    ]
    assert lines[2:5] == [
        "   reason: good enough", "   waived: calibration_error", "   author: lee",
    ]  # fmt: skip
    assert "   expires: 2026-12-31" in lines
    assert max(len(line) for line in lines) <= 110
    assert lines[-1] == "   author: lee"


def test_a_history_begun_anew_is_found_by_the_runs_that_were_decided_on(client, new_model):
    model = new_model()
    for decision, version in (("approve", 1), ("reject", 2)):
        deciding = client.create_run("0").info.run_id
        given = GIVEN | {"run_id": deciding, "gates": [PASSED] * (decision == "approve")}
        decide(client, model, Proposal(decision, **given), version)
    assert verify_history(client, model) == []
    registered = client.get_registered_model(model)
    trained = client.get_model_version(model, "2").run_id
    experiment = client.get_experiment_by_name(experiment_name(registered))
    client.rename_experiment(experiment.experiment_id, f"{model}, elsewhere")
    for version in (1, 2):
        for tag in client.get_model_version(model, str(version)).tags.keys() - {"content_sha256"}:
            client.delete_model_version_tag(model, str(version), tag)
    for tag in registered.tags:
        client.delete_registered_model_tag(model, tag)
    client.delete_registered_model_alias(model, "champion")
    client.delete_run(deciding)
    faults = verify_history(client, model)
    assert sorted(fault.partition(", sha256")[0].partition(" bears ")[2] for fault in faults) == [
        *("entry 1", "entry 1", "entry 2", "entry 2"),
    ]
    with pytest.raises(Refused, match=f"run {trained} bears entry 2.*-P allow_unapproved=true"):
        check_standing(client, client.get_model_version(model, "2"), "2", allow_unapproved=False)
    with pytest.raises(HistoryError, match=f"run {deciding} bears entry 2"):
        approve(client, model, 2)  # in a history of its own, where nobody rejected it


def test_a_mark_that_nobody_set_here_is_named_whatever_it_says(client, model):
    approve(client, model, 1)
    whose = marked_value(client.get_registered_model(model), 0, "").partition(":")[0]
    run_id = client.create_run("0").info.run_id
    client.log_param(run_id, MARK_PARAM, f"{whose}:of mine")
    (fault,) = verify_history(client, model)
    assert f"run {run_id} bears entry of mine" in fault


# --- signatures -----------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path, monkeypatch):
    """A signing key, whose public half every command knows."""
    private, public = write_key(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))
    monkeypatch.setenv("ACCOUNT_TAX_VERIFY_KEY", str(public))
    return str(private)


def test_a_signed_history_is_whole_and_vouches_for_what_came_before_the_key(
    client, model, key, monkeypatch
):
    monkeypatch.delenv("ACCOUNT_TAX_VERIFY_KEY")
    approve(client, model, 1)  # before there was a key
    approve(client, model, 2, sign_key=key)
    rollback(client, model, sign_key=key)
    monkeypatch.setenv("ACCOUNT_TAX_VERIFY_KEY", str(Path(key).with_suffix(".pub")))
    assert verify_history(client, model) == []
    client.rename_registered_model(model, f"{model}-renamed")
    assert verify_history(client, f"{model}-renamed") == []


def test_a_decision_that_the_key_has_not_signed_is_named(client, model, key, tmp_path):
    approve(client, model, 1, sign_key=key)
    other, _ = write_key(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    approve(client, model, 2, sign_key=str(other))
    assert "entry 2: it is not signed by the key" in "".join(verify_history(client, model))
    assert "entry 2: it is not signed by the key" in refuse_next(client, model)


def test_a_signature_of_another_entry_or_model_is_none(client, new_model, key):
    signed, forged = new_model(), new_model()
    approve(client, signed, 1, sign_key=key)
    approve(client, forged, 1)
    signature = file_at(client, signed, 1)
    Path(f"{file_at(client, forged, 1)}.sig").write_bytes(Path(f"{signature}.sig").read_bytes())
    assert "entry 1: it is not signed" in "".join(verify_history(client, forged))


def test_an_entry_without_signature_after_a_signed_one_is_named(client, model, key):
    approve(client, model, 1, sign_key=key)
    approve(client, model, 2, sign_key=key)
    rollback(client, model, sign_key=key)
    Path(f"{file_at(client, model, 2)}.sig").unlink()
    (fault,) = verify_history(client, model)
    assert fault.startswith("entry 2: it is not signed")


def test_where_a_key_is_in_use_a_decision_has_to_be_signed_by_it(key, tmp_path):
    other, _ = write_key(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    assert signer_faults(key) == []
    for given in (None, str(other)):
        (fault,) = signer_faults(given)
        assert "a decision has to be signed by that key" in fault
    assert "can't be read" in signer_faults(str(tmp_path / "none.pem"))[0]
