"""What may be shown: sources, words and values without their secrets, errors without cells."""

from __future__ import annotations

import json
import sys

import click
import pyarrow as pa
import pytest

from account_tax.confidential import (
    describe_error,
    hidden_logs,
    hidden_output,
    hide_secrets,
    holds_secret,
    public_source,
    secrets_in,
    without_quotes,
)
from account_tax.errors import Failed, Refused
from tests.backends.test_handed_over import ENVIRONMENT

AZURE = "DefaultEndpointsProtocol=https;AccountName=books;AccountKey=q1w2e3r4==;EndpointSuffix=net"
SECRETS = {
    **ENVIRONMENT,
    "ACCOUNT_TAX_SIGN_KEY_PASSPHRASE": "hush-hush",
    "AZURE_STORAGE_CONNECTION_STRING": AZURE,
    "MLFLOW_TRACKING_URI_BEFORE": "https://me:o'clock @9@host",
    **{"DB_PWD": "mpwd" * 2, "GITHUB_PAT": "mpat" * 2, "OPENAI_APIKEY": "mkey" * 2},
    "PG": "postgresql://me:p%40ss%2Fword@host/mlflow",
}


def test_a_uris_secrets_are_not_shown():
    shown = public_source("https://user:pass@host:8080/books/x.csv?token=abc#part")
    assert shown == "https://host:8080/books/x.csv"
    assert public_source("data/x.csv") == "data/x.csv"


def test_a_secret_is_found_by_its_value_and_a_uri_by_its_password():
    assert secrets_in("use hf_123456", ENVIRONMENT) == ["HF_TOKEN"]
    assert secrets_in("postgres://x:hunter22@y", ENVIRONMENT) == ["MLFLOW_TRACKING_URI"]
    assert secrets_in("abc host", ENVIRONMENT) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_123456, hunter22", "token [hidden], [hidden]"),
        (f"can't connect: {AZURE}", "can't connect: [hidden]"),
        ("AccountKey=q1w2e3r4==", "AccountKey=[hidden]"),
        ("wrong passphrase hush-hush", "wrong passphrase [hidden]"),
        ("p@ss/word and p%40ss%2Fword", "[hidden] and [hidden]"),
        # Of no variable: a git remote, a tracking URI, a signed link.
        ("origin https://ghp_abc@github.com/x.git", "origin https://[hidden]@github.com/x.git"),
        ("ssh://git@github.com/x.git", "ssh://git@github.com/x.git"),
        ("'http://me:a/b@host:5000' is away", "'http://[hidden]@host:5000' is away"),
        ("s3://AK:a/b@bucket/l.csv", "s3://[hidden]@bucket/l.csv"),
        ("https://me:p@ss:word@host/x is away", "https://[hidden]@host/x is away"),
        ('"o\'clock @9" is wrong', '"[hidden]" is wrong'),
        ("set sig=q1w2e3r4 and AccountKey=zzzz", "set sig=[hidden] and AccountKey=[hidden]"),
        ("mpwdmpwd mpatmpat mkeymkey", "[hidden] [hidden] [hidden]"),
        ("get https://h/l.csv?X-Amz-Signature=1f&e=3: 403", "get https://h/l.csv?[hidden] 403"),
        ("abfs://books@account.net/l.csv, s3://b/part-?.csv", None),
        ("sqlite:////srv/mlflow.db and models:/name@champion", None),
    ],
)
def test_secrets_are_hidden(text, shown):
    assert hide_secrets(text, SECRETS) == (shown or text)


@pytest.mark.parametrize(
    "source",
    [
        *("s3://AK:secret@b/l.csv", "https://token@h/l.csv", "https://h/l.csv?sig=1"),
        *("az://c/l?se=1", "https://me:o'clock@h/l.csv", "https://o'clock@h/l.csv"),
    ],
)
def test_a_source_that_says_who_asks_is_known(source):
    assert holds_secret(source)
    assert not holds_secret("s3://bucket/part-?.csv")


def test_nothing_printed_and_no_log_has_a_secret(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_123456")
    with hidden_output():
        click.echo("out hf_123456")
        click.echo("err hf_123456", err=True)
        print("more hf_123456", file=sys.stderr)  # noqa: T201
    assert "hf_123456" not in "".join(capsys.readouterr())
    log = tmp_path / "ranks" / "0.log"
    log.parent.mkdir()
    with hidden_logs(tmp_path):
        log.write_bytes(b"hf_123456 \xff\n")
    assert log.read_bytes() == b"[hidden] \xff\n"


CELL = "Taxi Kim 010-1234"


@pytest.mark.parametrize(
    "read",
    [
        lambda: float(CELL),
        lambda: {}[CELL],
        lambda: pa.array([CELL]).cast(pa.int64()),
        lambda: CELL.encode("ascii", "strict") + "접".encode("ascii"),
        lambda: json.loads("{}")[CELL],
    ],
)
def test_a_librarys_words_never_quote_the_ledger(read):
    with pytest.raises(Failed) as failed:
        without_quotes(read)()
    assert CELL not in str(failed.value)
    assert failed.value.__suppress_context__
    assert "test_confidential.py:" in str(failed.value)


def test_what_the_project_or_the_system_says_is_said():
    def refuse():
        raise Refused("no column memo")

    with pytest.raises(Refused, match="no column memo"):
        without_quotes(refuse)()
    assert "No space left" in describe_error(OSError(28, "No space left on device"))


def test_what_a_page_is_told_behind_its_mark_is_no_query():
    link = "http://127.0.0.1:5000/#/models/books/versions/1?workflowType=machine_learning"
    assert hide_secrets(link, {}) == link
