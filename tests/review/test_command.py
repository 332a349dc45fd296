import shlex
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.projects._project_spec import load_project

from account_tax.errors import Failed, Refused
from account_tax.parameters.options import read_options, text_of
from account_tax.review import command
from account_tax.review.command import find_champion, show
from account_tax.review.request import Request
from tests.commands import call
from tests.test_mlproject import REPOSITORY

APPROVE = {"decision": "approve", "reviewer": "Kim", "reason": "better on every account"}


@pytest.mark.parametrize(
    ("name", "text"),
    [*APPROVE.items(), ("version", "3"), ("waive", "min_f1"), ("slices", "region,kind"),
     ("data", "my ledger's.csv"), ("expires", "2027-06-30"), ("history", "true"),
     ("verify_history", "true"), ("registered_model_name", "other")],
)  # fmt: skip
def test_each_p_name_of_the_entry_point_arrives(name, text):
    entry_point = load_project(str(REPOSITORY)).get_entry_point("review")
    given = {name: text, "registry.gates.min_f1": "0.9"}
    words = shlex.split(entry_point.compute_command(given, storage_dir=None))
    asked, more = read_options(Request, words[2:], lambda key: key.startswith("registry."))
    assert text_of(getattr(asked, name)) == text
    assert asked == replace(Request(), **{name: getattr(asked, name)})
    assert more == [("registry.gates.min_f1", "0.9")]


# --- the registry ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> MlflowClient:
    """A real store of its own; making one takes seconds, so the tests share it."""
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


def test_the_champion_is_the_other_version_that_serves(client):
    client.create_registered_model("served")
    first, second = (client.create_model_version("served", "file:///nowhere") for _ in range(2))
    assert find_champion(client, second) == (None, "no version has the alias champion yet")
    client.set_registered_model_alias("served", "champion", first.version)
    champion, note = find_champion(client, second)
    assert champion is not None
    assert (champion.version, note) == (first.version, "")
    assert find_champion(client, first) == (None, "the reviewed version is the champion itself")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("PERMISSION_DENIED", Refused, "no permission"),
        ("RESOURCE_DOES_NOT_EXIST", Refused, "registered_model_name"),
        ("TEMPORARILY_UNAVAILABLE", Failed, "repeat the command"),
    ],
)
def test_a_store_that_fails_is_named_with_what_to_do(code, kind, message):
    with pytest.raises(kind, match=message), command._clear_errors("http://127.0.0.1:9"):
        raise MlflowException("it said so", error_code=_code(code))


def _code(name: str) -> int:
    from mlflow.protos import databricks_pb2

    return getattr(databricks_pb2, name)


def test_the_history_of_a_model_there_is_not_is_refused(client, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    assert call(REPOSITORY, "review", "--history") == 2
    assert "account-tax" in capsys.readouterr().err
    assert [e.name for e in client.search_experiments()] == ["Default"]  # reading leaves no run


def test_the_terminal_has_scores_and_gates(findings, capsys):
    show(findings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("120 test rows")
    assert sum(line.startswith("account-tax version") for line in lines) == 2
    for gate in findings["gates"]:
        (line,) = (line for line in lines if line.split()[0] == gate["name"])
        assert gate["status"] in line
        assert gate["wanted"] in line
