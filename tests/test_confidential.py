"""What may be shown: sources, words and values without their secrets."""

from __future__ import annotations

from account_tax.confidential import hide_secrets, public_source, secrets_in
from tests.backends.test_handed_over import ENVIRONMENT


def test_a_uris_secrets_are_not_shown():
    shown = public_source("https://user:pass@host:8080/books/x.csv?token=abc#part")
    assert shown == "https://host:8080/books/x.csv"
    assert public_source("data/x.csv") == "data/x.csv"


def test_a_secret_is_found_by_its_value_and_a_uri_by_its_password():
    assert secrets_in("use hf_123456", ENVIRONMENT) == ["HF_TOKEN"]
    assert secrets_in("postgres://x:hunter22@y", ENVIRONMENT) == ["MLFLOW_TRACKING_URI"]
    assert secrets_in("abc host", ENVIRONMENT) == []


def test_secrets_are_hidden():
    assert hide_secrets("token hf_123456, hunter22", ENVIRONMENT) == "token [hidden], [hidden]"
