"""A store by its URI, whichever folder is the current one."""

from account_tax.tracking.store import absolute_store


def test_a_relative_sqlite_store_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_store("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in ("sqlite:////srv/mlflow.db", "http://127.0.0.1:5000"):
        assert absolute_store(uri) == uri
