"""A store by its URI, whichever folder is the current one; and what can be asked of it."""

import pytest
from mlflow import MlflowClient

from account_tax.errors import Refused
from account_tax.tracking.store import absolute_store, condition


def test_a_relative_sqlite_store_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_store("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in ("sqlite:////srv/mlflow.db", "http://127.0.0.1:5000"):
        assert absolute_store(uri) == uri


def test_a_filter_finds_a_name_with_a_quote_and_none_breaks_out_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("O'Brien", 'the "books"', "plain"):
        client.create_registered_model(name)
        (found,) = client.search_registered_models(condition("name", name))
        assert found.name == name
    with pytest.raises(Refused, match="can't search for a name with such quotes"):
        condition("name", "a' or name LIKE \"%")
